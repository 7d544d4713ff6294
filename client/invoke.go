package client

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// Request is an invocation. All of it is sealed to the function.
type Request struct {
	Method string      // "" is POST
	Path   string      // "" or an absolute path below the function
	Query  string      // without '?'
	Header http.Header // for the function
	Body   io.Reader   // nil for none; a long one is read by another goroutine until the exchange ends, and never closed
	// Stream hands the body to the function while it flows and before its end
	// was authenticated, and the reply back meanwhile. A function that acts on a
	// part of its input must be prepared for input that ends in an error.
	Stream bool
	CallID string // "" lets the gateway draw one; visible to operators
	Trace  string // W3C traceparent of the span that this call is part of, visible to operators; "" for none
	Needs  *Needs // what the task asks for beyond the function's defaults; Needs.Task is drawn if it is zero
}

// Meta tells how an invocation was served, by the word of the gateway.
type Meta struct {
	CallID   string
	Node     string        // that served
	Start    string        // "warm", "cold" or ""
	InServer time.Duration // in the coordinator
	Duration time.Duration // from sealing to the opened head, measured here
	Revision sealed.Digest // sealed for; the reply is bound to it
	Retried  bool          // the first try was for a revision or key of yesterday
}

// Response is a function's answer. The caller closes Body.
type Response struct {
	Status int         // the function's own
	Header http.Header // the function's own
	Body   io.ReadCloser
	Meta   Meta
}

// Failure is the agent's own code in place of the function's answer, such as
// CodeOOMKilled, and "" when the function answered. Body then holds a problem.
func (r *Response) Failure() api.Code { return api.Code(r.Header.Get(api.HeaderFunctionErr)) }

// Invoke seals req to the function, sends it, and opens the head of the reply;
// its body is opened while it is read. What the platform or the agent refuses is
// an *api.Error. ctx bounds the exchange up to the end of the reply's body. A
// function that was deployed anew meanwhile is asked a second time, if the body
// can be sent again; so is the gateway, about what Config.Via does not take.
func (c *Client) Invoke(ctx context.Context, name api.FunctionName, req Request) (*Response, error) {
	if err := c.needIdentity(); err != nil {
		return nil, err
	}
	f, err := c.function(ctx, name)
	if err != nil {
		return nil, err
	}
	f = c.chosen(f, &req)
	in, err := newInput(req.Body, req.Stream)
	if err != nil {
		return nil, err
	}
	if c.via != nil && req.Needs == nil { // coordinators alone have manifests opened
		res, err := c.exchange(ctx, c.via, f, req, in)
		if err == nil || !elsewhere(err) || !in.rewind() {
			return res, err
		}
	}
	res, err := c.atCoordinators(ctx, f, req, in)
	if err == nil || !stale(err) {
		return res, err
	}
	fresh, ferr := c.fetch(ctx, name)
	if ferr != nil {
		return nil, ferr
	}
	if fresh = c.chosen(fresh, &req); fresh.desc.Sequence == f.desc.Sequence || !in.rewind() {
		return nil, err
	}
	if res, err = c.atCoordinators(ctx, fresh, req, in); err != nil {
		return nil, err
	}
	res.Meta.Retried = true
	return res, nil
}

// elsewhere reports whether an error of a node's gateway says that no agent has
// had the message, and that a coordinator may do better: it knows the other
// nodes and the functions' latest revisions, and keeps callers waiting for room.
func elsewhere(err error) bool {
	if undialled(err) { // nobody there
		return true
	}
	switch api.CodeOf(err) {
	case api.CodeMisdirected, api.CodeBusy, api.CodeNoRoom, api.CodeDraining:
		return true
	}
	return stale(err)
}

// stale reports whether an error says that our descriptor is out of date. The
// agent decides so before it opens anything, so the function saw nothing.
func stale(err error) bool {
	c := api.CodeOf(err)
	return c == api.CodeStaleRevision || c == api.Code(sealed.CodeUnknownKey)
}

