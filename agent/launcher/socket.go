package launcher

import (
	"errors"
	"fmt"
	"io"
	"math"

	"golang.org/x/sys/unix"
)

// end is the launcher's end of the pair. It is a plain descriptor, not one of
// the Go runtime's network poller: what waits for it is the thread that does the
// work, and waking another one takes longer than most of that. One goroutine
// receives; any may send.
type end struct {
	fd  int
	buf []byte
	oob []byte
}

// openEnd takes descriptor 3, and marks all that come after it as not for the
// function: the Go runtime closes only what it opened itself.
func openEnd() (*end, error) {
	if err := unix.CloseRange(SocketFD, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, fmt.Errorf("mark descriptors: %w", err)
	}
	switch kind, err := unix.GetsockoptInt(SocketFD, unix.SOL_SOCKET, unix.SO_DOMAIN); {
	case errors.Is(err, unix.EBADF):
		return nil, errors.New("descriptor 3 is not there: only the agent starts a launcher")
	case err != nil:
		return nil, fmt.Errorf("descriptor 3: %w", err)
	case kind != unix.AF_UNIX:
		return nil, errors.New("descriptor 3 is not a unix socket")
	}
	return &end{fd: SocketFD, buf: make([]byte, maxMessage), oob: make([]byte, unix.CmsgSpace(4*maxFiles))}, nil
}

// send writes one packet, and waits for the agent where the socket is full.
func (e *end) send(m message) error {
	b, err := encode(m)
	if err != nil {
		return err
	}
	for {
		err := unix.Sendto(e.fd, b, unix.MSG_NOSIGNAL, nil)
		if err == nil {
			return nil
		}
		if err != unix.EINTR {
			return fmt.Errorf("send %s: %w", m.Op, err)
		}
	}
}

// receive reads one packet, or fails with EAGAIN. The descriptors are the
// caller's to close, also when there is an error.
func (e *end) receive() (message, []int, error) {
	n, oobn, flags, _, err := unix.Recvmsg(e.fd, e.buf, e.oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	switch {
	case err != nil:
		return message{}, nil, err
	case n == 0 && oobn == 0:
		return message{}, nil, io.EOF
	}
	return decode(e.buf[:n], e.oob[:oobn], flags)
}

// wait waits for a packet or for ended to be readable, and reports the latter.
func (e *end) wait(ended int) bool {
	fds := []unix.PollFd{{Fd: int32(e.fd), Events: unix.POLLIN}, {Fd: int32(ended), Events: unix.POLLIN}}
	if _, err := unix.Poll(fds, -1); err != nil || fds[1].Revents == 0 {
		return false
	}
	var count [8]byte
	_, _ = unix.Read(ended, count[:]) // that there was one is enough to know
	return true
}

func (e *end) close() { _ = unix.Close(e.fd) }
