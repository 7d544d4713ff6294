package unseal_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// world is a caller, a function, an owner, and a clock that tests move.
type world struct {
	caller, fn, owner *unseal.Identity
	name              string
	revision          sealed.Digest

	mu   sync.Mutex
	time time.Time
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	w := &world{name: "echo.demo", revision: sealed.Digest{1, 2, 3}, time: time.Unix(1_800_000_000, 0)}
	for _, id := range []**unseal.Identity{&w.caller, &w.fn, &w.owner} {
		var err error
		if *id, err = unseal.NewIdentity(rand.Reader); err != nil {
			tb.Fatal(err)
		}
	}
	return w
}

func (w *world) now() time.Time { w.mu.Lock(); defer w.mu.Unlock(); return w.time }

func (w *world) move(d time.Duration) { w.mu.Lock(); defer w.mu.Unlock(); w.time = w.time.Add(d) }

// grant makes a grant for one hour, or less where change says so.
func (w *world) grant(tb testing.TB, role sealed.Role, change func(*sealed.GrantParams)) *sealed.Grant {
	tb.Helper()
	p := sealed.GrantParams{Role: role, Name: w.name, NotBefore: w.now(), NotAfter: w.now().Add(time.Hour)}
	if role.HasContext() {
		p.Context = w.revision
	}
	switch role {
	case sealed.RoleRequest:
		p.Recipient, p.Sender, p.ReplyKey = w.fn.DecryptionKey(), w.caller.Signer(), w.caller.DecryptionKey()
	case sealed.RoleReply:
		p.Recipient, p.Sender = w.caller.DecryptionKey(), w.fn.Signer()
	case sealed.RoleLog:
		p.Recipient, p.Sender = w.owner.DecryptionKey(), w.fn.Signer()
	default:
		p.Recipient, p.Sender = w.fn.DecryptionKey(), w.owner.Signer()
	}
	if change != nil {
		change(&p)
	}
	g, err := sealed.NewGrant(p)
	if err != nil {
		tb.Fatal(err)
	}
	return g
}

func (w *world) requestGrant(tb testing.TB) *sealed.Grant {
	tb.Helper()
	return w.grant(tb, sealed.RoleRequest, nil)
}

func (w *world) replyGrant(tb testing.TB) *sealed.Grant {
	tb.Helper()
	return w.grant(tb, sealed.RoleReply, nil)
}

func (w *world) opener(tb testing.TB, key crypto.Decrypter, cached bool) *unseal.Opener {
	tb.Helper()
	keys, err := unseal.KeysOf(key)
	if err != nil {
		tb.Fatal(err)
	}
	replay, err := sealed.NewReplaySet(sealed.ReplayConfig{Size: 1 << 22, Clock: w.now})
	if err != nil {
		tb.Fatal(err)
	}
	cfg := unseal.Config{Keys: keys, Replay: replay, Clock: w.now}
	if cached {
		if cfg.Cache, err = unseal.NewCache(unseal.DefaultCacheConfig()); err != nil {
			tb.Fatal(err)
		}
	}
	o, err := unseal.NewOpener(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return o
}

func (w *world) wantRequest() unseal.Expect {
	return unseal.Expect{Role: sealed.RoleRequest, Name: w.name, Context: w.revision, Senders: unseal.Only(w.caller.SigningKey())}
}

func (w *world) want(role sealed.Role) unseal.Expect {
	e := w.wantRequest()
	e.Role = role
	if !role.HasContext() {
		e.Context = sealed.Digest{}
	}
	if role != sealed.RoleRequest {
		e.Senders = unseal.Only(w.owner.SigningKey())
	}
	if role == sealed.RoleLog {
		e.Senders = unseal.Only(w.fn.SigningKey())
	}
	return e
}

// request seals body under g.
func (w *world) request(tb testing.TB, g *sealed.Grant, flags sealed.Flags, body []byte) ([]byte, sealed.MessageHeader, sealed.Link) {
	tb.Helper()
	b, h, link, err := g.AppendRequest(nil, sealed.MessageParams{Issued: w.now(), Flags: flags}, sealed.RequestHead{Method: "POST", Path: "/p"}, body)
	if err != nil {
		tb.Fatal(err)
	}
	return b, h, link
}

// readAll opens a message and reads it to its end in the way its flags allow.
func readAll(o *unseal.Opener, b []byte, want unseal.Expect) ([]byte, error) {
	m, err := o.Open(bytes.NewReader(b), want)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	body, err := m.Body(memSpools)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(body)
}

func wantCode(tb testing.TB, err error, code sealed.Code) {
	tb.Helper()
	if !errors.Is(err, code) {
		tb.Fatalf("refused with %v, want %s", err, code)
	}
}

// memSpool is a spool in memory.
type memSpool struct {
	bytes  []byte
	at     int
	closed bool
}

func memSpools() (io.ReadWriteSeeker, error) { return &memSpool{}, nil }

func (s *memSpool) Write(p []byte) (int, error) { s.bytes = append(s.bytes, p...); return len(p), nil }

func (s *memSpool) Read(p []byte) (int, error) {
	if s.at == len(s.bytes) {
		return 0, io.EOF
	}
	n := copy(p, s.bytes[s.at:])
	s.at += n
	return n, nil
}

func (s *memSpool) Seek(offset int64, whence int) (int64, error) {
	if whence != io.SeekStart {
		return 0, errors.New("only from the start")
	}
	s.at = int(offset)
	return offset, nil
}

func (s *memSpool) Close() error { s.closed = true; return nil }
