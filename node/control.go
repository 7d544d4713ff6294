package node

import (
	"context"
	"errors"
	"io"
	"iter"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// lines splits b at newlines.
func lines(b []byte) iter.Seq[string] { return strings.SplitSeq(string(b), "\n") }

// serveControl accepts the agent's control connection, and accepts again when
// the agent dialled anew, until the box's listener closes.
func (n *Node) serveControl(b *box) {
	defer b.spoil(api.Errorf(api.CodeStartFailed, "the sandbox ended before it was ready"))
	b.mu.Lock()
	ln := b.ln
	b.mu.Unlock()
	for {
		conn, err := ln.AcceptUnix()
		if err != nil {
			return // closed by hangUp
		}
		b.mu.Lock()
		if b.conn != nil {
			b.conn.Close() // the agent has one connection; the newer one counts
		}
		b.conn = conn
		if b.hung { // it was taken just before hangUp, which did not see it
			conn.Close()
		}
		b.mu.Unlock()
		err = n.talk(b, conn)
		conn.Close()
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
			n.log.Warn("control connection", "sandbox", b.id, "err", err)
		}
	}
}

// talk reads one connection's frames until it ends.
func (n *Node) talk(b *box, conn *net.UnixConn) error {
	first, fd, err := readHello(conn)
	if err != nil {
		return err
	}
	if fd >= 0 {
		defer syscall.Close(fd)
	}
	h := first.Hello
	if h == nil || h.Protocol != api.ControlProtocol {
		err = api.Errorf(api.CodeStartFailed, "the agent speaks another control protocol; use the agent of this release")
	} else {
		err = n.welcome(b, h, fd)
	}
	if err != nil {
		b.spoil(err)
		n.lose(b, err)
		return err
	}
	jobs := make(chan struct{}, maxControlJobs)
	for {
		c, err := api.ReadControl(conn)
		if err != nil {
			return err
		}
		n.dispatch(b, c, func(f func()) {
			jobs <- struct{}{} // waits while the agent asks faster than it is answered
			n.spawn(func() { defer func() { <-jobs }(); f() })
		})
	}
}

// welcome answers a Hello: it takes the launcher and the statement of a new box,
// and says again to a known one what it may have missed.
func (n *Node) welcome(b *box, h *api.Hello, pidfd int) error {
	ctx, cancel := context.WithTimeout(n.life, 10*time.Second)
	defer cancel()
	s, admitted, proved := b.owner.Load(), false, false
	if h.Bound {
		if s == nil || h.Revision != s.rev.digest {
			return api.Errorf(api.CodeStartFailed, "the agent is bound to another revision")
		}
		if h.Ready {
			b.ready()
			b.settle(nil)
			return nil
		}
	} else {
		b.mu.Lock()
		admitted, proved = b.admitted, b.proof != nil
		b.mu.Unlock()
		if !admitted {
			if err := n.admitLauncher(ctx, b, pidfd); err != nil {
				return err
			}
		}
	}
	switch {
	case len(h.Statement) > 0:
		if err := n.prove(ctx, b, h.Statement); err != nil {
			return err
		}
	case h.Bound: // it has its keys, and is starting or waits for its root
		b.mu.Lock()
		defer b.mu.Unlock()
		b.write(b.mounted)
		return nil
	case !proved:
		return api.Errorf(api.CodeStartFailed, "the agent made no statement")
	}
	b.ready()
	if !h.Bound && s == nil {
		n.spawn(func() { n.approach(b) })
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !h.Bound {
		b.send(b.bind)
	}
	b.write(b.mounted)
	if b.keys != nil {
		b.write(b.keys)
	} else if h.Bound {
		// The one that asked before died with an earlier life of the daemon, or
		// is still at it, which unlock knows.
		n.spawn(func() {
			ctx, cancel := context.WithTimeout(n.life, s.rev.start)
			defer cancel()
			n.unlock(ctx, s, b)
		})
	}
	return nil
}

// readHello reads the first frame and the one file descriptor that may come
// with its first byte. fd is -1 if none did.
func readHello(conn *net.UnixConn) (c api.Control, fd int, err error) {
	fd = -1
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return c, fd, err
	}
	first, oob := make([]byte, 1), make([]byte, syscall.CmsgSpace(4*4))
	k, oobn, _, _, err := conn.ReadMsgUnix(first, oob)
	if err != nil {
		return c, fd, err
	}
	if k == 0 {
		return c, fd, io.EOF
	}
	msgs, err := syscall.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return c, fd, err
	}
	for _, m := range msgs {
		fds, err := syscall.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, f := range fds {
			syscall.CloseOnExec(f)
			if fd >= 0 {
				syscall.Close(f)
				continue
			}
			fd = f
		}
	}
	c, err = api.ReadControl(io.MultiReader(strings.NewReader(string(first)), conn))
	if err != nil && fd >= 0 {
		syscall.Close(fd)
		fd = -1
	}
	return c, fd, errors.Join(err, conn.SetReadDeadline(time.Time{}))
}

