package nbio

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// Socket is the socket below a connection and what is wrapped around it (TLS, for
// one), nil where there is none that can be asked.
func Socket(c net.Conn) syscall.RawConn {
	for c != nil {
		if sc, ok := c.(syscall.Conn); ok {
			if raw, err := sc.SyscallConn(); err == nil {
				return raw
			}
			return nil
		}
		w, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		c = w.NetConn()
	}
	return nil
}

// Peer is what a socket tells of its other end without a byte being read or sent.
type Peer struct {
	Done bool // it sends nothing more: a TCP peer that left looks so too, until something is sent to it
	Gone bool // it takes nothing more either
	Room bool // a small write would not wait
}

// Look asks a socket of its peer. What lies there unread changes nothing. An error
// means that the socket is closed here.
func Look(raw syscall.RawConn) (p Peer, err error) {
	cerr := raw.Control(func(fd uintptr) {
		f := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP | unix.POLLOUT}}
		for {
			if _, err = unix.Poll(f, 0); err != unix.EINTR {
				break
			}
		}
		is := func(bits int16) bool { return f[0].Revents&bits != 0 }
		p = Peer{Done: is(unix.POLLRDHUP | unix.POLLHUP | unix.POLLERR), Gone: is(unix.POLLHUP | unix.POLLERR), Room: is(unix.POLLOUT)}
	})
	if cerr != nil {
		err = cerr
	}
	return p, err
}
