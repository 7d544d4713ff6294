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
	lookNever = time.Hour             // whoever is gone stays so
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
	of   *Body
	conn net.Conn // as the server writes to it; nil where nobody is watched
	in   *Callers

	before, after *watch        // in in's list, and
	next          time.Time     // when to look: guarded by in.mu
	pause         time.Duration // of in's timer alone
	raw           syscall.RawConn
	unix          bool // the socket tells who has left from who only sends no more

	mu      sync.Mutex
	ours    bool // it never closes its sending half alone
	phase   phase
	may     bool // an interim response can be sent while working
	asked   int  // questions in this phase
	askedAt time.Time
	gone    bool
	ended   bool
	left    aborter // told once the caller is gone
}

// aborter is an exchange that can be ended from outside.
type aborter interface{ Abort() }

type abortFunc func()

func (f abortFunc) Abort() { f() }

// Watch looks after ctx's caller until Release: when it leaves, an exchange of
// Upstream.Do with this body ends. It is called once, by the handler of ctx, whose
// server must flush each reply before it handles the next request
// (fasthttp.Server.ReduceMemoryUsage, with StreamRequestBody): nothing that is sent
// to find out may go before another reply.
func (b *Body) Watch(ctx *fasthttp.RequestCtx, in *Callers) {
	w := &b.caller
	w.of, w.conn, w.in = b, ctx.Conn(), in
	w.may = ctx.Request.Header.IsHTTP11()
	in.add(w)
}

// WatchOurs is Watch of another process of ours, which never closes its sending half
// alone: if that is closed, it is gone.
func (b *Body) WatchOurs(ctx *fasthttp.RequestCtx, in *Callers) {
	b.caller.ours = true
	b.Watch(ctx, in)
}

// WhenGone has f called, once, if the caller leaves before Release, or has already
// left.
func (b *Body) WhenGone(f func()) { b.whenGone(abortFunc(f)) }

// whenGone is WhenGone, in place of what was to be told before; nil is nothing.
func (b *Body) whenGone(a aborter) {
	w := &b.caller
	w.mu.Lock()
	gone := w.gone
	if w.left = a; gone || w.ended {
		w.left = nil
	}
	w.mu.Unlock()
	if gone && a != nil {
		a.Abort()
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

// look looks once, and says when to look again. It is in's.
func (w *watch) look() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return lookNever
	}
	if w.raw == nil {
		if w.raw = nbio.Socket(w.conn); w.raw == nil {
			return lookNever
		}
		a := w.conn.LocalAddr()
		w.unix = a != nil && a.Network() == "unix"
	}
	p, err := nbio.Look(w.raw)
	switch {
	case err != nil: // closed here
		return lookNever
	case p.Gone || p.Done && w.ours:
		w.gone = true
		if w.left != nil {
			go w.left.Abort() // it may have to wait, to say farewell by TLS
			w.left = nil
		}
		return lookNever
	case p.Done && !w.unix && p.Room && w.ask():
		return lookAfter
	}
	return lookEvery
}

// ask sends what only a caller that still reads takes without a reset, where that
// can be sent now. w.mu is held.
func (w *watch) ask() bool {
	question := ""
	switch {
	case w.phase == pausing:
		question = leadingZero
	case w.phase == working && w.may && (w.of.rest == nil || w.of.rest.ended.Load()):
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

// unwatch ends the looking. Nothing is sent to the caller any more when it returns.
func (b *Body) unwatch() {
	w := &b.caller
	w.mu.Lock()
	ended := w.ended
	w.ended, w.left = true, nil
	w.mu.Unlock()
	if w.in != nil && !ended {
		w.in.remove(w)
	}
}
