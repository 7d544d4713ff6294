package unseal_test

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// reply seals a reply to the request with this header and link.
func (w *world) reply(t *testing.T, h sealed.MessageHeader, link sealed.Link, body string) []byte {
	t.Helper()
	b, err := w.replyGrant(t).AppendReply(nil, sealed.MessageParams{ID: h.ID, Link: link, Issued: w.now()},
		sealed.ReplyHead{Status: 201, Header: []sealed.Field{{Name: "x-a", Value: "b"}}}, []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (w *world) pending(t *testing.T, h sealed.MessageHeader, link sealed.Link, change func(*unseal.ExpectReply)) *unseal.PendingReply {
	t.Helper()
	want := unseal.ExpectReply{ID: h.ID, Link: link, Name: w.name, Context: w.revision, Sender: w.fn.SigningKey()}
	if change != nil {
		change(&want)
	}
	p, err := w.opener(t, w.caller.Decrypter(), true).ExpectReply(want)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestReplyTravelsBack(t *testing.T) {
	w := newWorld(t)
	g := w.requestGrant(t)
	b, sent, link := w.request(t, g, 0, []byte("ping"))
	m, err := w.opener(t, w.fn.Decrypter(), true).Open(bytes.NewReader(b), w.wantRequest())
	if err != nil {
		t.Fatal(err)
	}
	if m.Header != sent || m.Link() != link || m.Grant.ReplyKey != w.caller.DecryptionKey() {
		t.Fatal("the function sees another request than was sent")
	}
	reply := w.reply(t, m.Header, m.Link(), "pong")
	m.Close()
	if !m.Link().IsZero() {
		t.Fatal("the link outlived its message")
	}

	p := w.pending(t, sent, link, nil)
	r, err := p.Open(bytes.NewReader(reply))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if h, err := r.ReplyHead(); err != nil || h.Status != 201 || len(h.Header) != 1 {
		t.Fatal(h, err)
	}
	body, err := r.Body(nil)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(body); err != nil || string(text) != "pong" || !r.Complete() {
		t.Fatal(text, err)
	}
	if _, err := r.RequestHead(); err == nil {
		t.Fatal("a reply has a request head")
	}
	_, err = p.Open(bytes.NewReader(reply))
	wantCode(t, err, sealed.CodeReplay)
	p.Discard()
	if _, err := p.Open(bytes.NewReader(reply)); err == nil || sealed.CodeOf(err) != "" {
		t.Fatal(err)
	}
}

func TestRedirectedReplyIsRefused(t *testing.T) {
	w, other := newWorld(t), newWorld(t)
	g := w.requestGrant(t)
	_, first, firstLink := w.request(t, g, 0, nil)
	_, second, secondLink := w.request(t, g, 0, nil)
	toFirst := w.reply(t, first, firstLink, "to the first")

	for name, c := range map[string]struct {
		code   sealed.Code
		header sealed.MessageHeader
		link   sealed.Link
		change func(*unseal.ExpectReply)
	}{
		"another request":            {sealed.CodeFormat, second, secondLink, nil},
		"another request's link":     {sealed.CodeCommitment, first, secondLink, nil},
		"another function's name":    {sealed.CodeWrongFunction, first, firstLink, func(e *unseal.ExpectReply) { e.Name = "other.demo" }},
		"another revision":           {sealed.CodeStaleRevision, first, firstLink, func(e *unseal.ExpectReply) { e.Context = sealed.Digest{7} }},
		"another function's key":     {sealed.CodeSender, first, firstLink, func(e *unseal.ExpectReply) { e.Sender = other.fn.SigningKey() }},
		"forged with the caller key": {sealed.CodeSender, first, firstLink, func(e *unseal.ExpectReply) { e.Sender = w.caller.SigningKey() }},
	} {
		p := w.pending(t, c.header, c.link, c.change)
		if _, err := p.Open(bytes.NewReader(toFirst)); sealed.CodeOf(err) != c.code {
			t.Errorf("%s: %v, want %s", name, err, c.code)
		}
	}
	// A refused reply does not take the right one's place.
	p := w.pending(t, second, secondLink, nil)
	_, err := p.Open(bytes.NewReader(toFirst))
	wantCode(t, err, sealed.CodeFormat)
	m, err := p.Open(bytes.NewReader(w.reply(t, second, secondLink, "right")))
	if err != nil {
		t.Fatal(err)
	}
	m.Close()
	// A request is no reply, nor a reply a request.
	_, err = p.Open(bytes.NewReader(must(w.request(t, g, 0, nil))))
	wantCode(t, err, sealed.CodeFormat)
	_, err = w.opener(t, w.caller.Decrypter(), true).Open(bytes.NewReader(toFirst), w.wantRequest())
	wantCode(t, err, sealed.CodeFormat)
}

func TestExpectationsMustBeComplete(t *testing.T) {
	w := newWorld(t)
	o := w.opener(t, w.fn.Decrypter(), true)
	for name, e := range map[string]unseal.Expect{
		"nothing":            {},
		"a reply":            {Role: sealed.RoleReply, Name: w.name, Context: w.revision, Senders: &sealed.Policy{}},
		"no senders":         {Role: sealed.RoleRequest, Name: w.name, Context: w.revision},
		"no name":            {Role: sealed.RoleRequest, Context: w.revision, Senders: &sealed.Policy{}},
		"any name":           {Role: sealed.RoleRequest, AnyName: true, Context: w.revision, Senders: &sealed.Policy{}},
		"no revision":        {Role: sealed.RoleRequest, Name: w.name, Senders: &sealed.Policy{}},
		"deposit's revision": {Role: sealed.RoleDeposit, Name: w.name, Context: w.revision, Senders: &sealed.Policy{}},
	} {
		if _, err := o.Open(bytes.NewReader(nil), e); err == nil || sealed.CodeOf(err) != "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	keys, err := unseal.KeysOf(w.fn.Decrypter())
	if err != nil {
		t.Fatal(err)
	}
	bare, err := unseal.NewOpener(unseal.Config{Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bare.Open(bytes.NewReader(nil), w.wantRequest()); err == nil || sealed.CodeOf(err) != "" {
		t.Errorf("a request without a replay set: %v", err)
	}
	if _, err := unseal.NewOpener(unseal.Config{}); err == nil {
		t.Error("an opener without keys")
	}
}

func TestOneOfManyOpensAtATime(t *testing.T) {
	w := newWorld(t)
	g := w.requestGrant(t)
	o := w.opener(t, w.fn.Decrypter(), true)
	b, sent, link := w.request(t, g, 0, []byte("once"))
	reply := w.reply(t, sent, link, "once")
	p := w.pending(t, sent, link, nil)
	var requests, replies atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if _, err := readAll(o, b, w.wantRequest()); err == nil {
				requests.Add(1)
			} else if !errors.Is(err, sealed.CodeReplay) {
				t.Error(err)
			}
			if m, err := p.Open(bytes.NewReader(reply)); err == nil {
				replies.Add(1)
				m.Close()
			} else if !errors.Is(err, sealed.CodeReplay) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if requests.Load() != 1 || replies.Load() != 1 {
		t.Fatalf("%d requests and %d replies opened", requests.Load(), replies.Load())
	}
}
