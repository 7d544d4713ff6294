package coordinator

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// leave sends an invocation on a connection of its own, and closes that when wait
// returns.
func (w *world) leave(message []byte, wait func()) {
	w.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
	if err != nil {
		w.t.Fatal(err)
	}
	fmt.Fprintf(conn, "POST /function/f.ns HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", api.ContentTypeSealed, len(message))
	if _, err := conn.Write(message); err != nil {
		w.t.Fatal(err)
	}
	wait()
	conn.Close()
}

func TestCallerThatLeavesWhileItWaitsGivesUpItsPlace(t *testing.T) {
	w := newWorld(t, 1, func(w *world) { w.cfg.QueueTimeout = 20 * time.Second })
	w.mesh.set("node-1", func(v *api.NodeView) { v.Load.Free = api.Resources{} })
	w.leave(w.message(10, time.Minute), func() {
		w.eventually("it waits", func() bool { return w.c.queue.count.Load() == 1 })
	})
	w.eventually("its place is free", func() bool { return w.c.queue.count.Load() == 0 })
	if n := w.offered(); n != 0 {
		t.Errorf("offered %d times", n)
	}
	w.rest()
}

// A node whose caller left is not one that broke, and nobody else is asked.
func TestCallerThatLeavesASilentNodeEndsItsInvocation(t *testing.T) {
	for _, size := range sizes {
		w := newWorld(t, 2)
		begun, gone := make(chan struct{}), make(chan struct{})
		for _, n := range w.nodes {
			n.on(&n.invoke, func(_ http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				close(begun)
				<-r.Context().Done()
				close(gone)
			})
		}
		w.leave(w.message(size, time.Minute), func() { <-begun })
		select {
		case <-gone:
		case <-time.After(30 * time.Second):
			t.Errorf("%d bytes: the node works on", size)
		}
		w.rest()
		if n := w.offered(); n != 1 {
			t.Errorf("%d bytes: offered %d times", size, n)
		}
	}
}
