package launcher

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrGone means that the launcher ended, and with it the sandbox.
var ErrGone = errors.New("launcher: it is gone")

// Command says how to start a launcher.
type Command struct {
	Path     string   // the agent's binary
	Args     []string // argv[1:], such as "launcher"
	Env      []string
	UID, GID int  // the function's, never 0 unless Blank
	Blank    bool // start it without a function; Enter makes it one's
}

// Launcher is the agent's side. It is safe for concurrent use.
type Launcher struct {
	PID   int
	PIDFD *os.File // names the launcher to the node

	conn *net.UnixConn
	done chan struct{} // closed when the pair broke

	mu      sync.Mutex
	gone    bool
	next    uint64
	replies map[uint64]chan message
	procs   map[uint64]*Process
}

// Start forks the launcher and waits until it has given up everything. The
// caller reaps PID; Close ends it.
func Start(ctx context.Context, c Command) (_ *Launcher, retErr error) {
	if !c.Blank && (c.UID <= 0 || c.GID <= 0) {
		return nil, fmt.Errorf("start launcher: uid %d and gid %d must be above 0", c.UID, c.GID)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("start launcher: socketpair: %w", err)
	}
	mine, theirs := os.NewFile(uintptr(pair[0]), "launcher"), os.NewFile(uintptr(pair[1]), "agent")
	defer theirs.Close()
	nc, err := net.FileConn(mine)
	_ = mine.Close()
	if err != nil {
		return nil, fmt.Errorf("start launcher: %w", err)
	}
	defer func() {
		if retErr != nil {
			_ = nc.Close()
		}
	}()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("start launcher: %w", err)
	}
	defer null.Close()
	pidfd := -1
	attr := &syscall.SysProcAttr{
		// In a session of its own, so that no signal meant for us reaches it.
		Setsid: true, PidFD: &pidfd,
	}
	if c.Blank {
		attr.Cloneflags = blankNamespaces
	} else {
		// The change of ids between fork and exec takes every capability away.
		attr.Credential = &syscall.Credential{Uid: uint32(c.UID), Gid: uint32(c.GID)}
	}
	pid, err := syscall.ForkExec(c.Path, append([]string{c.Path}, c.Args...), &syscall.ProcAttr{
		Dir: "/", Env: c.Env, Sys: attr,
		Files: []uintptr{null.Fd(), null.Fd(), null.Fd(), theirs.Fd()},
	})
	if err != nil {
		return nil, fmt.Errorf("start launcher %s as %d:%d: %w", c.Path, c.UID, c.GID, err)
	}
	if pidfd < 0 {
		return nil, errors.New("start launcher: the kernel gave no pidfd; 5.4 or later is needed")
	}
	l := &Launcher{PID: pid, PIDFD: os.NewFile(uintptr(pidfd), "launcher-pidfd"), conn: nc.(*net.UnixConn),
		done: make(chan struct{}), replies: make(map[uint64]chan message), procs: make(map[uint64]*Process)}
	_ = theirs.Close() // so that we see it when the launcher dies
	ready := make(chan error, 1)
	go l.read(ready)
	_, _ = encode(message{Op: opEnter}) // what encoding needs is made while nobody waits
	select {
	case err := <-ready:
		if err != nil {
			return nil, fmt.Errorf("start launcher: %w", err)
		}
		return l, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("start launcher: %w", ctx.Err())
	}
}

// Done is closed when the launcher is gone.
func (l *Launcher) Done() <-chan struct{} { return l.done }

// Close ends the launcher and everything it started, and waits until its side
// of the pair is closed.
func (l *Launcher) Close() {
	_ = l.conn.CloseRead() // ends our reader; the launcher sees the end of its input
	_ = l.conn.Close()
	<-l.done
	_ = l.PIDFD.Close()
}

