package unseal_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// TestFewAllocations: each of these happens in every call. Cipher and mode are
// two, a message and its head three, a pending reply one. Built for the race
// detector, the library allocates two for a reply's key wherever one is derived.
func TestFewAllocations(t *testing.T) {
	w := newWorld(t)
	g, back := w.requestGrant(t), w.replyGrant(t)
	defer g.Release()
	defer back.Release()
	body, out := make([]byte, 1024), make([]byte, 0, 4096)
	id, link := sealed.ID{1}, sealed.Link{2}
	head := sealed.ReplyHead{Status: 200, Header: benchHead.Header}
	params := sealed.MessageParams{ID: id, Link: link, Issued: w.now()}
	want := w.wantRequest()

	few := func(what string, limit float64, f func()) {
		t.Helper()
		least := testing.AllocsPerRun(1, f)
		for range 100 { // pools lose what they hold now and then
			least = min(least, testing.AllocsPerRun(1, f))
		}
		if least > limit {
			t.Errorf("%s: %v allocations, want at most %v", what, least, limit)
		}
	}
	sealRequest := func() []byte {
		b, _, _, err := g.AppendRequest(out, sealed.MessageParams{Issued: w.now()}, benchHead, body)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	sealReply := func() []byte {
		b, err := back.AppendReply(out, params, head, body)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var r bytes.Reader
	read := func(m *unseal.Message, err error) {
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		text, err := m.Body(nil)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, text); err != nil || n != int64(len(body)) {
			t.Fatal(n, err)
		}
	}
	few("seal a request", 2, func() { sealRequest() })
	few("seal a reply", 2+2, func() { sealReply() })
	fn, caller := w.opener(t, w.fn.Decrypter(), true), w.opener(t, w.caller.Decrypter(), true)
	few("seal and open a request", 2+5, func() {
		r.Reset(sealRequest())
		read(fn.Open(&r, want))
	})
	few("seal and open a reply", 2+6+4, func() {
		r.Reset(sealReply())
		p, err := caller.ExpectReply(unseal.ExpectReply{ID: id, Link: link, Name: w.name, Context: w.revision, Sender: w.fn.SigningKey()})
		if err != nil {
			t.Fatal(err)
		}
		read(p.Open(&r))
	})
}
