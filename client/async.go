package client

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/emmansun/gmsm/sm2"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// Later says how an asynchronous invocation is to be treated.
type Later struct {
	MaxAge   time.Duration // it must have begun by then; 0 is the most that the function allows
	Callback string        // URL to which the sealed result is posted, "" for none
	Events   string        // "structured" or "binary": the callback is a CloudEvent
	Once     bool          // the result is forgotten when it was read
	Key      string        // an idempotency key: the same bytes sent again under it are the same call
}

// Pending is an asynchronous invocation that was accepted: what it takes to open
// its result. Save it with Marshal.
type Pending struct {
	CallID   string
	Function api.FunctionName
	Expires  time.Time
	id       sealed.ID
	link     sealed.Link
	revision sealed.Digest
	signer   sealed.PublicKey
}

// InvokeLater seals req to the function and has the gateway keep it until it has
// run. When it returns, the call is durable there.
func (c *Client) InvokeLater(ctx context.Context, name api.FunctionName, req Request, how Later) (*Pending, error) {
	if err := c.needIdentity(); err != nil {
		return nil, err
	}
	in, err := newInput(req.Body, false)
	if err != nil {
		return nil, err
	}
	f, err := c.function(ctx, name)
	if err != nil {
		return nil, err
	}
	p, err := c.laterAtCoordinators(ctx, c.chosen(f, &req), req, in, how)
	if err == nil || !stale(err) || !in.rewind() {
		return p, err
	}
	if f, err = c.fetch(ctx, name); err != nil {
		return nil, err
	}
	return c.laterAtCoordinators(ctx, c.chosen(f, &req), req, in, how)
}

// laterAtCoordinators has one of the coordinators keep the call. The next is asked
// only where nobody was at the first: who answers that the store failed may have
// accepted it all the same.
func (c *Client) laterAtCoordinators(ctx context.Context, f *function, req Request, in *input, how Later) (*Pending, error) {
	again := func(err error) bool { return undialled(err) && in.rewind() }
	return askNext(ctx, c, again, func(to *entry) (*Pending, error) { return c.postLater(ctx, to, f, req, in, how) })
}

// ageOf is how long a message to f may wait.
func ageOf(f *function, want time.Duration) (time.Duration, sealed.Flags, error) {
	most, flags := time.Duration(f.desc.MaxQueuedMS)*time.Millisecond, sealed.FlagQueued
	if most == 0 { // the function takes no queued requests: it must run as soon as any other
		most, flags = sealed.MaxLife, 0
	}
	if want > most {
		return 0, 0, &api.Error{Code: api.CodeInvalid, Field: "max age", Message: fmt.Sprintf("%s takes requests of at most %s", f.name.Short(), most),
			Remedy: "ask for less, or have its owner deploy it with a longer sealed.max_queued"}
	}
	if want == 0 {
		want = most
	}
	if want <= sealed.MaxLife {
		flags = 0
	}
	return want, flags, nil
}

