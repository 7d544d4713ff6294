package coordinator

import (
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/gate"
	"github.com/faasd-sec/faasd-sec/relay"
)

const (
	// smallChange is not counted: the bound on connections covers it, and most
	// invocations pass without a look at the budget.
	smallChange = 4 << 10
	// streamed is what a body takes that flows through.
	streamed = 64 << 10
)

// budget bounds the bytes of request bodies that are held for senders of whom
// nothing is proved, in all and for one address. A body counts from its header
// to its invocation's reply, by what the header announces: that it comes slowly
// makes it no cheaper. A value of 0 or less bounds nothing.
type budget struct {
	total, each int64

	mu   sync.Mutex
	held int64
	by   map[netip.Addr]int64 // above zero
}

func newBudget(total, each int64) *budget {
	return &budget{total: total, each: each, by: map[netip.Addr]int64{}}
}

// take reserves n bytes for an address, or refuses.
func (b *budget) take(from netip.Addr, n int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	// The address first: one that holds its share is told so, however full the
	// gateway is.
	if b.each > 0 && b.by[from]+n > b.each {
		e := api.Errorf(api.CodeBusy, "the gateway holds %d bytes of requests from this address, of %d at most", b.by[from], b.each)
		e.Remedy = "send fewer large requests at once, or have the operator raise -held-bytes-each"
		return e
	}
	if b.total > 0 && b.held+n > b.total {
		e := api.Errorf(api.CodeBusy, "the gateway holds %d bytes of requests, of %d at most", b.held, b.total)
		e.Remedy = "retry later, or have the operator raise -held-bytes"
		return e
	}
	b.held += n
	b.by[from] += n
	return nil
}

// give returns what take reserved.
func (b *budget) give(from netip.Addr, n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held -= n
	if b.by[from] -= n; b.by[from] == 0 {
		delete(b.by, from)
	}
}

func (b *budget) inUse() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.held
}

// check refuses a configuration by which no invocation could come through.
func (b *budget) check() error {
	for field, n := range map[string]int64{"held-bytes": b.total, "held-bytes-each": b.each} {
		if n > 0 && n <= relay.SmallBody {
			return api.Invalid(field, fmt.Sprintf("use more than %d, or -1 for no bound", relay.SmallBody), fmt.Sprintf("%d bytes", n))
		}
	}
	return nil
}

// invokeWithin serves an invocation within the budget.
func (c *Coordinator) invokeWithin(ctx *fasthttp.RequestCtx, name string) {
	n := pledge(ctx.Request.Header.ContentLength())
	if n == 0 {
		c.serveInvoke(ctx, name)
		return
	}
	from := origin(ctx.RemoteAddr())
	if err := c.budget.take(from, n); err != nil {
		gate.CallID(ctx)
		c.met.Refused(api.CodeOf(err))
		c.problem(ctx, gate.Unread(ctx, err))
		return
	}
	// What is left of the exchange after serveInvoke is the reply's: the request
	// has been passed on whole by then, or its stream is counted by its caller's
	// connection alone.
	defer c.budget.give(from, n)
	c.serveInvoke(ctx, name)
}

// pledge is what a body of the announced length takes in memory, negative for
// one of unknown length.
func pledge(length int) int64 {
	switch {
	case length == -2: // fasthttp's word for a request without a body
		return 0
	case length < 0:
		return relay.SmallBody
	case length <= smallChange:
		return 0
	case length > relay.SmallBody:
		return streamed
	}
	return int64(length)
}

// origin is whom an address belongs to: an IPv6 subscriber has a network of 64
// bits to draw addresses from.
func origin(a net.Addr) netip.Addr {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Addr{} // all that come by a socket of this machine
	}
	ip := t.AddrPort().Addr().Unmap().WithZone("")
	if ip.Is6() {
		if p, err := ip.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return ip
}
