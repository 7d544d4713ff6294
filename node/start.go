package node

import (
	"context"
	"errors"
	goruntime "runtime"
	"slices"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/runtime"
)

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
	if stopped {
		n.unclaim(s)
	} else {
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
	id, way, waited := s.id, s.way, !s.hit
	s.waiting = nil
	n.mu.Unlock()
	n.noteStart(s, err)
	took := time.Since(s.began)
	if err == nil {
		// What waits for s goes first; all that follows can happen while the
		// function works. The coordinator is to know of the new sandbox before its
		// next call: gossip may be later, and a second node would start another.
		goruntime.Gosched()
		n.publish()
	}
	close(s.told)
	n.touch()
	if err != nil {
		n.met.starts.WithLabelValues(api.CodeOf(err).Label()).Inc()
		n.noteStartFailed(s, err, took)
		n.log.Warn("sandbox did not start", "sandbox", id, "function", s.rev.name, "after", took, "err", err)
		n.remove(s, err.Error())
		return
	}
	n.met.starts.WithLabelValues("ok").Inc()
	n.met.startSeconds.Observe(took.Seconds())
	n.log.Info("sandbox ready", "sandbox", id, "function", s.rev.name, "took", took, "start", way, "waited", waited)
}

// errUnfit is why a box of the pool could not become a sandbox of a function:
// another one, or a sandbox of its own, may.
type errUnfit struct{ error }

func (e errUnfit) Unwrap() error { return e.error }

// bringUp makes s a running sandbox, and returns once its agent reported ready:
// with a box of the pool, with another if that one is unfit, and with a sandbox
// created for it where the pool cannot help.
func (n *Node) bringUp(ctx context.Context, s *sandbox) error {
	if err := n.clearPorts(s); err != nil {
		n.unclaim(s)
		return err
	}
	img, err := n.dep.Runtime.Pull(ctx, n.imageRef(s.rev), s.rev.image)
	if err != nil {
		n.unclaim(s)
		return startError(err, "the image could not be pulled")
	}
	why := "the pool is turned off"
	if n.cfg.PoolMax > 0 {
		why = ""
		if err := n.dep.Runtime.CanBind(img); err != nil {
			why = err.Error()
		}
	}
	if why != "" {
		n.unclaim(s)
	}
	for try := 0; why == ""; try++ {
		b, barred, err := n.takeBox(ctx, s)
		if err != nil {
			return err
		}
		if b == nil {
			why = barred
			break
		}
		err = n.become(ctx, s, b, n.spec(s, img))
		var unfit errUnfit
		if !errors.As(err, &unfit) || ctx.Err() != nil {
			return err
		}
		n.log.Warn("a waiting sandbox did not take a function", "sandbox", b.id, "function", s.rev.name, "err", unfit.error)
		if !n.shed(s, b) {
			return api.Wrap(api.CodeStartFailed, err, "a sandbox that took no function could not be removed")
		}
		if try == 1 {
			why = "two waiting sandboxes did not take it: " + unfit.Error()
		}
	}
	return n.plain(ctx, s, n.spec(s, img), why)
}

// spec is what s asks of the runtime, but for the place.
func (n *Node) spec(s *sandbox, img runtime.Image) runtime.Spec {
	n.mu.Lock()
	reserved := s.reservedText()
	n.mu.Unlock()
	spec := runtime.Spec{
		Reserved: reserved,
		Function: s.rev.name, Revision: s.rev.key(), Image: img,
		Resources: s.rev.limits, AllowInet: s.rev.inet || s.rev.networked(),
		Tmpfs: []runtime.Tmpfs{{Path: secretsPath, Bytes: secretsBytes}},
	}
	if d := s.rev.desc; d != nil && d.Config.BundleMount != "" {
		spec.Tmpfs = append(spec.Tmpfs, runtime.Tmpfs{Path: d.Config.BundleMount, Bytes: s.rev.bundleBytes(), Exec: true})
	}
	return spec
}

// plain creates a sandbox with the image as its root.
func (n *Node) plain(ctx context.Context, s *sandbox, spec runtime.Spec, why string) error {
	b := newBox(newSandboxID(), "")
	b.dir = n.boxDir(b.id)
	n.mu.Lock()
	n.give(s, b)
	s.way, s.why, s.hit = api.StartPlain, why, false
	n.mu.Unlock()
	// uid and gid are decided by the runtime from the image and given to the
	// agent with Bind.
	spec.ID, spec.AgentPath, spec.SocketDir = b.id, n.cfg.AgentPath, b.dir
	err := n.create(b, func() (runtime.Sandbox, error) { return n.dep.Runtime.Create(ctx, spec) })
	if err != nil {
		return startError(err, "the sandbox could not be created")
	}
	if err := b.greeting(ctx); err != nil {
		return err
	}
	return n.become(ctx, s, b, spec)
}

// become makes b a sandbox of the function. Before the word that lets the function
// run comes the second check, and what its needs ask for beyond limits. Its keys
// are asked for once the function can start: they are needed no sooner than it
// answers, and what releases and opens them would take the processor from the
// mounts.
func (n *Node) become(ctx context.Context, s *sandbox, b *box, spec runtime.Spec) error {
	started, cancel := context.WithCancel(ctx)
	defer cancel()
	n.mu.Lock()
	s.up = n.agentUpstream(b)
	n.mu.Unlock()
	frames, err := s.frames(spec.Image.Config)
	if err != nil {
		return startError(err, "the function's descriptor and image could not be told to an agent")
	}
	// The agent verifies while the runtime mounts.
	b.sayBind(frames)
	room := make(chan error, 1)
	n.spawn(func() {
		err := n.checkRoom(s)
		if err == nil {
			err = n.checkSigned(ctx, s)
		}
		room <- err
	})
	rt := b.runtime()
	if rt.Info().Blank {
		began := time.Now()
		if err := rt.Bind(ctx, spec); err != nil {
			return errUnfit{startError(err, "the image could not be mounted into a waiting sandbox")}
		}
		n.met.bindSeconds.Observe(time.Since(began).Seconds())
		n.passed(s, "bind", began)
	}
	if err := <-room; err != nil {
		return err
	}
	if err := n.attach(ctx, s, b); err != nil {
		return err
	}
	if err := n.checkPromise(s, b, spec.Image); err != nil {
		return err
	}
	info := rt.Info()
	b.say(&api.Control{Mounted: &api.Mounted{UID: info.UID, GID: info.GID, Inet: s.rev.networked()}})
	n.spawn(func() { n.unlock(started, s, b) })
	select {
	case err := <-b.outcome:
		return err
	case <-ctx.Done():
		return api.Errorf(api.CodeFunctionNotReady, "the function did not become ready within %s", s.rev.start)
	}
}

// frames make an agent the function's, and tell it whose invocation waits.
func (s *sandbox) frames(image api.ImageConfig) ([]byte, error) {
	b, err := s.rev.bindFrame(image)
	if err != nil || len(s.waiting) == 0 {
		return b, err
	}
	return api.AppendControl(slices.Clip(b), api.Control{Waiting: &api.Waiting{Grant: s.waiting}})
}
