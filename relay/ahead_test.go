package relay

import (
	"context"
	"net"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// peer is a server that counts connections, and an Upstream to it that was given
// one ahead.
type peer struct {
	dials atomic.Int64
	conn  net.Conn // what was opened ahead
	given atomic.Bool
	up    *Upstream
	srv   *http.Server
}

func newPeer(t *testing.T, handler http.HandlerFunc) *peer {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "up.sock")
	ln, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{srv: &http.Server{Handler: handler}}
	go p.srv.Serve(ln)
	dial := func(ctx context.Context) (net.Conn, error) {
		p.dials.Add(1)
		var d net.Dialer
		return d.DialContext(ctx, "unix", sock)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if p.conn, err = OpenAhead(ctx, dial, "/"); err != nil {
		t.Fatal(err)
	}
	o := DefaultOptions()
	o.First = func() net.Conn {
		if p.given.Swap(true) {
			return nil
		}
		return p.conn
	}
	p.up = NewUpstream(context.Background(), dial, o)
	t.Cleanup(func() { p.up.Close(); p.srv.Close() })
	return p
}

func (p *peer) post(t *testing.T) {
	t.Helper()
	r, err := p.up.Post(time.Now().Add(20*time.Second), "/", &Body{Head: []byte("hello"), Small: true})
	if err != nil {
		t.Fatal(err)
	}
	if b, err := r.Bytes(100); err != nil || string(b) != "hello" {
		t.Fatalf("%q %v", b, err)
	}
}

func TestConnectionOpenedAheadCarriesTheFirstRequest(t *testing.T) {
	p := newPeer(t, echo)
	p.post(t)
	p.post(t)
	if n := p.dials.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestConnectionOpenedAheadThatBrokeIsReplaced(t *testing.T) {
	for name, spoil := range map[string]func(*peer){
		"closed by us":   func(p *peer) { p.conn.Close() },
		"closed by them": func(p *peer) { p.srv.SetKeepAlivesEnabled(false) }, // closes those that are idle
	} {
		t.Run(name, func(t *testing.T) {
			p := newPeer(t, echo)
			spoil(p)
			eventually(t, "the connection is closed", func() bool {
				one := make([]byte, 1)
				_ = p.conn.SetReadDeadline(time.Now().Add(time.Millisecond))
				_, err := p.conn.Read(one)
				ne, ok := err.(net.Error)
				return err != nil && (!ok || !ne.Timeout())
			})
			p.srv.SetKeepAlivesEnabled(true)
			p.post(t)
			if n := p.dials.Load(); n != 2 {
				t.Errorf("%d connections", n)
			}
		})
	}
}

func TestPeerThatKeepsNoConnectionIsNotNear(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "up.sock")
	ln, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Connection", "close") })}
	go s.Serve(ln)
	defer s.Close()
	dial := func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", sock)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if c, err := OpenAhead(ctx, dial, "/"); err == nil {
		c.Close()
		t.Error("it was taken")
	}
	silent, err := net.Listen("unix", sock+"2")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	short, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if c, err := OpenAhead(short, func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", sock+"2")
	}, "/"); err == nil {
		c.Close()
		t.Error("a peer that says nothing was taken")
	}
}
