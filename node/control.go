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
	"sync"
	"syscall"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// lines splits b at newlines.
func lines(b []byte) iter.Seq[string] { return strings.SplitSeq(string(b), "\n") }

// serveControl accepts the agent's control connection, and accepts again when
// the agent dialled anew, until the sandbox's listener closes. settle gets the
// outcome of the start once: nil for ready.
func (n *Node) serveControl(s *sandbox, settle chan<- error) {
	var once sync.Once // frames and the jobs they start settle it alike
	outcome := func(err error) { once.Do(func() { settle <- err }) }
	defer outcome(api.Errorf(api.CodeStartFailed, "the sandbox ended before it was ready"))
	s.mu.Lock()
	ln := s.ln
	s.mu.Unlock()
	for {
		conn, err := ln.AcceptUnix()
		if err != nil {
			return // closed by remove or Close
		}
		s.mu.Lock()
		if s.conn != nil {
			s.conn.Close() // the agent has one connection; the newer one counts
		}
		s.conn = conn
		s.mu.Unlock()
		err = n.talk(s, conn, outcome)
		conn.Close()
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
			n.log.Warn("control connection", "sandbox", s.id, "err", err)
		}
	}
}

// talk reads one connection's frames until it ends.
func (n *Node) talk(s *sandbox, conn *net.UnixConn, outcome func(error)) error {
	first, fd, err := readHello(conn)
	if err != nil {
		return err
	}
	if fd >= 0 {
		defer syscall.Close(fd)
	}
	h := first.Hello
	if h == nil || h.Protocol != api.ControlProtocol {
		err := api.Errorf(api.CodeStartFailed, "the agent speaks another control protocol; use the agent of this release")
		outcome(err)
		return err
	}
	if h.Bound {
		if h.Revision != s.rev.digest {
			err := api.Errorf(api.CodeStartFailed, "the agent is bound to another revision")
			outcome(err)
			return err
		}
		if h.Ready {
			outcome(nil)
		}
	} else if err := n.bind(s, fd); err != nil {
		outcome(err)
		return err
	}
	jobs := make(chan struct{}, maxControlJobs)
	job := func(f func()) {
		jobs <- struct{}{} // waits while the agent asks faster than it is answered
		n.spawn(func() { defer func() { <-jobs }(); f() })
	}
	if len(h.Statement) > 0 && !h.Ready { // it has no keys yet
		job(func() { n.fetchKeys(s, h.Statement, outcome) })
	}
	for {
		c, err := api.ReadControl(conn)
		if err != nil {
			return err
		}
		n.dispatch(s, c, outcome, job)
	}
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

// bind moves the launcher into the function's cgroup and tells the agent which
// revision it serves.
func (n *Node) bind(s *sandbox, pidfd int) error {
	if pidfd < 0 {
		return api.Errorf(api.CodeStartFailed, "the agent sent no launcher")
	}
	pid, err := pidOf(pidfd)
	if err != nil {
		return api.Wrap(api.CodeStartFailed, err, "the launcher is gone")
	}
	ctx, cancel := context.WithTimeout(n.life, 10*time.Second)
	defer cancel()
	s.mu.Lock()
	rt := s.rt
	s.mu.Unlock()
	if err := rt.AdmitLauncher(ctx, pid); err != nil {
		return api.Wrap(api.CodeStartFailed, err, "the function's cgroup did not take the launcher")
	}
	img, err := n.dep.Runtime.Pull(ctx, n.imageRef(s.rev), s.rev.desc.Config.Image)
	if err != nil {
		return startError(err, "the image is gone")
	}
	info := rt.Info()
	s.tell(api.Control{Bind: &api.Bind{
		Descriptor: s.rev.rec.Descriptor, Image: img.Config, UID: info.UID, GID: info.GID,
	}})
	return nil
}

// maxControlJobs bounds what one agent may have the node do at once, so that a
// hostile one cannot fill it with goroutines. Each job has a deadline.
const maxControlJobs = 4

// dispatch acts on one frame. What takes time runs on its own, by job.
func (n *Node) dispatch(s *sandbox, c api.Control, outcome func(error), job func(func())) {
	switch {
	case c.NeedBundle != nil:
		job(func() {
			if err := n.sendBundle(s); err != nil {
				outcome(err)
				n.removeFor(s, err)
			}
		})
	case c.Ready != nil:
		outcome(nil)
	case c.Failed != nil:
		p := c.Failed
		err := &api.Error{Code: p.Code, Message: p.Detail, Field: p.Field, Remedy: p.Remedy}
		outcome(err)
		job(func() { n.removeFor(s, err) })
	case c.Exited != nil:
		why := exitText(c.Exited)
		n.log.Info("function ended", "sandbox", s.id, "function", s.rev.name, "why", why)
		err := api.Errorf(exitCode(c.Exited), "the function ended: %s", why)
		n.fail(s, err)
		outcome(err)
		job(func() { n.remove(s, why) })
	case c.Log != nil:
		n.logs.add(s.rev.name, s.id, c.Log.Sealed)
	case c.AskOOM != nil:
		job(func() { n.answerOOM(s, c.AskOOM.ID) })
	}
}

// fetchKeys collects evidence for the statement and asks the broker.
func (n *Node) fetchKeys(s *sandbox, statement []byte, outcome func(error)) {
	ctx, cancel := context.WithTimeout(n.life, 10*time.Second)
	defer cancel()
	reply, err := n.release(ctx, s, statement)
	if err != nil {
		if code := api.CodeOf(err); code == api.CodeInternal {
			err = api.Wrap(api.CodeUnavailable, err, "the key broker cannot be reached")
		}
		outcome(err)
		p := api.ProblemOf(err, "")
		s.tell(api.Control{Refused: &p})
		return
	}
	n.mu.Lock()
	s.evidence = reply.Type
	n.mu.Unlock()
	s.tell(api.Control{Keys: &reply})
}

func (n *Node) release(ctx context.Context, s *sandbox, statement []byte) (api.ReleaseReply, error) {
	req := api.ReleaseRequest{Function: string(s.rev.name), Revision: s.rev.digest, Statement: statement}
	for _, c := range n.dep.Collectors {
		ev, err := c.Collect(ctx, statement)
		if err != nil {
			n.log.Warn("evidence", "type", c.Type(), "sandbox", s.id, "err", err)
			continue
		}
		req.Evidence = append(req.Evidence, ev)
	}
	return n.dep.Broker.Release(ctx, req)
}

// sendBundle streams the sealed bundle from the registry to the agent.
func (n *Node) sendBundle(s *sandbox) error {
	ctx, cancel := context.WithTimeout(n.life, s.rev.start)
	defer cancel()
	body, err := n.dep.Bundles.Fetch(ctx, s.rev.rec.BundleRef, s.rev.desc.BundleBlob)
	if err != nil {
		return startError(err, "the sealed bundle could not be fetched")
	}
	defer body.Close()
	path := filepath.Join(s.dir, filepath.Base(api.AgentHTTPSocket))
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
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return api.Wrap(api.CodeStartFailed, err, "the agent did not take the sealed bundle")
	}
	return api.ParseProblem(resp.StatusCode, b)
}

func (n *Node) answerOOM(s *sandbox, id uint64) {
	ctx, cancel := context.WithTimeout(n.life, 5*time.Second)
	defer cancel()
	s.mu.Lock()
	rt := s.rt
	s.mu.Unlock()
	kills, err := rt.OOMKills(ctx)
	if err != nil {
		n.log.Warn("OOM counter", "sandbox", s.id, "err", err)
	}
	s.tell(api.Control{OOM: &api.OOM{ID: id, Kills: kills}})
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
