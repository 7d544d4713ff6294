package nbio

import (
	"bytes"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// A closed connection's file descriptor is soon another connection's. Whatever
// was under way on the first must not reach the second.
func TestCloseEndsEverythingBeforeTheNumberIsReused(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			addr := "127.0.0.1:0"
			if network == "unix" {
				addr = filepath.Join(t.TempDir(), "s")
			}
			ln, err := net.Listen(network, addr)
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			connect := func() (net.Conn, net.Conn) {
				c, err := net.Dial(network, ln.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				d, err := ln.Accept()
				if err != nil {
					t.Fatal(err)
				}
				return Wrap(c), Wrap(d)
			}
			for i := range 150 {
				a, b := connect()
				mine := bytes.Repeat([]byte{byte(i)}, 1<<20) // fills the socket: the writer waits for room
				var wg sync.WaitGroup
				wg.Go(func() { _, _ = a.Write(mine) })
				wg.Go(func() { _, _ = a.Read(make([]byte, 100)) })
				wg.Go(func() {
					buf := make([]byte, 64<<10)
					for {
						n, err := b.Read(buf)
						if bytes.Count(buf[:n], []byte{byte(i)}) != n {
							t.Error("another connection's bytes")
						}
						if err != nil || i%2 == 0 { // half of the readers leave the writer waiting
							return
						}
					}
				})
				if i%3 == 0 {
					time.Sleep(time.Duration(i) * time.Microsecond) // any moment will do
				}
				wg.Go(func() { a.Close() })
				a.Close()
				b.Close()
				wg.Wait()
			}
		})
	}
}