func (c *Client) postLater(ctx context.Context, to *entry, f *function, req Request, in *input, how Later) (*Pending, error) {
	now := c.cfg.Now()
	age, flags, err := ageOf(f, how.MaxAge)
	if err != nil {
		return nil, err
	}
	g, err := c.grantFor(f, now)
	if err != nil {
		return nil, err
	}
	defer g.Release()
	manifest, err := c.sealManifest(ctx, f, req.Needs)
	if err != nil {
		return nil, err
	}
	req.Stream = false
	out, err := c.seal(g, req, in, sealed.MessageParams{Issued: now, Life: age, Flags: flags})
	if err != nil {
		return nil, err
	}
	u := *to.url
	u.Path = api.GatewayPathAsync + string(f.name)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), out.body)
	if err != nil {
		out.abort()
		return nil, fmt.Errorf("client: %w", err)
	}
	r.Header.Set("Content-Type", api.ContentTypeSealed)
	once := ""
	if how.Once {
		once = "1"
	}
	for name, value := range map[string]string{api.HeaderCallID: req.CallID, api.HeaderManifest: manifest, api.HeaderCallback: how.Callback,
		api.HeaderEvents: how.Events, api.HeaderOnce: once, api.HeaderIdempotency: how.Key} {
		if value != "" {
			r.Header.Set(name, value)
		}
	}
	res, err := c.http.Do(r)
	if err != nil {
		return nil, unreachable(to.url, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusAccepted {
		return nil, problem(res.StatusCode, res.Header.Get("Content-Type"), res.Body)
	}
	return &Pending{CallID: res.Header.Get(api.HeaderCallID), Function: f.name, Expires: now.Add(age), id: out.id, link: out.link,
		revision: f.revision, signer: f.desc.SigningKey}, nil
}

// ErrNotYet says that a call has not ended.
var ErrNotYet = &api.Error{Code: api.CodeUnavailable, Message: "the call has not ended yet", Remedy: "ask again later"}

// Result fetches an asynchronous invocation's result and opens it. ErrNotYet says
// that there is none so far; the error of a call that was given up or cancelled
// has the code that says why.
func (c *Client) Result(ctx context.Context, p *Pending) (*Response, error) {
	return c.result(ctx, p.CallID, func(sealed.ID) *Pending { return p })
}

// result is Result for a call that may have been sealed more than once: which of
// these ran is in the clear part of its reply.
func (c *Client) result(ctx context.Context, callID string, sent func(sealed.ID) *Pending) (_ *Response, retErr error) {
	if err := c.needIdentity(); err != nil {
		return nil, err
	}
	res, err := c.send(ctx, call{method: http.MethodGet, path: api.GatewayPathResults + url.PathEscape(callID), signed: true})
	if err != nil {
		return nil, err
	}
	defer func() {
		if retErr != nil {
			res.Body.Close()
		}
	}()
	if res.StatusCode == http.StatusAccepted {
		return nil, ErrNotYet
	}
	body := bufio.NewReaderSize(res.Body, sealed.MaxPeek)
	head, err := body.Peek(sealed.MaxPeek)
	if err != nil && err != io.EOF {
		return nil, c.unreachable(err)
	}
	peeked, err := sealed.Peek(head)
	if err != nil {
		return nil, replyError(err)
	}
	p := sent(peeked.Message.ID)
	if p == nil {
		return nil, &api.Error{Code: api.CodeForbidden, Field: "call", Message: "the result is of a message that was not sealed here", Remedy: "use the same --config-dir as then"}
	}
	pending, err := c.opener.ExpectReply(unseal.ExpectReply{ID: p.id, Link: p.link, Name: string(p.Function), Context: p.revision, Sender: p.signer})
	if err != nil {
		return nil, fmt.Errorf("client: expect the result: %w", err)
	}
	out, err := open(pending, struct {
		io.Reader
		io.Closer
	}{body, res.Body})
	if err != nil {
		pending.Discard()
		return nil, err
	}
	h := res.Header
	out.Meta = Meta{CallID: callID, Node: h.Get(api.HeaderServedBy), Start: h.Get(api.HeaderStart), InServer: inServer(h.Get(api.HeaderDuration)), Revision: p.revision}
	return out, nil
}

// Opened opens a result that came by another way, such as a callback's body.
func (c *Client) Opened(p *Pending, body []byte) (*Response, error) {
	pending, err := c.opener.ExpectReply(unseal.ExpectReply{ID: p.id, Link: p.link, Name: string(p.Function), Context: p.revision, Sender: p.signer})
	if err != nil {
		return nil, fmt.Errorf("client: expect the result: %w", err)
	}
	return open(pending, nopBody{bytes.NewReader(body)})
}

type nopBody struct{ *bytes.Reader }

// Close implements io.Closer.
func (nopBody) Close() error { return nil }

// pendingFile is a Pending at rest. What opens the result is encrypted to the
// caller's own decryption key.
type pendingFile struct {
	CallID   string           `json:"call_id"`
	Function api.FunctionName `json:"function"`
	Expires  int64            `json:"expires"` // unix milliseconds
	ID       []byte           `json:"id"`
	Revision []byte           `json:"revision"`
	Signer   sealed.PublicKey `json:"signer"`
	Link     []byte           `json:"link"` // SM2, strict DER
}

// Marshal encodes p for the identity's own later use.
func (c *Client) Marshal(p *Pending) ([]byte, error) {
	own := c.cfg.Identity.DecryptionKey()
	key, err := sm2.NewPublicKey(own[:])
	if err != nil {
		return nil, fmt.Errorf("client: own key: %w", err)
	}
	link, err := sm2.EncryptASN1(rand.Reader, key, p.link[:])
	if err != nil {
		return nil, fmt.Errorf("client: keep the call: %w", err)
	}
	return json.Marshal(pendingFile{CallID: p.CallID, Function: p.Function, Expires: p.Expires.UnixMilli(), ID: p.id[:], Revision: p.revision[:], Signer: p.signer, Link: link})
}

// Unmarshal decodes what Marshal made.
func (c *Client) Unmarshal(b []byte) (*Pending, error) {
	if err := c.needIdentity(); err != nil {
		return nil, err
	}
	var f pendingFile
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, api.Invalid("call", "pass what was saved when it was sent", err.Error())
	}
	link, err := c.cfg.Identity.Decrypter().Decrypt(rand.Reader, f.Link, nil)
	if err != nil || len(link) != len(sealed.Link{}) || len(f.ID) != len(sealed.ID{}) || len(f.Revision) != len(sealed.Digest{}) {
		return nil, &api.Error{Code: api.CodeForbidden, Field: "call", Message: "the call was sent by another identity, or its record is damaged",
			Remedy: "use the identity that sent it (--identity)"}
	}
	defer clear(link)
	return &Pending{CallID: f.CallID, Function: f.Function, Expires: time.UnixMilli(f.Expires), id: sealed.ID(f.ID), link: sealed.Link(link),
		revision: sealed.Digest(f.Revision), signer: f.Signer}, nil
}