// grantFor is a grant to the function's key that is live; the caller releases it.
func (c *Client) grantFor(f *function, now time.Time) (*sealed.Grant, error) {
	key, err := f.desc.KeyAt(now)
	if err != nil {
		return nil, &api.Error{Code: api.Code(sealed.CodeUnknownKey), Field: "function", Err: err,
			Message: f.name.Short() + " has no key that is valid now", Remedy: "its owner deploys it again (faasd-sec deploy)"}
	}
	g, err := c.grants.Get(sealed.GrantParams{Role: sealed.RoleRequest, Recipient: key, Sender: c.cfg.Identity.Signer(),
		ReplyKey: c.cfg.Identity.DecryptionKey(), Context: f.revision, Name: string(f.name)})
	if err != nil {
		return nil, fmt.Errorf("client: make a grant: %w", err)
	}
	return g, nil
}

func (c *Client) exchange(ctx context.Context, to *entry, f *function, req Request, in *input) (_ *Response, retErr error) {
	begun := c.cfg.Now()
	g, err := c.grantFor(f, begun)
	if err != nil {
		return nil, err
	}
	defer g.Release()
	sealedNeeds, err := c.sealManifest(ctx, f, req.Needs)
	if err != nil {
		return nil, err
	}
	sent, err := c.seal(g, req, in, sealed.MessageParams{Issued: begun, Life: f.life(begun)})
	if err != nil {
		return nil, err
	}
	pending, err := c.opener.ExpectReply(unseal.ExpectReply{ID: sent.id, Link: sent.link, Name: string(f.name),
		Context: f.revision, Sender: f.desc.SigningKey})
	if err != nil {
		sent.abort()
		return nil, fmt.Errorf("client: expect the reply: %w", err)
	}
	defer func() {
		if retErr != nil {
			pending.Discard()
		}
	}()
	sent.manifest, sent.trace = sealedNeeds, req.Trace
	a, err := c.post(ctx, to, f.name, req.CallID, sent)
	if err != nil {
		return nil, err
	}
	if a.stated > f.stated {
		c.hear(f.name, a.stated)
	}
	res, err := open(pending, a.body)
	if err != nil {
		a.body.Close()
		return nil, err
	}
	res.Meta = a.meta
	if res.Meta.Start == "warm" {
		f.warm.Store(begun.UnixMilli())
	}
	res.Meta.Revision, res.Meta.Duration = f.revision, c.cfg.Now().Sub(begun)
	return res, nil
}

// outgoing is a sealed request on its way.
type outgoing struct {
	id    sealed.ID
	link  sealed.Link
	whole []byte // nil for a stream
	body  io.Reader
	abort func() // when nobody will read body

	manifest string // sealed, for its header; "" for none
	trace    string // for its header; "" for none
}

func (c *Client) seal(g *sealed.Grant, req Request, in *input, p sealed.MessageParams) (*outgoing, error) {
	head, err := requestHead(req)
	if err != nil {
		return nil, err
	}
	if req.Stream {
		p.Flags |= sealed.FlagEarlyInput
	}
	if in.stream == nil {
		b, h, link, err := g.AppendRequest(nil, p, head, in.whole)
		if err != nil {
			return nil, headError(err)
		}
		return &outgoing{id: h.ID, link: link, whole: b, body: bytes.NewReader(b), abort: func() {}}, nil
	}
	pr, pw := io.Pipe()
	w, err := g.SealRequest(pw, p, head)
	if err != nil {
		return nil, headError(err)
	}
	id, link := w.Header().ID, w.Link()
	// The goroutine ends with the caller's body or with the transport, which
	// closes pr when the exchange is over.
	done := make(chan struct{})
	in.reading = done
	go func() {
		defer close(done)
		pw.CloseWithError(pump(w, in.stream, req.Stream))
	}()
	return &outgoing{id: id, link: link, body: pr, abort: func() { pr.Close() }}, nil
}

