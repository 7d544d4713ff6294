package node

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/relay"
	"github.com/faasd-sec/faasd-sec/runtime"
)

// state of a sandbox. It only moves down this list.
type state int

const (
	starting state = iota
	ready
	stopping
	dead
)

func (s state) String() string { return [...]string{"starting", "ready", "stopping", "dead"}[s] }

// sandbox is one sandbox of a revision. The node's mutex guards state,
// inFlight, lastUsed and lastErr; mu guards the control connection.
type sandbox struct {
	id       string
	rev      *revision
	dir      string // of its sockets
	began    time.Time
	readyAt  time.Time
	up       *relay.Upstream
	evidence string // type that its keys were released for

	state    state
	retiring bool // takes no new invocations; those under way may end
	inFlight int
	lastUsed time.Time
	lastErr  string
	abort    context.CancelFunc // ends its start; nil once that is over or for an adopted one

	brought chan struct{} // closed once bringUp will touch s.rt no more
	settled chan struct{} // closed once ready, or dead without having been
	failure error         // set before settled closes without ready
	gone    chan struct{} // closed once everything of it is removed

	mu   sync.Mutex
	rt   runtime.Sandbox
	conn *net.UnixConn
	ln   *net.UnixListener
}

// newSandbox makes the entry of a sandbox that is about to start. The caller
// holds n.mu and has reserved its resources.
func (n *Node) newSandbox(rev *revision, id string) *sandbox {
	now := time.Now()
	s := &sandbox{
		id: id, rev: rev, dir: filepath.Join(n.cfg.RunDir, id), began: now, lastUsed: now,
		brought: make(chan struct{}), settled: make(chan struct{}), gone: make(chan struct{}),
	}
	n.fleet[id] = s
	if n.byRev[rev.key()] == nil {
		n.byRev[rev.key()] = map[string]*sandbox{}
	}
	n.byRev[rev.key()][id] = s
	return s
}

// newSandboxID draws an id of 20 characters.
func newSandboxID() string {
	var b [9]byte
	_, _ = rand.Read(b[:]) // never fails
	return "s-" + hex.EncodeToString(b[:])
}

// start brings s up. It belongs to the node, not to the invocation that asked
// for it: when that one gives up, the next finds the sandbox warm.
func (n *Node) start(s *sandbox) {
	ctx, cancel := context.WithTimeout(n.life, s.rev.start)
	defer cancel()
	n.mu.Lock()
	stopped := s.state != starting
	s.abort = cancel
	n.mu.Unlock()
	var err error
	if !stopped {
		err = n.bringUp(ctx, s)
	}
	close(s.brought)
	n.mu.Lock()
	s.abort = nil
	if err == nil && s.state != starting {
		err = s.failure
		if err == nil {
			err = api.Errorf(api.CodeStartFailed, "the sandbox was stopped while it started")
		}
	}
	if err == nil {
		s.state, s.readyAt, s.lastUsed = ready, time.Now(), time.Now()
		close(s.settled)
		n.wake()
	} else if s.failure == nil {
		s.failure = err
	}
	n.mu.Unlock()
	n.touch()
	took := time.Since(s.began)
	if err != nil {
		n.met.starts.WithLabelValues(api.CodeOf(err).Label()).Inc()
		n.log.Warn("sandbox did not start", "sandbox", s.id, "function", s.rev.name, "after", took, "err", err)
		n.remove(s, err.Error())
		return
	}
	n.met.starts.WithLabelValues("ok").Inc()
	n.met.startSeconds.Observe(took.Seconds())
	n.log.Info("sandbox ready", "sandbox", s.id, "function", s.rev.name, "took", took)
}

