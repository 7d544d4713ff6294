package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/api"
)

// errNoNode means that no node is connected just now.
var errNoNode = errors.New("agent: the node is not connected")

// link is the control connection to the node daemon. It dials again whenever it
// breaks: the daemon may be restarted while functions go on serving.
type link struct {
	cfg     *Config
	log     *slog.Logger
	hello   func() (api.Hello, *os.File) // the file goes along on the first frame
	deliver func(api.Control)            // frames from the node, one after the other

	mu      sync.Mutex
	conn    *net.UnixConn
	pending *api.Control // said again after a reconnection, until it is answered
}

// run keeps the link up until ctx ends.
func (l *link) run(ctx context.Context) {
	defer l.drop(nil)
	for ctx.Err() == nil {
		if err := l.once(ctx); err != nil && ctx.Err() == nil {
			l.log.Debug("control connection", "err", err)
		}
		t := time.NewTimer(l.cfg.Redial)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
}

// once dials, introduces the agent and reads frames until the connection ends.
func (l *link) once(ctx context.Context) error {
	dctx, cancel := context.WithTimeout(ctx, l.cfg.DialTimeout)
	defer cancel()
	var d net.Dialer
	nc, err := d.DialContext(dctx, "unix", l.cfg.nodeSocket())
	if err != nil {
		return err
	}
	conn := nc.(*net.UnixConn)
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if err := l.introduce(conn); err != nil {
		return err
	}
	defer l.drop(conn)
	for {
		c, err := api.ReadControl(conn)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		l.deliver(c)
	}
}

// introduce sends Hello, then what is still unanswered, and publishes the
// connection. All of it happens under the lock, so that Hello comes first and
// its state and what is said next agree.
func (l *link) introduce(conn *net.UnixConn) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	h, file := l.hello()
	if err := l.writeHello(conn, h, file); err != nil {
		return err
	}
	if l.pending != nil {
		if err := l.write(conn, *l.pending); err != nil {
			return err
		}
	}
	l.conn = conn
	return nil
}

func (l *link) writeHello(conn *net.UnixConn, h api.Hello, file *os.File) error {
	b, err := json.Marshal(api.Control{Hello: &h})
	if err != nil {
		return fmt.Errorf("encode hello: %w", err)
	}
	var frame frameBuffer
	if err := api.WriteFrame(&frame, b); err != nil {
		return err
	}
	var oob []byte
	if file != nil {
		rc, err := file.SyscallConn()
		if err != nil {
			return fmt.Errorf("send hello: %w", err)
		}
		if err := rc.Control(func(fd uintptr) { oob = unix.UnixRights(int(fd)) }); err != nil {
			return fmt.Errorf("send hello: %w", err)
		}
	}
	if err := conn.SetWriteDeadline(time.Now().Add(l.cfg.FrameWrite)); err != nil {
		return err
	}
	// The frame is far below the socket's buffer: one sendmsg takes it whole.
	if n, _, err := conn.WriteMsgUnix(frame, oob, nil); err != nil {
		return fmt.Errorf("send hello: %w", err)
	} else if n != len(frame) {
		return fmt.Errorf("send hello: %w", io.ErrShortWrite)
	}
	return nil
}

// frameBuffer is the least io.Writer.
type frameBuffer []byte

func (b *frameBuffer) Write(p []byte) (int, error) { *b = append(*b, p...); return len(p), nil }

func (l *link) write(conn *net.UnixConn, c api.Control) error {
	if err := conn.SetWriteDeadline(time.Now().Add(l.cfg.FrameWrite)); err != nil {
		return err
	}
	return api.WriteControl(conn, c)
}

// send sends one frame, or fails at once when no node is connected.
func (l *link) send(c api.Control) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == nil {
		return errNoNode
	}
	if err := l.write(l.conn, c); err != nil {
		// Half a frame may be out: the connection is of no more use.
		_ = l.conn.Close()
		l.conn = nil
		return err
	}
	return nil
}

// say sends a frame that must not be lost: it is repeated after a reconnection
// until the next say, which nil makes an end of it.
func (l *link) say(c *api.Control) {
	l.mu.Lock()
	l.pending = c
	l.mu.Unlock()
	if c == nil {
		return
	}
	if err := l.send(*c); err != nil && !errors.Is(err, errNoNode) {
		l.log.Debug("control frame", "err", err)
	}
}

// drop forgets conn, or whatever is there for nil.
func (l *link) drop(conn *net.UnixConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if conn == nil || l.conn == conn {
		l.conn = nil
	}
}

// connected reports whether a node is there.
func (l *link) connected() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.conn != nil
}
