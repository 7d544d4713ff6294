package launcher

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/fxamacker/cbor/v2"
	"golang.org/x/sys/unix"
)

// SocketFD is the descriptor at which the launcher finds its end of the pair.
const SocketFD = 3

// maxMessage bounds one message of the pair. The kernel's default socket buffer
// takes it whole.
const maxMessage = 192 << 10

// maxFiles is the most descriptors that come with one message.
const maxFiles = 4

// The operations.
const (
	opReady  = "ready"  // launcher: privileges are gone, the filter is in place
	opEnter  = "enter"  // agent: become the function's, in its root and under its ids, with a narrower filter
	opStart  = "start"  // agent: fork and exec; files are stdin, stdout, stderr and maybe a listener
	opSignal = "signal" // agent: signal a process group
	opUnpack = "unpack" // agent: unpack the archive that comes through the file
	opExited = "exited" // launcher: a started process ended
	opReply  = "reply"  // launcher: answer to enter, start or unpack
)

// message is one packet, in either direction.
type message struct {
	Op       string   `cbor:"1,keyasint"`
	ID       uint64   `cbor:"2,keyasint,omitempty"`
	Argv     [][]byte `cbor:"3,keyasint,omitempty"`
	Env      [][]byte `cbor:"4,keyasint,omitempty"`
	Dir      string   `cbor:"5,keyasint,omitempty"`
	Listen   bool     `cbor:"6,keyasint,omitempty"`
	Signal   int      `cbor:"7,keyasint,omitempty"`
	DenyInet bool     `cbor:"8,keyasint,omitempty"`
	PID      int      `cbor:"9,keyasint,omitempty"`
	Code     int      `cbor:"10,keyasint,omitempty"`
	Error    string   `cbor:"11,keyasint,omitempty"`
	Errno    int      `cbor:"12,keyasint,omitempty"`
	CodeDir  string   `cbor:"13,keyasint,omitempty"`
	Secrets  string   `cbor:"14,keyasint,omitempty"`
	MaxBytes int64    `cbor:"15,keyasint,omitempty"`
	MaxFiles int64    `cbor:"16,keyasint,omitempty"`
	Root     string   `cbor:"17,keyasint,omitempty"`
	UID      int      `cbor:"18,keyasint,omitempty"`
	GID      int      `cbor:"19,keyasint,omitempty"`
}

// errTooLarge means that a message does not fit one packet.
var errTooLarge = fmt.Errorf("arguments and environment are over %d bytes", maxMessage)

func encode(m message) ([]byte, error) {
	b, err := cbor.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", m.Op, err)
	}
	if len(b) > maxMessage {
		return nil, errTooLarge
	}
	return b, nil
}

// send writes one packet with files. The files stay open.
func send(c *net.UnixConn, m message, files ...*os.File) error {
	b, err := encode(m)
	if err != nil {
		return err
	}
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			rc, err := f.SyscallConn()
			if err != nil {
				return fmt.Errorf("send %s: %w", m.Op, err)
			}
			// Fd() would put the file into blocking mode, for both of us.
			if err := rc.Control(func(fd uintptr) { fds[i] = int(fd) }); err != nil {
				return fmt.Errorf("send %s: %w", m.Op, err)
			}
		}
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := c.WriteMsgUnix(b, oob, nil); err != nil {
		return fmt.Errorf("send %s: %w", m.Op, err)
	}
	return nil
}

// receive reads one packet. The descriptors are the caller's to close, also
// when there is an error.
func receive(c *net.UnixConn, buf []byte) (message, []int, error) {
	oob := make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, flags, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil {
		return message{}, rights(oob[:oobn]), err
	}
	return decode(buf[:n], oob[:oobn], flags)
}

// decode takes a packet apart that came with flags. The descriptors are the
// caller's to close, also when there is an error.
func decode(b, oob []byte, flags int) (message, []int, error) {
	var m message
	fds := rights(oob)
	switch {
	case len(b) == 0:
		return m, fds, io.EOF
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		return m, fds, errors.New("packet cut short")
	}
	if err := cbor.Unmarshal(b, &m); err != nil {
		return m, fds, fmt.Errorf("decode packet: %w", err)
	}
	return m, fds, nil
}

// rights takes the descriptors out of ancillary data.
func rights(oob []byte) []int {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var fds []int
	for i := range msgs {
		got, err := unix.ParseUnixRights(&msgs[i])
		if err == nil {
			fds = append(fds, got...)
		}
	}
	return fds
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = syscall.Close(fd)
	}
}

func toBytes(ss []string) [][]byte {
	out := make([][]byte, len(ss))
	for i, s := range ss {
		out[i] = []byte(s)
	}
	return out
}

func toStrings(bs [][]byte) []string {
	out := make([]string, len(bs))
	for i, b := range bs {
		out[i] = string(b)
	}
	return out
}