// bringUp creates the sandbox and returns once its agent reported ready.
func (n *Node) bringUp(ctx context.Context, s *sandbox) error {
	d := s.rev.desc
	img, err := n.dep.Runtime.Pull(ctx, n.imageRef(s.rev), d.Config.Image)
	if err != nil {
		return startError(err, "the image could not be pulled")
	}
	if err := n.listen(s); err != nil {
		return startError(err, "no control socket")
	}
	spec := runtime.Spec{
		ID: s.id, Function: s.rev.name, Revision: s.rev.key(), Image: img, AgentPath: n.cfg.AgentPath,
		SocketDir: s.dir, Resources: s.rev.limits, AllowInet: d.Config.Upstream != "unix",
		Tmpfs: []runtime.Tmpfs{{Path: secretsPath, Bytes: secretsBytes}},
	}
	if d.Config.BundleMount != "" {
		spec.Tmpfs = append(spec.Tmpfs, runtime.Tmpfs{Path: d.Config.BundleMount, Bytes: s.rev.limits.Tmp, Exec: true})
	}
	// uid and gid are decided by the runtime from the image and given to the
	// agent in its environment, before it can be told anything else.
	rt, err := n.dep.Runtime.Create(ctx, spec)
	if err != nil {
		return startError(err, "the sandbox could not be created")
	}
	s.mu.Lock()
	s.rt = rt
	s.mu.Unlock()
	s.up = n.agentUpstream(s)
	bound := make(chan error, 1)
	n.spawn(func() { n.serveControl(s, bound) })
	select {
	case err := <-bound:
		return err
	case <-ctx.Done():
		return api.Errorf(api.CodeFunctionNotReady, "the function did not become ready within %s", s.rev.start)
	}
}

// imageRef is where to pull a revision's image: in the cluster's registry
// unless it names another.
func (n *Node) imageRef(rev *revision) string {
	if api.NamesRegistry(rev.rec.ImageRef) {
		return rev.rec.ImageRef
	}
	return n.cfg.Registry + "/" + api.Repository(rev.rec.ImageRef)
}

// startError keeps an error that has a code and gives others CodeStartFailed.
func startError(err error, message string) error {
	if api.CodeOf(err) != api.CodeInternal {
		return err
	}
	return api.Wrap(api.CodeStartFailed, err, message)
}

// listen makes the sandbox's directory and control socket.
func (n *Node) listen(s *sandbox) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	path := filepath.Join(s.dir, filepath.Base(api.AgentNodeSocket))
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	// The directory is 0700 and the agent's; the socket need not guard itself.
	if err := os.Chmod(path, 0o666); err != nil {
		return errors.Join(err, ln.Close())
	}
	s.mu.Lock()
	s.ln = ln
	s.mu.Unlock()
	return nil
}

// agentUpstream dials the agent's HTTP socket.
func (n *Node) agentUpstream(s *sandbox) *relay.Upstream {
	path := filepath.Join(s.dir, filepath.Base(api.AgentHTTPSocket))
	o := relay.DefaultOptions()
	return relay.NewUpstream(n.life, func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}, o)
}

// fail keeps why s does not start, for the invocations that wait for it: the
// first reason counts.
func (n *Node) fail(s *sandbox, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if s.state == starting && s.failure == nil {
		s.failure = err
	}
}

// removeFor removes s for an error.
func (n *Node) removeFor(s *sandbox, err error) {
	n.fail(s, err)
	n.remove(s, err.Error())
}

// remove stops s and gives back what it held. It is idempotent, and returns
// when s is gone.
func (n *Node) remove(s *sandbox, why string) {
	n.removeIf(s, why, func() bool { return true })
}

// removeIfIdle stops s unless it is not idle any more.
func (n *Node) removeIfIdle(s *sandbox, why string) {
	n.removeIf(s, why, func() bool { return s.state == ready && s.inFlight == 0 })
}

