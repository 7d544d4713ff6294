package nbio

import (
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// halfCloser is a connection of either kind.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// A look takes nothing, and tells an end of sending from the end where the socket
// can.
func TestLookTellsHowFarThePeerHasGone(t *testing.T) {
	for network, addr := range map[string]string{"tcp": "127.0.0.1:0", "unix": filepath.Join(t.TempDir(), "s")} {
		ln, err := net.Listen(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		far, err := net.Dial(network, ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer far.Close()
		c, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		near := Wrap(c)
		defer near.Close()
		raw := Socket(struct{ wrapping }{wrapping{near}})
		if raw == nil {
			t.Fatalf("%s: no socket", network)
		}
		is := func(what string, want Peer) {
			t.Helper()
			var got Peer
			for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
				if got, err = Look(raw); err != nil {
					t.Fatal(err)
				}
				if got == want {
					return
				}
			}
			t.Errorf("%s, %s: %+v, want %+v", network, what, got, want)
		}
		is("there", Peer{Room: true})
		if _, err := io.WriteString(far, "early"); err != nil {
			t.Fatal(err)
		}
		is("it sent something", Peer{Room: true})
		if err := far.(halfCloser).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		is("it sends no more", Peer{Done: true, Room: true})
		if b, err := io.ReadAll(near); string(b) != "early" || err != nil {
			t.Errorf("%s: %q, %v", network, b, err)
		}
		far.Close()
		if network == "tcp" { // only an answer tells
			if _, err := io.WriteString(near, "?"); err != nil {
				t.Fatal(err)
			}
		}
		is("it is gone", Peer{Done: true, Gone: true, Room: true})
		near.Close()
		if _, err := Look(raw); err == nil {
			t.Errorf("%s: a closed socket tells something", network)
		}
	}
}

// wrapping is what hides a connection, as TLS does.
type wrapping struct{ net.Conn }

func (w wrapping) NetConn() net.Conn { return w.Conn }

func TestNoSocketIsBelowAPipe(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if Socket(a) != nil || Socket(nil) != nil {
		t.Error("a socket below none")
	}
}