// admitLauncher moves the launcher into the function's cgroup.
func (n *Node) admitLauncher(ctx context.Context, b *box, pidfd int) error {
	if pidfd < 0 {
		return api.Errorf(api.CodeStartFailed, "the agent sent no launcher")
	}
	pid, err := pidOf(pidfd)
	if err != nil {
		return api.Wrap(api.CodeStartFailed, err, "the launcher is gone")
	}
	if err := b.runtime().AdmitLauncher(ctx, pid); err != nil {
		return api.Wrap(api.CodeStartFailed, err, "the function's cgroup did not take the launcher")
	}
	b.mu.Lock()
	b.admitted = true
	b.mu.Unlock()
	return nil
}

// maxControlJobs bounds what one agent may have the node do at once, so that a
// hostile one cannot fill it with goroutines. Each job has a deadline.
const maxControlJobs = 4

// dispatch acts on one frame. What takes time runs on its own, by job.
func (n *Node) dispatch(b *box, c api.Control, job func(func())) {
	s := b.owner.Load()
	switch {
	case c.Statement != nil:
		job(func() {
			ctx, cancel := context.WithTimeout(n.life, 10*time.Second)
			defer cancel()
			if err := n.prove(ctx, b, c.Statement.Statement); err != nil {
				n.log.Warn("statement", "sandbox", b.id, "err", err)
				return
			}
			n.approach(b)
		})
	case c.Failed != nil:
		p := c.Failed
		err := &api.Error{Code: p.Code, Message: p.Detail, Field: p.Field, Remedy: p.Remedy}
		b.spoil(err)
		if s == nil {
			n.lose(b, err)
			return
		}
		job(func() { n.removeFor(s, err) })
	case s == nil: // what follows is of a function
	case c.NeedBundle != nil:
		job(func() {
			if err := n.sendBundle(s, b); err != nil {
				b.settle(err)
				n.removeFor(s, err)
			}
		})
	case c.Ready != nil:
		b.settle(nil)
	case c.Exited != nil:
		why := exitText(c.Exited)
		n.noteExit(s, c.Exited)
		n.log.Info("function ended", "sandbox", b.id, "function", s.rev.name, "why", why)
		err := api.Errorf(exitCode(c.Exited), "the function ended: %s", why)
		n.fail(s, err)
		b.settle(err)
		job(func() { n.remove(s, why) })
	case c.Log != nil:
		n.logs.add(s.rev, b.id, c.Log)
	case c.AskOOM != nil:
		job(func() { n.answerOOM(b, c.AskOOM.ID) })
	}
}

// sendBundle streams the sealed bundle from the registry to the agent.
func (n *Node) sendBundle(s *sandbox, b *box) error {
	ctx, cancel := context.WithTimeout(n.life, s.rev.start)
	defer cancel()
	if s.rev.desc == nil {
		return api.Errorf(api.CodeStartFailed, "a plain function has no sealed bundle")
	}
	body, err := n.dep.Bundles.Fetch(ctx, s.rev.rec.BundleRef, s.rev.desc.BundleBlob)
	if err != nil {
		return startError(err, "the sealed bundle could not be fetched")
	}
	defer body.Close()
	path := filepath.Join(b.dir, filepath.Base(api.AgentHTTPSocket))
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}, DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://agent"+api.AgentPathBundle, body)
	if err != nil {
		return err
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return api.Wrap(api.CodeStartFailed, err, "the agent did not take the sealed bundle")
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 == 2 {
		return nil
	}
	problem, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return api.Wrap(api.CodeStartFailed, err, "the agent did not take the sealed bundle")
	}
	return api.ParseProblem(resp.StatusCode, problem)
}

func (n *Node) answerOOM(b *box, id uint64) {
	ctx, cancel := context.WithTimeout(n.life, 5*time.Second)
	defer cancel()
	kills, err := b.runtime().OOMKills(ctx)
	if err != nil {
		n.log.Warn("OOM counter", "sandbox", b.id, "err", err)
	}
	b.tell(api.Control{OOM: &api.OOM{ID: id, Kills: kills}})
}

// exitCode is the code of an invocation that the function's end took along.
func exitCode(e *api.Exited) api.Code {
	if e.OOM {
		return api.CodeOOMKilled
	}
	return api.CodeFunctionCrashed
}

func exitText(e *api.Exited) string {
	switch {
	case e.OOM:
		return string(api.CodeOOMKilled) + ": the function passed its memory limit"
	case e.Signal != "":
		return string(api.CodeFunctionCrashed) + ": signal " + e.Signal
	}
	return string(api.CodeFunctionCrashed) + ": exit code " + itoa(e.ExitCode)
}