// removeIf stops s if cond, asked under the mutex, still holds: from then on no
// invocation gets a slot in it.
func (n *Node) removeIf(s *sandbox, why string, cond func() bool) {
	n.mu.Lock()
	if s.state >= stopping {
		n.mu.Unlock()
		<-s.gone
		return
	}
	if !cond() {
		n.mu.Unlock()
		return
	}
	settled := s.state == ready
	s.state = stopping
	if s.abort != nil {
		s.abort()
	}
	if s.lastErr == "" {
		s.lastErr = why
	}
	if !settled {
		if s.failure == nil {
			s.failure = api.Errorf(api.CodeStartFailed, "%s", why)
		}
		close(s.settled)
	}
	n.mu.Unlock()
	n.touch()

	// A start under way must not make anything after we looked.
	<-s.brought
	ctx, cancel := cleanupContext(n.cfg.StopGrace + 30*time.Second)
	defer cancel()
	s.mu.Lock()
	rt := s.rt
	s.mu.Unlock()
	if rt != nil {
		s.tell(api.Control{Stop: &api.Stop{GraceMs: n.cfg.StopGrace.Milliseconds()}})
		if err := rt.Remove(ctx, n.cfg.StopGrace); err != nil {
			// Its reservation stays taken: the sandbox may still run. The next
			// start of the daemon removes it.
			n.log.Error("sandbox could not be removed; its reservation is kept", "sandbox", s.id, "err", err)
			n.bury(s, false)
			return
		}
	}
	n.bury(s, true)
}

// bury ends the bookkeeping of s.
func (n *Node) bury(s *sandbox, release bool) {
	s.closeConns()
	if s.up != nil {
		s.up.Close()
	}
	if err := os.RemoveAll(s.dir); err != nil {
		n.log.Warn("socket directory stays behind", "sandbox", s.id, "err", err)
	}
	n.mu.Lock()
	s.state = dead
	delete(n.fleet, s.id)
	delete(n.byRev[s.rev.key()], s.id)
	if len(n.byRev[s.rev.key()]) == 0 {
		delete(n.byRev, s.rev.key())
	}
	if release {
		n.ledger.release(need(s.rev.limits))
	}
	n.past = append(n.past, n.status(s))
	if len(n.past) > 256 {
		n.past = append(n.past[:0:0], n.past[len(n.past)-128:]...)
	}
	n.wake()
	n.mu.Unlock()
	close(s.gone)
	n.touch()
}

// cleanupContext outlives the node's own end: removal must finish during it.
func cleanupContext(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), d)
}

// closeConns ends the control connection and its listener.
func (s *sandbox) closeConns() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ln != nil {
		s.ln.Close()
	}
	if s.conn != nil {
		s.conn.Close()
	}
}

// tell sends a frame to the agent if it is connected; a broken connection shows
// at its reader.
func (s *sandbox) tell(c api.Control) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil {
		return
	}
	_ = s.conn.SetWriteDeadline(time.Now().Add(5 * time.Second))
	if err := api.WriteControl(s.conn, c); err != nil {
		s.conn.Close()
	}
}

// status describes s. The caller holds n.mu.
func (n *Node) status(s *sandbox) api.SandboxStatus {
	st := api.SandboxStatus{
		ID: s.id, Node: n.cfg.ID, Function: s.rev.name, Revision: s.rev.digest, State: s.state.String(),
		InFlight: s.inFlight, StartedAt: s.began.UnixMilli(), Evidence: s.evidence, LastError: s.lastErr,
	}
	if !s.readyAt.IsZero() {
		st.StartMs = s.readyAt.Sub(s.began).Milliseconds()
	}
	return st
}

// pidOf reads from a pidfd which process it is, as this process's pid
// namespace numbers it (proc_pid_fdinfo(5)).
func pidOf(pidfd int) (int, error) {
	b, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(pidfd))
	if err != nil {
		return 0, fmt.Errorf("launcher's pidfd: %w", err)
	}
	for line := range lines(b) {
		var pid int
		if _, err := fmt.Sscanf(line, "Pid:\t%d", &pid); err == nil && pid > 0 {
			return pid, nil
		}
	}
	return 0, errors.New("launcher's pidfd: no such process here")
}
