// Package nbio makes a stream connection's reads and writes cost one system
// call each and nothing else.
//
// Go's own connections announce every system call to the scheduler, in case it
// blocks. On a process that sleeps between two messages, as every daemon on the
// path of an invocation does, the announcement wakes the runtime's monitor
// thread, which then looks at the process every 20 µs until all is quiet again:
// more wake-ups, and more processor time, than the message itself. A call on a
// socket with MSG_DONTWAIT cannot block, so there is nothing to announce.
//
// A Conn promises what the connection below it does: deadlines, Close, half a
// close and errors are that one's. Waiting is the runtime poller's, as before;
// a goroutine that waits costs no thread. One read and one write may be under
// way at once; more of a kind wait for each other.
//
// What it does not promise: speed for bulk. One call moves at most 256 KiB, so
// that no thread is away from the scheduler for longer than such a copy takes.
package nbio

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// maxCall bounds the bytes of one system call: the thread cannot be told to
// stop, for a garbage collection, while it copies.
const maxCall = 256 << 10

// Conn is a connection over a stream socket.
type Conn struct {
	net.Conn
	raw syscall.RawConn
	in  half
	out half

	inBy, outBy deadline
	closed      atomic.Bool

	look   func(fd uintptr) // for Silent; in.mu guards it and silent
	silent bool
}

// half is one direction. Its call is made once, so that none is allocated per
// read or write.
type half struct {
	mu    sync.Mutex
	call  func(fd uintptr) bool // false: wait until the socket is ready
	buf   []byte
	n     int
	errno syscall.Errno
}

var (
	_ net.Conn     = (*Conn)(nil)
	_ syscall.Conn = (*Conn)(nil)
)

// Wrap returns c with direct system calls if it is a TCP or unix stream
// connection of package net, and c itself otherwise.
func Wrap(c net.Conn) net.Conn {
	var sc syscall.Conn
	switch t := c.(type) {
	case *net.TCPConn:
		sc = t
	case *net.UnixConn:
		if t.LocalAddr().Network() != "unix" { // packets have borders
			return c
		}
		if u, err := adopt(t); err == nil {
			return u
		}
		sc = t
	default:
		return c
	}
	raw, err := sc.SyscallConn()
	if err != nil { // closed already: it will say so itself
		return c
	}
	w := &Conn{Conn: c, raw: raw}
	w.in.call, w.out.call, w.look = w.in.receive, w.out.send, w.peek
	return w
}

// SyscallConn implements syscall.Conn.
func (c *Conn) SyscallConn() (syscall.RawConn, error) { return c.raw, nil }

// NetConn is the connection below, for who needs a method of its type.
func (c *Conn) NetConn() net.Conn { return c.Conn }

// CloseWrite says that nothing more will be sent.
func (c *Conn) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	h := &c.in
	h.mu.Lock()
	defer h.mu.Unlock()
	h.buf, h.n, h.errno = p, 0, 0
	err := c.raw.Read(h.call)
	for err != nil && c.inBy.early(err, c.Conn.SetReadDeadline) {
		err = c.raw.Read(h.call)
	}
	n, errno := h.n, h.errno
	h.buf = nil
	switch {
	case err != nil: // closed, or the deadline has passed
		return 0, c.failed("read", err)
	case errno != 0:
		return 0, c.failed("read", os.NewSyscallError("recvfrom", errno))
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	h := &c.out
	h.mu.Lock()
	defer h.mu.Unlock()
	h.buf, h.n, h.errno = p, 0, 0
	err := c.raw.Write(h.call)
	for err != nil && c.outBy.early(err, c.Conn.SetWriteDeadline) {
		err = c.raw.Write(h.call)
	}
	n, errno := h.n, h.errno
	h.buf = nil
	switch {
	case err != nil:
		return n, c.failed("write", err)
	case errno != 0:
		return n, c.failed("write", os.NewSyscallError("sendto", errno))
	}
	return n, nil
}

// Close implements net.Conn.
func (c *Conn) Close() error {
	c.closed.Store(true)
	return c.Conn.Close()
}

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error {
	if c.closed.Load() {
		return c.failed("set", net.ErrClosed)
	}
	return c.inBy.set(t, c.Conn.SetReadDeadline)
}

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	if c.closed.Load() {
		return c.failed("set", net.ErrClosed)
	}
	return c.outBy.set(t, c.Conn.SetWriteDeadline)
}

// failed gives an error the form that package net's have: with the operation
// and the addresses, and the cause for errors.Is.
func (c *Conn) failed(op string, err error) error {
	var oe *net.OpError
	if errors.As(err, &oe) {
		err = oe.Err
	}
	a := c.LocalAddr()
	network := ""
	if a != nil {
		network = a.Network()
	}
	return &net.OpError{Op: op, Net: network, Source: a, Addr: c.RemoteAddr(), Err: err}
}

// receive is one attempt to read: false means that there is nothing yet.
func (h *half) receive(fd uintptr) bool {
	p := h.buf[:min(len(h.buf), maxCall)]
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)),
			syscall.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			h.n = int(n)
			return true
		case syscall.EAGAIN:
			return false
		case syscall.EINTR:
			continue
		}
		h.errno = errno
		return true
	}
}

// send writes what the socket takes of the buffer: false means not all yet.
func (h *half) send(fd uintptr) bool {
	for h.n < len(h.buf) {
		p := h.buf[h.n:min(len(h.buf), h.n+maxCall)]
		n, _, errno := syscall.RawSyscall6(syscall.SYS_SENDTO, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)),
			syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL, 0, 0)
		switch errno {
		case 0:
			h.n += int(n)
		case syscall.EAGAIN:
			return false
		case syscall.EINTR:
		default:
			h.errno = errno
			return true
		}
	}
	return true
}

// Silent reports whether c is open and nothing waits to be read from it, without
// waiting: so an idle connection has to be that is to carry a request. A
// connection that is not one of Wrap's counts as silent.
func Silent(c net.Conn) bool {
	switch w := c.(type) {
	case *Conn:
		w.in.mu.Lock()
		defer w.in.mu.Unlock()
		w.silent = false
		return w.raw.Control(w.look) == nil && w.silent
	case *Unix:
		w.in.mu.Lock()
		defer w.in.mu.Unlock()
		w.silent = false
		return w.raw.Control(w.look) == nil && w.silent
	}
	return true
}

func (c *Conn) peek(fd uintptr) { c.silent = silent(fd) }

// Listener accepts connections that Wrap has wrapped.
type Listener struct{ net.Listener }

// Accept implements net.Listener.
func (l Listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return Wrap(c), nil
}
