package relay

import (
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/nbio"
)

// A caller that leaves while its function is silent is to cost the function nothing
// more. Its connection is looked at now and then, and never read: what comes on it
// meanwhile is the server's, the next request perhaps.
//
// On TCP one that left looks like one that has only closed its sending half and
// waits for its reply, until something is sent to it: then the first one's machine
// answers with a reset. So what is sent is what HTTP/1.1 lets a server send without
// saying anything: before a reply an interim response (RFC 9110, 15.2), between two
// chunks a zero before the next one's size (RFC 9112, 7.1). Who still reads skips
// it, and gets the reply.
const (
	lookEvery = 400 * time.Millisecond
	lookAfter = 50 * time.Millisecond // a question: an answer takes one round trip
	askEvery  = 15 * time.Second
	askMost   = 6 // in one pause: readers bound the digits of a chunk's size

	interim     = "HTTP/1.1 100 Continue\r\n\r\n"
	leadingZero = "0"
)

// phase is where an exchange stands, as far as its caller's connection goes.
type phase uint8

const (
	working phase = iota // nothing of the reply is there
	writing              // the server may be writing
	pausing              // all that there was is out, up to the border of a chunk
)

// watch looks whether a caller is still there.
type watch struct {
	conn  net.Conn // as the server writes to it
	raw   syscall.RawConn
	unix  bool // the socket tells who has left from who only sends no more
	timer *time.Timer

	mu      sync.Mutex
	ours    bool // it never closes its sending half alone
	phase   phase
	may     bool // an interim response can be sent while working
	asked   int  // questions in this phase
	askedAt time.Time
	gone    bool
	ended   bool
	left    func() // called once the caller is gone
}

// watchCaller begins to look after ctx's caller.
func (b *Body) watchCaller(ctx *fasthttp.RequestCtx) {
	w := &b.caller
	if w.raw = nbio.Socket(ctx.Conn()); w.raw == nil {
		return
	}
	w.conn = ctx.Conn()
	a := w.conn.LocalAddr()
	w.unix = a != nil && a.Network() == "unix"
	w.may = ctx.Request.Header.IsHTTP11()
	w.mu.Lock()
	w.timer = time.AfterFunc(lookEvery, b.look)
	w.mu.Unlock()
}

// FromOurs says that the body's request came from another process of ours, which
// never closes its sending half alone: if that is closed, it is gone.
func (b *Body) FromOurs() {
	b.caller.mu.Lock()
	b.caller.ours = true
	b.caller.mu.Unlock()
}

// WhenGone has f called, once, if the caller leaves before Release, or has already
// left. It replaces what was to be called before; nil is nothing.
func (b *Body) WhenGone(f func()) {
	w := &b.caller
	w.mu.Lock()
	gone := w.gone
	if w.left = f; gone || w.ended {
		w.left = nil
	}
	w.mu.Unlock()
	if gone && f != nil {
		f()
	}
}

// Gone reports whether the caller left before Release.
func (b *Body) Gone() bool {
	b.caller.mu.Lock()
	defer b.caller.mu.Unlock()
	return b.caller.gone
}

// Because is err, and where the caller left it says that this is why.
func (b *Body) Because(err error) error {
	if err == nil || !b.Gone() || api.CodeOf(err) == api.CodeCallerGone {
		return err
	}
	return api.Wrap(api.CodeCallerGone, err, "the caller left")
}

// look is the timer's.
func (b *Body) look() {
	w := &b.caller
	w.mu.Lock()
	if w.ended {
		w.mu.Unlock()
		return
	}
	p, err := nbio.Look(w.raw)
	var left func()
	switch {
	case err != nil: // closed here
	case p.Gone || p.Done && w.ours:
		w.gone = true
		left, w.left = w.left, nil
	case p.Done && !w.unix && p.Room && w.ask(b):
		w.timer.Reset(lookAfter)
	default:
		w.timer.Reset(lookEvery)
	}
	w.mu.Unlock()
	if left != nil {
		left()
	}
}

// ask sends what only a caller that still reads takes without a reset, where that
// can be sent now. w.mu is held.
func (w *watch) ask(b *Body) bool {
	question := ""
	switch {
	case w.phase == pausing:
		question = leadingZero
	case w.phase == working && w.may && (b.rest == nil || b.rest.ended.Load()):
		question = interim
	}
	if question == "" || w.asked >= askMost || time.Since(w.askedAt) < askEvery {
		return false
	}
	w.asked++
	w.askedAt = time.Now()
	_, _ = w.conn.Write([]byte(question)) // there is room, so it does not wait; the socket tells what came of it
	return true
}

// enter notes where the exchange stands now.
func (b *Body) enter(p phase) {
	w := &b.caller
	w.mu.Lock()
	if w.phase != p {
		w.phase, w.asked, w.askedAt = p, 0, time.Time{}
	}
	w.mu.Unlock()
}

// unwatch ends the looking.
func (b *Body) unwatch() {
	w := &b.caller
	w.mu.Lock()
	w.ended, w.left = true, nil
	if w.timer != nil {
		w.timer.Stop()
	}
	w.mu.Unlock()
}
