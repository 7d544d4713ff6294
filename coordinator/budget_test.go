package coordinator

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/relay"
)

func TestBudgetIsSharedAndComesBack(t *testing.T) {
	b := newBudget(100, 60)
	a, o := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	for _, step := range []struct {
		from netip.Addr
		n    int64
		ok   bool
	}{{a, 60, true}, {a, 1, false}, {o, 40, true}, {o, 1, false}} {
		if err := b.take(step.from, step.n); (err == nil) != step.ok || err != nil && api.CodeOf(err) != api.CodeBusy {
			t.Errorf("%v for %s: %v", step.n, step.from, err)
		}
	}
	b.give(a, 60)
	if err := b.take(o, 20); err != nil {
		t.Error(err)
	}
	b.give(o, 40)
	b.give(o, 20)
	if b.inUse() != 0 || len(b.by) != 0 {
		t.Errorf("%d bytes and %d addresses are left", b.inUse(), len(b.by))
	}
	free := newBudget(-1, -1)
	if err := free.take(a, 1<<40); err != nil {
		t.Errorf("without a bound: %v", err)
	}
}

func TestPledgesFollowTheHeader(t *testing.T) {
	for length, want := range map[int]int64{
		-2: 0, 0: 0, smallChange: 0, smallChange + 1: smallChange + 1,
		relay.SmallBody: relay.SmallBody, relay.SmallBody + 1: streamed, -1: relay.SmallBody,
	} {
		if got := pledge(length); got != want {
			t.Errorf("%d: %d, want %d", length, got, want)
		}
	}
}

func TestAddressesOfOneSubscriberAreOne(t *testing.T) {
	of := func(s string) netip.Addr { return origin(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(s))) }
	if of("[2001:db8::1]:1") != of("[2001:db8::ffff:2]:9") || of("[2001:db8::1]:1") == of("[2001:db8:0:1::1]:1") {
		t.Error("IPv6 addresses are not taken by networks of 64 bits")
	}
	if of("192.0.2.1:1") != of("[::ffff:192.0.2.1]:2") || of("192.0.2.1:1") == of("192.0.2.2:1") {
		t.Error("IPv4 addresses are not taken one by one")
	}
	if origin(&net.UnixAddr{Name: "@"}).IsValid() {
		t.Error("a unix socket has an address")
	}
}

func TestABudgetTooSmallForOneRequestIsRefused(t *testing.T) {
	for _, b := range []*budget{newBudget(relay.SmallBody, -1), newBudget(-1, 1)} {
		if err := b.check(); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%d and %d: %v", b.total, b.each, err)
		}
	}
	if err := newBudget(-1, relay.SmallBody+1).check(); err != nil {
		t.Error(err)
	}
}

// slow announces a body of n bytes and keeps most of it back: the handler runs
// once the first 8 KiB are there.
func (w *world) slow(n int) net.Conn {
	w.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
	if err != nil {
		w.t.Fatal(err)
	}
	_, err = fmt.Fprintf(conn, "POST /function/f.ns HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", api.ContentTypeSealed, n, make([]byte, 9<<10))
	if err != nil {
		w.t.Fatal(err)
	}
	return conn
}

// refused announces a body that is not let in, and reads why: the reply comes before
// the body, and without waiting for it. Who goes on sending may find the connection
// gone before it has read that.
func (w *world) refused(n int) (*http.Response, string) {
	w.t.Helper()
	conn := w.slow(n)
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		w.t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp, string(b)
}

func TestBodiesThatDoNotComeHoldNoMoreThanTheBudget(t *testing.T) {
	const size = 200_000
	w := newWorld(t, 1, func(w *world) { w.cfg.HeldBytes, w.cfg.HeldBytesEach = 3*size, -1 })
	var slow []net.Conn
	for range 3 {
		slow = append(slow, w.slow(size))
	}
	w.eventually("three are held", func() bool { return w.c.budget.inUse() == 3*size })
	if resp, body := w.refused(size / 2); resp.StatusCode != 429 || !strings.Contains(body, string(api.CodeBusy)) || resp.Header.Get("Retry-After") == "" || !resp.Close || w.offered() != 0 {
		t.Errorf("beyond the budget: %+v %s", resp, body)
	}
	if a := w.send(w.message(10, time.Minute)); a.status != 200 {
		t.Errorf("a small one: %d %s", a.status, a.body)
	}
	for _, c := range slow {
		c.Close()
	}
	w.eventually("nothing is held", func() bool { return w.c.budget.inUse() == 0 })
	if a := w.send(w.message(size/2, time.Minute)); a.status != 200 {
		t.Errorf("afterwards: %d %s", a.status, a.body)
	}
	w.rest()
	w.eventually("nothing is held", func() bool { return w.c.budget.inUse() == 0 })
}

func TestOneAddressCannotTakeTheWholeBudget(t *testing.T) {
	const size = 200_000
	w := newWorld(t, 1, func(w *world) { w.cfg.HeldBytes, w.cfg.HeldBytesEach = 100*size, 2*size })
	for range 2 {
		defer w.slow(size).Close()
	}
	w.eventually("two are held", func() bool { return w.c.budget.inUse() == 2*size })
	if resp, body := w.refused(size); resp.StatusCode != 429 || !strings.Contains(body, "this address") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

func BenchmarkBudget(b *testing.B) {
	x, from := newBudget(1<<30, 1<<28), &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1).To4(), Port: 1}
	b.ReportAllocs()
	for b.Loop() {
		o := origin(from)
		if err := x.take(o, 1<<16); err != nil {
			b.Fatal(err)
		}
		x.give(o, 1<<16)
	}
}