func (l *Launcher) read(ready chan<- error) {
	buf := make([]byte, 4<<10)
	m, fds, err := receive(l.conn, buf)
	closeAll(fds)
	if err == nil && m.Op != opReady {
		err = fmt.Errorf("it said %q first", m.Op)
	}
	if err != nil {
		l.fail()
		ready <- fmt.Errorf("the launcher ended before it was ready: %w", err)
		return
	}
	ready <- nil
	for {
		m, fds, err := receive(l.conn, buf)
		closeAll(fds)
		if err != nil {
			l.fail()
			return
		}
		l.mu.Lock()
		switch m.Op {
		case opReply:
			if ch := l.replies[m.ID]; ch != nil {
				delete(l.replies, m.ID)
				ch <- m
			}
		case opExited:
			if p := l.procs[m.ID]; p != nil {
				delete(l.procs, m.ID)
				p.end(Exit{Code: m.Code, Signal: syscall.Signal(m.Signal)})
			}
		}
		l.mu.Unlock()
	}
}

// fail tells everybody that the launcher is gone.
func (l *Launcher) fail() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gone = true
	for id, ch := range l.replies {
		delete(l.replies, id)
		close(ch)
	}
	for id, p := range l.procs {
		delete(l.procs, id)
		p.end(Exit{Code: -1, Signal: syscall.SIGKILL, Lost: true})
	}
	close(l.done)
}

// call sends a request and waits for its reply. before runs with the lock held
// once the id is known.
func (l *Launcher) call(ctx context.Context, m message, before func(id uint64), files ...*os.File) (message, error) {
	return l.callAsked(ctx, m, before, nil, files...)
}

// callAsked is call, which calls asked once the request is on its way or failed.
func (l *Launcher) callAsked(ctx context.Context, m message, before func(id uint64), asked func(), files ...*os.File) (message, error) {
	if asked == nil {
		asked = func() {}
	}
	ch := make(chan message, 1)
	l.mu.Lock()
	if l.gone {
		l.mu.Unlock()
		asked()
		return message{}, ErrGone
	}
	l.next++
	m.ID = l.next
	l.replies[m.ID] = ch
	if before != nil {
		before(m.ID)
	}
	l.mu.Unlock()
	err := send(l.conn, m, files...)
	asked()
	if err != nil {
		l.mu.Lock()
		delete(l.replies, m.ID)
		l.mu.Unlock()
		return m, err
	}
	select {
	case r, ok := <-ch:
		switch {
		case !ok:
			return m, ErrGone
		case r.Errno != 0:
			return m, &Failure{Message: r.Error, Errno: syscall.Errno(r.Errno)}
		case r.Error != "":
			return m, &Failure{Message: r.Error}
		}
		return r, nil
	case <-ctx.Done():
		l.mu.Lock()
		delete(l.replies, m.ID)
		l.mu.Unlock()
		return m, ctx.Err()
	}
}

// Failure is what the launcher could not do.
type Failure struct {
	Message string
	Errno   syscall.Errno // 0 if the kernel was not the one to refuse
}

// Error implements error.
func (f *Failure) Error() string { return "launcher: " + f.Message }

// Unwrap returns the kernel's error, if it was one.
func (f *Failure) Unwrap() error {
	if f.Errno == 0 {
		return nil
	}
	return f.Errno
}

// EnterOptions make a launcher a function's. Root, UID and GID are for a blank
// one alone.
type EnterOptions struct {
	FilterOptions
	Root     string // where the node mounted the function's root
	UID, GID int    // the function's, never 0
}

// Enter makes the launcher the function's: everything started from now on is
// under its root, its ids and the narrower filter. It asks and returns; done says
// how it went. What is asked for next waits in the launcher until then, and is
// refused where it went wrong.
func (l *Launcher) Enter(ctx context.Context, o EnterOptions) (done func() error) {
	asked := make(chan struct{})
	failed := make(chan error, 1)
	go func() {
		_, err := l.callAsked(ctx, message{Op: opEnter, DenyInet: o.DenyInet, Root: o.Root, UID: o.UID, GID: o.GID}, nil, func() { close(asked) })
		failed <- err
	}()
	<-asked
	return func() error { return <-failed }
}

// Unpack has the launcher write the bundle that comes through archive, the
// reading end of a pipe, which stays the caller's.
func (l *Launcher) Unpack(ctx context.Context, archive *os.File, o UnpackOptions) error {
	_, err := l.call(ctx, message{Op: opUnpack, CodeDir: o.CodeDir, Secrets: o.SecretsDir,
		MaxBytes: o.MaxBytes, MaxFiles: o.MaxFiles}, nil, archive)
	return err
}
