package nbio

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A unix socket wakes those that poll it for room to write whenever its peer has
// read something, even if it was never full. The runtime polls every socket for
// both directions, so a process that sent a message and waits for the answer is
// woken once more for nothing, at each message. A Unix therefore stays out of
// the runtime's poll set. In its place stands an epoll instance of its own that
// watches the socket for input alone, and that the runtime polls like any file.

// Unix is a connection over a unix stream socket.
type Unix struct {
	fd            int // closed after input
	input         *os.File
	raw           syscall.RawConn // of input; its calls hold off Close
	local, remote net.Addr

	in   half
	inBy deadline
	out  half
	wait bool // out's last call: the socket is full; guarded by out.mu

	look   func(fd uintptr) // for Silent; in.mu guards it and silent
	silent bool

	mu     sync.Mutex
	until  time.Time // the write deadline
	room   *os.File  // an epoll instance for room to write, made when that first lacks
	closed bool
}

var (
	_ net.Conn     = (*Unix)(nil)
	_ syscall.Conn = (*Unix)(nil)
)

// watch makes an epoll instance that watches fd, for the runtime to wait on.
func watch(fd int, events uint32) (_ *os.File, err error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err = unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events}); err == nil {
		err = unix.SetNonblock(ep, true) // what tells package os to poll it
	}
	if err != nil {
		return nil, errors.Join(os.NewSyscallError("epoll_ctl", err), unix.Close(ep))
	}
	return os.NewFile(uintptr(ep), "epoll"), nil
}

// adopt takes the socket over from c, which it closes.
func adopt(c *net.UnixConn) (_ *Unix, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	u := &Unix{fd: -1, local: c.LocalAddr(), remote: c.RemoteAddr()}
	if cerr := raw.Control(func(fd uintptr) { u.fd, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); cerr != nil {
		return nil, cerr
	}
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	if u.input, err = watch(u.fd, unix.EPOLLIN|unix.EPOLLRDHUP); err == nil {
		u.raw, err = u.input.SyscallConn()
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(u.fd))
	}
	u.in.call, u.out.call, u.look = u.receive, u.send, u.peek
	_ = c.Close() // of its number for the socket, which lives on under ours
	return u, nil
}

// Read implements net.Conn.
func (u *Unix) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	h := &u.in
	h.mu.Lock()
	defer h.mu.Unlock()
	h.buf, h.n, h.errno = p, 0, 0
	err := u.raw.Read(h.call)
	for err != nil && u.inBy.early(err, u.input.SetReadDeadline) {
		err = u.raw.Read(h.call)
	}
	n, errno := h.n, h.errno
	h.buf = nil
	switch {
	case err != nil:
		return 0, u.failed("read", err)
	case errno != 0:
		return 0, u.failed("read", os.NewSyscallError("recvfrom", errno))
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// Write implements net.Conn.
func (u *Unix) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	h := &u.out
	h.mu.Lock()
	defer h.mu.Unlock()
	h.buf, h.n, h.errno = p, 0, 0
	for {
		u.wait = false
		err := u.raw.Write(h.call)
		if err == nil && h.errno != 0 {
			err = os.NewSyscallError("sendto", h.errno)
		}
		if err == nil && u.wait {
			if err = u.awaitRoom(); err == nil {
				continue
			}
		}
		h.buf = nil
		if err != nil {
			return h.n, u.failed("write", err)
		}
		return h.n, nil
	}
}

// awaitRoom returns when the socket may take more.
func (u *Unix) awaitRoom() error {
	u.mu.Lock()
	if u.closed {
		u.mu.Unlock()
		return net.ErrClosed
	}
	if u.room == nil {
		// One shot, armed when somebody waits: else this were the wake-up at
		// each message again.
		f, err := watch(u.fd, unix.EPOLLONESHOT)
		if err != nil {
			u.mu.Unlock()
			return err
		}
		u.room = f
		if err := f.SetReadDeadline(u.until); err != nil {
			u.mu.Unlock()
			return err
		}
	}
	room := u.room
	u.mu.Unlock()
	raw, err := room.SyscallConn()
	if err != nil {
		return err
	}
	armed := false
	rerr := raw.Read(func(ep uintptr) bool {
		// The event has to be taken: one that stays makes the kernel tell of no
		// other when it is armed again, for a socket that has room by then.
		taken := taken(int(ep))
		if armed {
			return taken
		}
		armed = true
		err = unix.EpollCtl(int(ep), unix.EPOLL_CTL_MOD, u.fd, &unix.EpollEvent{Events: unix.EPOLLOUT | unix.EPOLLONESHOT})
		return err != nil
	})
	if rerr != nil { // as it is: it may be a time-out
		return rerr
	}
	return os.NewSyscallError("epoll_ctl", err)
}

