package daemon

import (
	"context"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/valyala/fasthttp"
)

// A reply is out before the next request is handled, also one that came in one go
// with it: what a handler sends by itself goes before no other reply.
func TestEachReplyIsOutBeforeTheNextRequestIsHandled(t *testing.T) {
	next := make(chan struct{})
	s := Server(func(ctx *fasthttp.RequestCtx) {
		if string(ctx.Path()) == "/waits" {
			<-next
		}
		ctx.SetBodyString("reply to " + string(ctx.Path()))
	}, slog.New(slog.DiscardHandler))
	ln, err := Listen("127.0.0.1:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, s, ln, 10*time.Second) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, strings.Repeat("GET /a HTTP/1.1\r\nHost: x\r\n\r\n", 2)+"GET /waits HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for _, want := range []int{2, 3} {
		for buf := make([]byte, 4096); strings.Count(got.String(), "reply to") < want; {
			n, err := c.Read(buf)
			got.Write(buf[:n])
			if err != nil {
				t.Fatalf("%v after %q", err, got.String())
			}
		}
		if want == 2 {
			close(next)
		}
	}
}
