package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

func TestRequestsThatDoNotOpenAreRefusedByCode(t *testing.T) {
	w := newWorld(t, nil).start()
	grant := func(edit func(*sealed.GrantParams)) []byte {
		now := time.Now()
		p := sealed.GrantParams{Role: sealed.RoleRequest, Recipient: w.desc.Decryption[0].Key, Sender: w.caller.Signer(),
			ReplyKey: w.caller.DecryptionKey(), Context: w.revision, Name: w.desc.FullName(),
			NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Minute)}
		edit(&p)
		g := must[*sealed.Grant](t)(sealed.NewGrant(p))
		defer g.Release()
		b, _, _, err := g.AppendRequest(nil, sealed.MessageParams{Issued: p.NotAfter.Add(-time.Minute)}, sealed.RequestHead{Method: "POST", Path: "/echo"}, []byte("body"))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	stranger := must[*unseal.Identity](t)(unseal.NewIdentity(rand.Reader))
	good := func() []byte { return grant(func(*sealed.GrantParams) {}) }
	cut := func(b []byte) []byte { return b[:len(b)-1] }
	flip := func(b []byte) []byte {
		b[len(b)-1] ^= 1
		return b
	}
	for name, tc := range map[string]struct {
		body   []byte
		code   api.Code
		status int
	}{
		"not an envelope":  {[]byte("hello"), "format", 400},
		"another function": {grant(func(p *sealed.GrantParams) { p.Name = "other.openfaas-fn" }), "wrong_function", 404},
		"an old revision":  {grant(func(p *sealed.GrantParams) { p.Context[0] ^= 1 }), api.CodeStaleRevision, 409},
		"another key":      {grant(func(p *sealed.GrantParams) { p.Recipient = stranger.DecryptionKey() }), "unknown_key", 409},
		"a foreign caller": {grant(func(p *sealed.GrantParams) { p.Sender = stranger.Signer() }), "sender", 403},
		"an expired grant": {grant(func(p *sealed.GrantParams) {
			p.NotBefore, p.NotAfter = p.NotBefore.Add(-time.Hour), p.NotBefore
		}), "window", 400},
		"another role": {grantOfRole(t, w), "format", 400},
		"a cut body":   {cut(good()), "truncated", 400},
		"more bytes":   {append(good(), 0), "truncated", 400},
		"a bad tag":    {flip(good()), "record", 400},
	} {
		t.Run(name, func(t *testing.T) {
			a := w.post(context.Background(), bytes.NewReader(tc.body), nil, nil)
			if a.problem == nil || a.problem.Code != tc.code || a.status != tc.status {
				t.Errorf("status %d, %+v; want %d %s", a.status, a.problem, tc.status, tc.code)
			}
		})
	}
}

func grantOfRole(t *testing.T, w *world) []byte {
	now := time.Now()
	g := must[*sealed.Grant](t)(sealed.NewGrant(sealed.GrantParams{Role: sealed.RoleLog, Recipient: w.desc.Decryption[0].Key,
		Sender: w.caller.Signer(), Context: w.revision, Name: w.desc.FullName(), NotBefore: now, NotAfter: now.Add(time.Minute)}))
	defer g.Release()
	return must[[]byte](t)(g.Append(nil, sealed.MessageParams{Issued: now}, nil))
}

func TestReplayIsRefused(t *testing.T) {
	w := newWorld(t, nil).start()
	b, pending := w.sealedRequest(call{head: sealed.RequestHead{Method: "POST", Path: "/echo"}, body: strings.NewReader("once")})
	a := w.post(context.Background(), bytes.NewReader(b), pending, nil)
	a.close()
	if a.problem != nil {
		t.Fatal(a.problem)
	}
	a = w.post(context.Background(), bytes.NewReader(b), pending, nil)
	if a.problem == nil || a.problem.Code != api.CodeReplay || a.status != http.StatusConflict {
		t.Fatalf("%+v", a)
	}
}

func TestOnlySealedContentAndKnownPathsAreServed(t *testing.T) {
	w := newWorld(t, nil).start()
	b, pending := w.sealedRequest(call{})
	a := w.post(context.Background(), bytes.NewReader(b), pending, http.Header{"Content-Type": {"application/json"}})
	if a.problem == nil || a.problem.Code != api.CodeMediaType {
		t.Errorf("%+v", a)
	}
	for method, want := range map[string]api.Code{"GET /invoke": api.CodeMethod, "POST /other": api.CodeNotFound, "PUT /bundle": api.CodeConflict} {
		m, path, _ := strings.Cut(method, " ")
		req := must[*http.Request](t)(http.NewRequest(m, "http://agent"+path, nil))
		resp := must[*http.Response](t)(w.http.RoundTrip(req))
		var buf bytes.Buffer
		if _, err := buf.ReadFrom(resp.Body); err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if p := api.ParseProblem(resp.StatusCode, buf.Bytes()); p.Code != want {
			t.Errorf("%s: %v", method, p)
		}
	}
}

func TestRequestWithoutReplyKeyIsServedWithoutReply(t *testing.T) {
	w := newWorld(t, nil).start()
	now := time.Now()
	g := must[*sealed.Grant](t)(sealed.NewGrant(sealed.GrantParams{Role: sealed.RoleRequest, Recipient: w.desc.Decryption[0].Key,
		Sender: w.caller.Signer(), Context: w.revision, Name: w.desc.FullName(), NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Minute)}))
	defer g.Release()
	b, _, _, err := g.AppendRequest(nil, sealed.MessageParams{Issued: now}, sealed.RequestHead{Method: "POST", Path: "/print", Query: "quiet-call"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if a := w.post(context.Background(), bytes.NewReader(b), nil, nil); a.status != http.StatusNoContent {
		t.Fatalf("%+v", a)
	}
	w.node.wait("that it was served", func(n *testNode) bool { return n.logged(streamOut, "quiet-call") })
}
