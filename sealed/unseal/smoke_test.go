package unseal_test

import (
	"bytes"
	"crypto/rand"
	"io"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

func TestSmoke(t *testing.T) {
	caller, _ := unseal.NewIdentity(rand.Reader)
	fn, _ := unseal.NewIdentity(rand.Reader)
	now := time.Now()
	rev := sealed.Digest{1}
	g, err := sealed.NewGrant(sealed.GrantParams{Role: sealed.RoleRequest, Recipient: fn.DecryptionKey(), Sender: caller.Signer(), ReplyKey: caller.DecryptionKey(), Context: rev, Name: "echo.demo", NotBefore: now, NotAfter: now.Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 1, 1000, 65536, 65536 * 3, 1 << 20, 3 << 20} {
		body := make([]byte, n)
		rand.Read(body)
		var buf bytes.Buffer
		w, err := g.SealRequest(&buf, sealed.MessageParams{Issued: now}, sealed.RequestHead{Method: "POST", Path: "/x", Header: []sealed.Field{{"content-type", "a/b"}}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(w, bytes.NewReader(body)); err != nil {
			t.Fatal(err)
		}
		link := w.Link()
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		ks, _ := unseal.KeysOf(fn.Decrypter())
		rs, _ := sealed.NewReplaySet(sealed.ReplayConfig{})
		c, _ := unseal.NewCache(unseal.DefaultCacheConfig())
		o, _ := unseal.NewOpener(unseal.Config{Keys: ks, Cache: c, Replay: rs})
		m, err := o.Open(&buf, unseal.Expect{Role: sealed.RoleRequest, Name: "echo.demo", Context: rev, Senders: &sealed.Policy{AnyCaller: true}})
		if err != nil {
			t.Fatal(err)
		}
		if m.Link() != link {
			t.Fatal("link")
		}
		r, err := m.Body(func() (io.ReadWriteSeeker, error) { return &memSpool{}, nil })
		if err != nil {
			t.Fatal(n, err)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, body) {
			t.Fatal(n, err, len(got))
		}
		h, err := m.RequestHead()
		if err != nil || h.Path != "/x" {
			t.Fatal(err, h)
		}
		m.Close()
	}
}

type memSpool struct {
	b []byte
	p int64
}

func (s *memSpool) Write(p []byte) (int, error) { s.b = append(s.b, p...); return len(p), nil }
func (s *memSpool) Read(p []byte) (int, error) {
	if s.p >= int64(len(s.b)) {
		return 0, io.EOF
	}
	n := copy(p, s.b[s.p:])
	s.p += int64(n)
	return n, nil
}
func (s *memSpool) Seek(o int64, w int) (int64, error) { s.p = o; return o, nil }
