package launcher

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// end is the launcher's end of the pair. One goroutine receives; any may send.
type end struct {
	fd   int
	file *os.File // fd's, known to the Go runtime's network poller
	raw  syscall.RawConn
	buf  []byte
	oob  []byte
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
	if err := unix.SetNonblock(SocketFD, true); err != nil {
		return nil, fmt.Errorf("descriptor 3: %w", err)
	}
	file := os.NewFile(SocketFD, "agent")
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("descriptor 3: %w", err)
	}
	return &end{fd: SocketFD, file: file, raw: raw, buf: make([]byte, maxMessage), oob: make([]byte, unix.CmsgSpace(4*maxFiles))}, nil
}

// send writes one packet, and waits for the agent where the socket is full.
func (e *end) send(m message) error {
	b, err := encode(m)
	if err != nil {
		return err
	}
	for {
		err := unix.Sendto(e.fd, b, unix.MSG_NOSIGNAL, nil)
		switch err {
		case nil:
			return nil
		case unix.EINTR:
		case unix.EAGAIN:
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(e.fd), Events: unix.POLLOUT}}, -1)
		default:
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

// await is receive, which waits for a packet as goroutines do: where nothing keeps
// the goroutine on its thread, that leaves least to do for the Go scheduler.
func (e *end) await() (m message, fds []int, err error) {
	rerr := e.raw.Read(func(uintptr) bool {
		m, fds, err = e.receive()
		return err != unix.EAGAIN
	})
	if rerr != nil {
		return message{}, nil, rerr
	}
	return m, fds, err
}

// wait waits for a packet or for ended to be readable, and reports the latter. The
// thread itself waits in the kernel: waking a goroutine that is locked to its
// thread from another one takes longer than most of what is asked for.
func (e *end) wait(ended int) bool {
	fds := []unix.PollFd{{Fd: int32(e.fd), Events: unix.POLLIN}, {Fd: int32(ended), Events: unix.POLLIN}}
	if _, err := unix.Poll(fds, -1); err != nil || fds[1].Revents == 0 {
		return false
	}
	var count [8]byte
	_, _ = unix.Read(ended, count[:]) // that there was one is enough to know
	return true
}

func (e *end) close() { _ = e.file.Close() }
