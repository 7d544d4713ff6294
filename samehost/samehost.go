// Package samehost connects two processes of one machine over a unix socket:
// mutual TLS says who is at the other end, and then gets out of the way.
//
// Records between two processes of root's on one machine keep nothing from
// anybody: who could read the socket could read either process. So after the
// handshake bytes pass as they are, which saves four passes of a cipher and as
// many copies per exchange. What stays is what the handshake is for: neither end
// takes the other for who it is not, whatever socket a path leads to.
//
// Promised: both ends hold certificates that the other's configuration accepts;
// both run as the same user, by the kernel's word (SO_PEERCRED), so that nobody
// else's process can sit between them and relay the handshake; both asked for
// this very protocol (ALPN), so that a handshake relayed from a TLS port, where
// records would follow, comes to nothing. Not promised: secrecy from that user.
package samehost

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/nbio"
)

// protocol is what both ends must ask for: TLS for the handshake, then none.
const protocol = "faasd-sec-samehost/1"

// agreed is the byte that the accepting end sends, in clear, once it accepts
// the other. Only then may that one send, so that no TLS reader has taken bytes
// that are not its own.
const agreed = 'A'

// ErrStranger means that another user's process is at the other end.
var ErrStranger = errors.New("samehost: the other end runs as another user")

// prepare adds what this package needs to a configuration for mutual TLS.
func prepare(config *tls.Config) *tls.Config {
	c := config.Clone()
	c.NextProtos = []string{protocol}
	c.MinVersion = tls.VersionTLS13
	c.SessionTicketsDisabled = true // nothing may follow the handshake
	return c
}

// Dial connects to the socket at path. config must verify the other end and
// show a certificate. ctx bounds the connecting alone.
func Dial(ctx context.Context, path string, config *tls.Config) (_ net.Conn, err error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	conn := nbio.Wrap(c)
	// tls ends its waits with ctx, and only its own.
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer func() {
		if !stop() && err == nil {
			err = ctx.Err()
		}
		if err != nil {
			err = errors.Join(fmt.Errorf("samehost: dial %s: %w", path, err), ignoreClosed(conn.Close()))
		}
	}()
	if err := sameUser(conn); err != nil {
		return nil, err
	}
	if _, err := shake(tls.Client(conn, prepare(config))); err != nil {
		return nil, err
	}
	var b [1]byte
	if _, err := conn.Read(b[:]); err != nil {
		return nil, fmt.Errorf("wait to be accepted: %w", err)
	}
	if b[0] != agreed {
		return nil, errors.New("the other end speaks another protocol")
	}
	return conn, nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// shake makes the handshake and sees that both ends mean this protocol.
func shake(t *tls.Conn) (tls.ConnectionState, error) {
	if err := t.Handshake(); err != nil {
		return tls.ConnectionState{}, err
	}
	cs := t.ConnectionState()
	if cs.NegotiatedProtocol != protocol || len(cs.PeerCertificates) == 0 {
		return tls.ConnectionState{}, errors.New("the other end means TLS, or shows no certificate")
	}
	return cs, nil
}

// sameUser asks the kernel whose process is at the other end.
func sameUser(c net.Conn) error {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return ErrStranger
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	if cerr := rc.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil {
		return cerr
	}
	if err != nil {
		return os.NewSyscallError("getsockopt SO_PEERCRED", err)
	}
	if int(cred.Uid) != os.Geteuid() {
		return ErrStranger
	}
	return nil
}

// NewListener makes connections of ln, a unix listener, that authenticate the
// other end before their first byte is read. As with crypto/tls, Accept does not
// wait for that: the first Read does, bounded by the deadline that is set then.
func NewListener(ln net.Listener, config *tls.Config) net.Listener {
	return &listener{Listener: ln, config: prepare(config)}
}

type listener struct {
	net.Listener
	config *tls.Config
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &accepted{Conn: nbio.Wrap(c), config: l.config}, nil
}

// accepted is the accepting end.
type accepted struct {
	net.Conn
	config *tls.Config
	once   sync.Once
	state  tls.ConnectionState // zero until the other end is admitted
	err    error
}

func (a *accepted) admit() error {
	a.once.Do(func() {
		if a.err = sameUser(a.Conn); a.err == nil {
			a.state, a.err = shake(tls.Server(a.Conn, a.config))
		}
		if a.err == nil {
			_, a.err = a.Conn.Write([]byte{agreed})
		}
		if a.err != nil {
			a.err = fmt.Errorf("samehost: accept: %w", a.err)
		}
		a.config = nil
	})
	return a.err
}

// Handshake admits the other end now. With ConnectionState it makes a server ask
// who that is as it asks of a *tls.Conn.
func (a *accepted) Handshake() error { return a.admit() }

// ConnectionState tells how the handshake ended, and is zero before.
func (a *accepted) ConnectionState() tls.ConnectionState {
	if a.admit() != nil {
		return tls.ConnectionState{}
	}
	return a.state
}

// NetConn is the connection below.
func (a *accepted) NetConn() net.Conn { return a.Conn }

// Read implements net.Conn.
func (a *accepted) Read(p []byte) (int, error) {
	if err := a.admit(); err != nil {
		return 0, err
	}
	return a.Conn.Read(p)
}

// Write implements net.Conn.
func (a *accepted) Write(p []byte) (int, error) {
	if err := a.admit(); err != nil {
		return 0, err
	}
	return a.Conn.Write(p)
}