// taken takes what an epoll instance has to tell, without waiting, and reports
// whether there was anything.
func taken(ep int) bool {
	var events [1]unix.EpollEvent
	for {
		n, err := unix.EpollWait(ep, events[:], 0)
		if err != unix.EINTR {
			return n > 0 || err != nil // a broken instance shows at the next call on it
		}
	}
}

// Close implements net.Conn.
func (u *Unix) Close() error {
	u.mu.Lock()
	if u.closed {
		u.mu.Unlock()
		return u.failed("close", net.ErrClosed)
	}
	u.closed = true
	room := u.room
	u.mu.Unlock()
	// Closing a file waits for the calls that hold it, and refuses later ones:
	// only then may the number of the socket become another file's.
	var err error
	if room != nil {
		err = room.Close()
	}
	return errors.Join(err, u.input.Close(), unix.Close(u.fd))
}

// CloseWrite says that nothing more will be sent.
func (u *Unix) CloseWrite() error {
	var err error
	if cerr := u.raw.Control(func(uintptr) { err = unix.Shutdown(u.fd, unix.SHUT_WR) }); cerr != nil {
		return u.failed("close", cerr)
	}
	return os.NewSyscallError("shutdown", err)
}

// LocalAddr implements net.Conn.
func (u *Unix) LocalAddr() net.Addr { return u.local }

// RemoteAddr implements net.Conn.
func (u *Unix) RemoteAddr() net.Addr { return u.remote }

// SetDeadline implements net.Conn.
func (u *Unix) SetDeadline(t time.Time) error {
	return errors.Join(u.SetReadDeadline(t), u.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn.
func (u *Unix) SetReadDeadline(t time.Time) error {
	u.mu.Lock()
	closed := u.closed
	u.mu.Unlock()
	if closed {
		return u.failed("set", net.ErrClosed)
	}
	if err := u.inBy.set(t, u.input.SetReadDeadline); err != nil {
		return u.failed("set", err)
	}
	return nil
}

// SetWriteDeadline implements net.Conn.
func (u *Unix) SetWriteDeadline(t time.Time) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return &net.OpError{Op: "set", Net: "unix", Source: u.local, Addr: u.remote, Err: net.ErrClosed}
	}
	u.until = t
	if u.room == nil {
		return nil
	}
	return u.room.SetReadDeadline(t) // mu is held: no u.failed
}

// failed gives an error the form that package net's have.
func (u *Unix) failed(op string, err error) error {
	var se *os.SyscallError
	if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.As(err, &se) {
		u.mu.Lock()
		if u.closed { // the file below says so in words of its own
			err = net.ErrClosed
		}
		u.mu.Unlock()
	}
	return &net.OpError{Op: op, Net: "unix", Source: u.local, Addr: u.remote, Err: err}
}

// receive is one attempt to read. Its argument is the epoll instance's number.
func (u *Unix) receive(uintptr) bool { return u.in.receive(uintptr(u.fd)) }

// send writes what the socket takes, and notes whether it could take no more.
func (u *Unix) send(uintptr) bool {
	h := &u.out
	if !h.send(uintptr(u.fd)) {
		u.wait = true
		return true
	}
	return true
}

func (u *Unix) peek(uintptr) { u.silent = silent(uintptr(u.fd)) }

func silent(fd uintptr) bool {
	var b [1]byte
	for {
		_, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&b[0])), 1,
			syscall.MSG_PEEK|syscall.MSG_DONTWAIT, 0, 0)
		if errno != syscall.EINTR {
			return errno == syscall.EAGAIN // neither an end nor bytes nobody asked for
		}
	}
}

// SyscallConn implements syscall.Conn. Only Control may be called.
func (u *Unix) SyscallConn() (syscall.RawConn, error) { return control{u}, nil }

type control struct{ u *Unix }

func (c control) Control(f func(fd uintptr)) error {
	return c.u.raw.Control(func(uintptr) { f(uintptr(c.u.fd)) })
}
func (control) Read(func(uintptr) bool) error {
	return fmt.Errorf("nbio: raw read: %w", errors.ErrUnsupported)
}
func (control) Write(func(uintptr) bool) error {
	return fmt.Errorf("nbio: raw write: %w", errors.ErrUnsupported)
}
