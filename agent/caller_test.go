package agent

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// call is one invocation as a caller makes it.
type call struct {
	head   sealed.RequestHead
	body   io.Reader
	flags  sealed.Flags
	header http.Header // outer
}

// answer is an opened reply, or the problem that came instead.
type answer struct {
	problem *api.Error
	status  int // of the outer reply
	head    sealed.ReplyHead
	body    io.Reader
	close   func()
}

func (a answer) header(name string) string {
	for _, h := range a.head.Header {
		if h.Name == name {
			return h.Value
		}
	}
	return ""
}

// request seals c and returns the body and what opens its reply.
func (w *world) request(c call, dst io.Writer) (*sealed.Writer, *unseal.PendingReply, error) {
	g, err := w.grants.Get(sealed.GrantParams{Role: sealed.RoleRequest, Recipient: w.desc.Decryption[0].Key,
		Sender: w.caller.Signer(), ReplyKey: w.caller.DecryptionKey(), Context: w.revision, Name: w.desc.FullName()})
	if err != nil {
		return nil, nil, err
	}
	defer g.Release()
	if c.head.Method == "" {
		c.head.Method = "POST"
	}
	sw, err := g.SealRequest(dst, sealed.MessageParams{Issued: time.Now(), Flags: c.flags}, c.head)
	if err != nil {
		return nil, nil, err
	}
	keys, err := unseal.NewKeySet(unseal.Key{Decrypter: w.caller.Decrypter()})
	if err != nil {
		return nil, nil, err
	}
	o, err := unseal.NewOpener(unseal.Config{Keys: keys})
	if err != nil {
		return nil, nil, err
	}
	pending, err := o.ExpectReply(unseal.ExpectReply{ID: sw.Header().ID, Link: sw.Link(), Name: w.desc.FullName(),
		Context: w.revision, Sender: w.desc.SigningKey})
	return sw, pending, err
}

// sealedRequest is a whole sealed request.
func (w *world) sealedRequest(c call) ([]byte, *unseal.PendingReply) {
	w.t.Helper()
	var b bytes.Buffer
	sw, pending, err := w.request(c, &b)
	if err != nil {
		w.t.Fatal(err)
	}
	if c.body != nil {
		if _, err := io.Copy(sw, c.body); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := sw.Close(); err != nil {
		w.t.Fatal(err)
	}
	return b.Bytes(), pending
}

// post sends a body to the agent and opens what comes back.
func (w *world) post(ctx context.Context, body io.Reader, pending *unseal.PendingReply, header http.Header) answer {
	w.t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://agent"+api.AgentPathInvoke, body)
	if err != nil {
		w.t.Fatal(err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	if req.Header.Get("Content-Type") == "" {
		req.Header.Set("Content-Type", api.ContentTypeSealed)
	}
	resp, err := w.http.RoundTrip(req)
	if err != nil {
		w.t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			w.t.Fatal(err)
		}
		if resp.StatusCode == http.StatusNoContent {
			return answer{status: resp.StatusCode, close: func() {}}
		}
		return answer{status: resp.StatusCode, problem: api.ParseProblem(resp.StatusCode, b), close: func() {}}
	}
	m, err := pending.Open(resp.Body)
	if err != nil {
		w.t.Fatalf("open the reply: %v", err)
	}
	head, err := m.ReplyHead()
	if err != nil {
		w.t.Fatal(err)
	}
	r, err := m.Stream()
	if err != nil {
		w.t.Fatal(err)
	}
	return answer{status: resp.StatusCode, head: head, body: r, close: func() { m.Close(); resp.Body.Close() }}
}

// invoke makes a call and reads the whole reply.
func (w *world) invoke(c call) (answer, string) {
	w.t.Helper()
	b, pending := w.sealedRequest(c)
	a := w.post(context.Background(), bytes.NewReader(b), pending, c.header)
	defer a.close()
	if a.body == nil {
		return a, ""
	}
	text, err := io.ReadAll(a.body)
	if err != nil {
		w.t.Fatalf("read the reply: %v", err)
	}
	return a, string(text)
}

// get is a call of a path with a small body.
func (w *world) get(path, body string) (answer, string) {
	w.t.Helper()
	return w.invoke(call{head: sealed.RequestHead{Method: "POST", Path: path}, body: bytes.NewReader([]byte(body))})
}

// wantCode fails unless a is a sealed failure of code.
func wantCode(t testing.TB, a answer, code api.Code) {
	t.Helper()
	if a.problem != nil {
		t.Fatalf("answered in clear: %v", a.problem)
	}
	if got := a.header("x-faasd-sec-error"); got != string(code) {
		t.Fatalf("status %d, error %q; want %q", a.head.Status, got, code)
	}
}