// pump seals src into w. With early set each piece becomes a record at once.
func pump(w *sealed.Writer, src io.Reader, early bool) error {
	defer w.Abort()
	if !early {
		if _, err := io.Copy(w, src); err != nil {
			return err
		}
		return w.Close()
	}
	buf := make([]byte, 32<<10)
	defer clear(buf)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				return werr
			}
			if werr := w.Flush(); werr != nil {
				return werr
			}
		}
		switch {
		case err == io.EOF:
			return w.Close()
		case err != nil:
			return err
		}
	}
}

func (c *Client) post(ctx context.Context, to *entry, name api.FunctionName, callID string, out *outgoing) (*answer, error) {
	send := c.postDirect
	if to.direct == nil {
		send = c.postHTTP
	}
	a, err := send(ctx, to, name, callID, out)
	if err != nil {
		return nil, err
	}
	if a.status != http.StatusOK {
		defer a.body.Close()
		return nil, problem(a.status, a.typ, a.body)
	}
	if a.typ != api.ContentTypeSealed {
		a.body.Close()
		return nil, &api.Error{Code: api.CodeMediaType, Field: "Content-Type",
			Message: fmt.Sprintf("the reply is %q and not sealed", a.typ), Remedy: "check that the gateway's URL is a faasd-sec coordinator's"}
	}
	return a, nil
}

// postHTTP sends a sealed request through the configured transport.
func (c *Client) postHTTP(ctx context.Context, to *entry, name api.FunctionName, callID string, out *outgoing) (*answer, error) {
	u := *to.url
	u.Path = api.GatewayPathInvoke + string(name)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), out.body)
	if err != nil {
		out.abort()
		return nil, fmt.Errorf("client: %w", err)
	}
	req.Header.Set("Content-Type", api.ContentTypeSealed)
	if callID != "" {
		req.Header.Set(api.HeaderCallID, callID)
	}
	if out.manifest != "" {
		req.Header.Set(api.HeaderManifest, out.manifest)
	}
	if out.trace != "" {
		req.Header.Set(api.HeaderTrace, out.trace)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, unreachable(to.url, err)
	}
	h := res.Header
	return &answer{status: res.StatusCode, typ: h.Get("Content-Type"), body: res.Body, stated: statedText(h.Get(api.HeaderStated)),
		meta: Meta{CallID: h.Get(api.HeaderCallID), Node: h.Get(api.HeaderServedBy), Start: h.Get(api.HeaderStart),
			InServer: inServer(h.Get(api.HeaderDuration))}}, nil
}

func requestHead(req Request) (sealed.RequestHead, error) {
	h := sealed.RequestHead{Method: req.Method, Path: req.Path, Query: req.Query}
	if h.Method == "" {
		h.Method = http.MethodPost
	}
	if h.Path != "" && !strings.HasPrefix(h.Path, "/") {
		return h, api.Invalid("path", "begin it with '/'", fmt.Sprintf("%q is not an absolute path", h.Path))
	}
	names := make([]string, 0, len(req.Header))
	for n := range req.Header {
		names = append(names, n)
	}
	sort.Strings(names) // two equal requests are sealed alike
	for _, n := range names {
		for _, v := range req.Header[n] {
			h.Header = append(h.Header, sealed.Field{Name: strings.ToLower(n), Value: v})
		}
	}
	return h, nil
}

// headError: sealing fails on what the caller put in the head, or on a defect.
func headError(err error) error {
	return &api.Error{Code: api.CodeInvalid, Field: "request", Err: err, Message: "method, path, query or headers cannot be sealed",
		Remedy: "use an upper-case method, an absolute path, and at most 60,000 bytes of headers"}
}

// statedText reads a sequence that a gateway tells, 0 where it tells none.
func statedText(text string) uint64 {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// inServer reads the gateway's own time, 0 where it tells none.
func inServer(text string) time.Duration {
	if s, err := strconv.ParseFloat(text, 64); err == nil && s >= 0 && s < 1e6 {
		return time.Duration(s * float64(time.Second))
	}
	return 0
}
