package nbio

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// pair makes both ends of a connection, the first one accepted by a Listener
// and the second one wrapped.
func pair(t testing.TB, network string) (wrapped, wrapped) {
	t.Helper()
	addr := "127.0.0.1:0"
	if network != "tcp" {
		addr = filepath.Join(t.TempDir(), "s")
	}
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	got := make(chan net.Conn, 1)
	go func() {
		c, err := Listener{ln}.Accept()
		if err != nil {
			t.Error(err)
		}
		got <- c
	}()
	c, err := net.Dial(network, ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a, ok := (<-got).(wrapped)
	b, ok2 := Wrap(c).(wrapped)
	if !ok || !ok2 {
		t.Fatalf("%s connections are not wrapped", network)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func networks(t *testing.T, f func(t *testing.T, a, b wrapped)) {
	for _, n := range []string{"tcp", "unix"} {
		t.Run(n, func(t *testing.T) { a, b := pair(t, n); f(t, a, b) })
	}
}

func TestBytesPassUnchangedBothWaysAtOnce(t *testing.T) {
	networks(t, func(t *testing.T, a, b wrapped) {
		want := make([]byte, 5<<20+17) // more than any socket's buffer, and than one call
		rand.Read(want)
		var wg sync.WaitGroup
		for _, p := range [][2]wrapped{{a, b}, {b, a}} {
			wg.Add(2)
			go func() {
				defer wg.Done()
				if n, err := p[0].Write(want); n != len(want) || err != nil {
					t.Errorf("wrote %d of %d: %v", n, len(want), err)
				}
			}()
			go func() {
				defer wg.Done()
				got := make([]byte, len(want))
				if _, err := io.ReadFull(p[1], got); err != nil || !bytes.Equal(got, want) {
					t.Errorf("read: %v, equal %t", err, bytes.Equal(got, want))
				}
			}()
		}
		wg.Wait()
	})
}

func TestEndOfThePeersSendingIsEOF(t *testing.T) {
	networks(t, func(t *testing.T, a, b wrapped) {
		if _, err := a.Write([]byte("last")); err != nil {
			t.Fatal(err)
		}
		if err := a.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(b); string(got) != "last" || err != nil {
			t.Fatalf("%q, %v", got, err)
		}
		if n, err := b.Write([]byte("still")); n != 5 || err != nil { // the other half is open
			t.Fatalf("%d, %v", n, err)
		}
	})
}

func TestDeadlinesEndBothHalves(t *testing.T) {
	networks(t, func(t *testing.T, a, _ wrapped) {
		if err := a.SetDeadline(time.Now().Add(30 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		_, rerr := a.Read(make([]byte, 1))
		_, werr := a.Write(make([]byte, 64<<20))
		for _, err := range []error{rerr, werr} {
			var ne net.Error
			if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &ne) || !ne.Timeout() {
				t.Errorf("%v is no timeout", err)
			}
		}
	})
}

func TestDeadlineSetLaterEndsAReadUnderWay(t *testing.T) {
	networks(t, func(t *testing.T, a, _ wrapped) {
		done := make(chan error, 1)
		go func() { _, err := a.Read(make([]byte, 1)); done <- err }()
		for {
			if err := a.SetReadDeadline(time.Unix(1, 0)); err != nil {
				t.Fatal(err)
			}
			select {
			case err := <-done:
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Fatal(err)
				}
				return
			case <-time.After(20 * time.Second):
				t.Fatal("the read goes on")
			}
		}
	})
}

func TestCloseEndsAReadUnderWay(t *testing.T) {
	networks(t, func(t *testing.T, a, _ wrapped) {
		done := make(chan error, 1)
		go func() { _, err := a.Read(make([]byte, 1)); done <- err }()
		a.Close()
		select {
		case err := <-done:
			if !errors.Is(err, net.ErrClosed) {
				t.Fatal(err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("the read goes on")
		}
		if Silent(a) {
			t.Error("a closed connection counts as usable")
		}
	})
}

func TestErrorsOfThePeerKeepTheirCause(t *testing.T) {
	networks(t, func(t *testing.T, a, b wrapped) {
		b.Close()
		deadline := time.Now().Add(20 * time.Second)
		for {
			_, err := a.Write([]byte("x"))
			var oe *net.OpError
			switch {
			case errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET):
				if !errors.As(err, &oe) || oe.Op != "write" {
					t.Fatalf("%#v names no operation", err)
				}
				return
			case err != nil:
				t.Fatal(err)
			case time.Now().After(deadline):
				t.Fatal("writing to nobody never fails")
			}
		}
	})
}

func TestSilentTellsIdleConnectionsFromOthers(t *testing.T) {
	networks(t, func(t *testing.T, a, b wrapped) {
		if !Silent(a) {
			t.Fatal("an idle connection is not silent")
		}
		if _, err := b.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() bool { return !Silent(a) })
		if n, err := a.Read(make([]byte, 4)); n != 1 || err != nil {
			t.Fatalf("looking took the byte: %d, %v", n, err)
		}
		if !Silent(a) {
			t.Fatal("a drained connection is not silent")
		}
		b.Close()
		eventually(t, func() bool { return !Silent(a) })
	})
}

func eventually(t *testing.T, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not in time")
		}
	}
}

func TestOnlyStreamSocketsAreWrapped(t *testing.T) {
	p, q := net.Pipe()
	defer p.Close()
	defer q.Close()
	if Wrap(p) != p || !Silent(p) {
		t.Error("a pipe was taken for a socket")
	}
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unixpacket", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("unixpacket", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if Wrap(c) != c {
		t.Error("packets lost their borders")
	}
}

func TestExchangesAllocateNothing(t *testing.T) {
	a, b := pair(t, "unix")
	buf := make([]byte, 512)
	if n := testing.AllocsPerRun(100, func() {
		if !Silent(b) {
			t.Fatal("not silent")
		}
		if _, err := a.Write(buf); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Read(buf); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%.1f allocations per exchange", n)
	}
}

// BenchmarkPingPong is one message there and back, between goroutines.
func BenchmarkPingPong(b *testing.B) {
	for _, wrapped := range []bool{false, true} {
		name := "net"
		if wrapped {
			name = "nbio"
		}
		b.Run(name, func(b *testing.B) {
			near, far := plainPair(b)
			if wrapped {
				near, far = Wrap(near), Wrap(far)
			}
			go io.Copy(struct{ io.Writer }{far}, struct{ io.Reader }{far})
			buf := make([]byte, 1024)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := near.Write(buf); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(near, buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

type wrapped interface {
	net.Conn
	CloseWrite() error
}

func plainPair(t testing.TB) (net.Conn, net.Conn) {
	t.Helper()
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err := net.Dial("unix", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// A writer that waits for room is woken each time there is some, also when the
// reader has emptied the socket before the wait begins.
func TestAWriterIsWokenWheneverThereIsRoom(t *testing.T) {
	a, _ := pair(t, "unix")
	u := a.(*Unix)
	if err := u.SetWriteDeadline(time.Now().Add(2 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		if err := u.awaitRoom(); err != nil {
			t.Fatalf("wait %d, on a socket that has room: %v", i+1, err)
		}
	}
}
