package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/agent/launcher"
	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// Agent is the agent of one sandbox.
type Agent struct {
	cfg  Config
	log  *slog.Logger
	life context.Context // ends when everything does

	launcher *launcher.Launcher
	link     *link
	logs     *logSink
	oom      *oomWatch

	ephemeral *unseal.PrivateKey // what keys are released to

	fn     atomic.Pointer[function] // set when invocations are served
	failed atomic.Pointer[api.Error]

	mu        sync.Mutex
	bound     *binding // set when the descriptor was verified
	statement []byte   // about the ephemeral key; nil once there are keys

	kit *kit // for the function to come; nil if it is not made ahead

	restated chan struct{} // the node asked for a new statement

	binds   chan *api.Bind
	waiting chan *api.Waiting
	mounted chan *api.Mounted
	keys    chan api.Control // Keys or Refused
	stops   chan api.Stop
	bundles chan *bundleTransfer
}

// bundleTransfer is a sealed bundle that the node is sending.
type bundleTransfer struct {
	body io.Reader
	done chan error
}

// Run is the agent's whole life: it returns nil when the sandbox was stopped,
// by ctx or by the node, and an error when it could not serve any longer.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.check(); err != nil {
		return err
	}
	// What serves goes on while the function is being stopped.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	a := &Agent{cfg: cfg, log: cfg.Logger, life: life,
		logs: newLogSink(cfg.Now, cfg.Logger, cfg.LogBuffer), restated: make(chan struct{}, 1),
		binds: make(chan *api.Bind, 1), waiting: make(chan *api.Waiting, 1), mounted: make(chan *api.Mounted, 1),
		keys: make(chan api.Control, 1), stops: make(chan api.Stop, 1), bundles: make(chan *bundleTransfer)}
	var err error
	if a.ephemeral, err = unseal.NewKey(cfg.Random); err != nil {
		return fmt.Errorf("agent: ephemeral key: %w", err)
	}
	if err := a.restate(); err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	if a.launcher, err = launcher.Start(ctx, cfg.Launcher); err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	reaper := startReaper(a.launcher.PID, cfg.ReapAll)
	defer reaper.close()
	defer a.launcher.Close()
	if cfg.Confine != nil {
		if err := cfg.Confine(); err != nil {
			return fmt.Errorf("agent: %w", err)
		}
	}
	ln, err := a.listen()
	if err != nil {
		return fmt.Errorf("agent: listen: %w", err)
	}
	if cfg.Launcher.Blank { // or the function is known already, and may need none
		if a.kit, err = newKit(); err != nil {
			_ = ln.Close()
			return fmt.Errorf("agent: %w", err)
		}
		defer func() { a.kit.close() }()
	}
	srv := a.newServer()
	a.link = &link{cfg: &a.cfg, log: a.log, hello: a.hello, deliver: a.deliver}
	a.oom = newOOMWatch(a.link.send)

	var all sync.WaitGroup
	defer all.Wait()
	defer end() // before the wait
	all.Go(func() {
		if err := srv.Serve(ln); err != nil {
			a.log.Error("serve", "err", err)
		}
	})
	defer func() {
		shutdown(srv)
		_ = ln.Close() // shutdown knows a listener only once Serve has begun
	}()
	linkCtx, endLink := context.WithCancel(life)
	defer endLink()
	all.Go(func() { a.link.run(linkCtx) })
	logCtx, endLogs := context.WithCancel(life)
	logsDone := make(chan struct{})
	all.Go(func() {
		defer close(logsDone)
		a.logs.run(logCtx, a.link.connected, a.link.send)
	})
	defer func() { // the last lines go out before the link does
		endLogs()
		<-logsDone
	}()
	return a.serve(ctx)
}

// shutdown ends the server: connections that are idle at once, the others when
// their reply is out, none later than a moment after the function has ended.
func shutdown(srv *fasthttp.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = srv.ShutdownWithContext(ctx)
}

// serve binds the sandbox, starts its function and waits for what ends it.
func (a *Agent) serve(ctx context.Context) error {
	f, stop, err := a.become(ctx)
	if err == nil && stop == nil {
		a.fn.Store(f)
		a.link.say(&api.Control{Ready: &api.Empty{}})
		stop, err = a.wait(ctx, f)
	}
	if err != nil {
		a.report(f, err)
		t := time.NewTimer(a.cfg.Linger)
		defer t.Stop()
		select { // the node takes the sandbox away; callers still get their answers
		case s := <-a.stops:
			stop = &s
		case <-ctx.Done():
		case <-t.C:
		}
	}
	if f != nil {
		grace := a.cfg.StopGrace
		if stop != nil {
			grace = time.Duration(stop.GraceMs) * time.Millisecond
		}
		f.stop(grace)
	}
	return err
}

// report tells the node and the owner why this sandbox serves no longer.
func (a *Agent) report(f *function, err error) {
	var e *api.Error
	if !errors.As(err, &e) {
		e = api.Wrap(api.CodeStartFailed, err, err.Error())
	}
	a.failed.Store(e)
	a.logs.platform("%s: %s", e.Code, e.Message)
	if e.Err != nil {
		a.logs.platform("cause: %v", e.Err)
	}
	a.log.Error("sandbox failed", "code", string(e.Code), "err", e.Message)
	if f != nil && f.proc != nil {
		select {
		case <-f.dead:
			a.link.say(&api.Control{Exited: &f.exit})
			return
		default:
		}
	}
	p := api.ProblemOf(e, "")
	a.link.say(&api.Control{Failed: &p})
}

// settleAfter is how long after its start an agent takes the number of
// processors that it serves with.
const settleAfter = time.Second

// wait returns when the sandbox is to stop or its function ended.
func (a *Agent) wait(ctx context.Context, f *function) (*api.Stop, error) {
	dead := f.dead
	if f.proc == nil {
		dead = nil
	}
	// Not at once: it halts everything for a moment, and the first invocation
	// comes now.
	settled := time.NewTimer(settleAfter)
	defer settled.Stop()
	forget := time.NewTicker(a.cfg.Forget)
	defer forget.Stop()
	for {
		select {
		case <-forget.C:
			f.forget()
		case <-settled.C:
			if a.cfg.Processors != nil {
				a.cfg.Processors(f.b.cpu)
			}
		case <-ctx.Done():
			return nil, nil
		case s := <-a.stops:
			return &s, nil
		case <-dead:
			return nil, f.cause
		case <-a.launcher.Done():
			if f.proc != nil {
				<-f.dead
			}
			return nil, api.Errorf(api.CodeFunctionCrashed, "the launcher ended, and the function with it")
		case sig := <-a.cfg.Signals:
			if s, ok := sig.(syscall.Signal); ok {
				f.signal(s)
			}
		}
	}
}

// become turns the empty sandbox into one of a function. A Stop meanwhile is
// returned; f is there as soon as something of the function may run.
func (a *Agent) become(ctx context.Context) (f *function, stop *api.Stop, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var stopped atomic.Pointer[api.Stop]
	var watch sync.WaitGroup
	defer watch.Wait()
	quit := make(chan struct{})
	defer close(quit)
	watch.Go(func() {
		select {
		case s := <-a.stops:
			stopped.Store(&s)
			cancel(nil)
		case <-a.launcher.Done():
			cancel(api.Errorf(api.CodeStartFailed, "the launcher ended"))
		case <-quit:
		}
	})
	f, err = a.bind(ctx)
	if s := stopped.Load(); s != nil {
		return f, s, nil
	}
	if cause := context.Cause(ctx); cause != nil {
		var e *api.Error
		if errors.As(cause, &e) {
			return f, nil, e
		}
		return f, &api.Stop{GraceMs: a.cfg.StopGrace.Milliseconds()}, nil
	}
	return f, nil, err
}

// askBundle has the node send the sealed bundle and takes it.
func (a *Agent) askBundle(ctx context.Context, n *binding) (map[string]string, error) {
	a.link.say(&api.Control{NeedBundle: &api.Empty{}})
	defer a.link.say(nil)
	select {
	case t := <-a.bundles:
		env, err := takeBundle(ctx, &a.cfg, n, a.launcher, t.body)
		t.done <- err
		return env, err
	case <-ctx.Done():
		return nil, waited(ctx, "for the sealed bundle")
	}
}

func waited(ctx context.Context, what string) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return api.Errorf(api.CodeStartFailed, "the start timeout passed while waiting %s", what)
	}
	return ctx.Err()
}

// putBundle receives the sealed bundle, once, when it was asked for.
func (a *Agent) putBundle(ctx *fasthttp.RequestCtx) {
	a.mu.Lock()
	n := a.bound
	a.mu.Unlock()
	if n == nil || a.fn.Load() != nil {
		refuse(ctx, api.Errorf(api.CodeConflict, "no bundle was asked for"))
		return
	}
	var body io.Reader = ctx.RequestBodyStream()
	if ctx.RequestBodyStream() == nil {
		body = &wiped{ctx.PostBody()}
	}
	src := &source{conn: ctx.Conn(), r: body, gap: n.read}
	defer src.close()
	t := &bundleTransfer{body: src, done: make(chan error, 1)}
	timer := time.NewTimer(n.start)
	defer timer.Stop()
	var err error
	select {
	case a.bundles <- t:
		err = <-t.done
	case <-timer.C:
		err = api.Errorf(api.CodeConflict, "no bundle was asked for")
	case <-a.life.Done():
		err = api.Errorf(api.CodeDraining, "the sandbox is being stopped")
	}
	if err != nil {
		problem(ctx, err)
		ctx.SetConnectionClose()
		return
	}
	ctx.SetStatusCode(fasthttp.StatusNoContent)
	setWriteDeadline(ctx, api.DefaultWriteTimeout)
}

// notServing says why there is no function to invoke.
func (a *Agent) notServing() error {
	if e := a.failed.Load(); e != nil {
		return e
	}
	return api.Errorf(api.CodeFunctionNotReady, "the sandbox does not serve yet")
}

// hello introduces this agent on a new connection. Until it is bound, the
// launcher's pidfd goes along, for the node to move it into its cgroup.
func (a *Agent) hello() (api.Hello, *os.File) {
	h := api.Hello{Protocol: api.ControlProtocol, Version: a.cfg.Version}
	a.mu.Lock()
	defer a.mu.Unlock()
	h.Statement = a.statement
	if a.bound == nil {
		return h, a.launcher.PIDFD
	}
	h.Bound, h.Revision = true, a.bound.id
	h.Ready = a.fn.Load() != nil && a.failed.Load() == nil
	return h, nil
}

// deliver takes one frame from the node. Frames that nobody waits for are dropped.
func (a *Agent) deliver(c api.Control) {
	switch {
	case c.Bind != nil:
		select {
		case a.binds <- c.Bind:
		default:
		}
	case c.Waiting != nil:
		select {
		case a.waiting <- c.Waiting:
		default:
		}
	case c.Mounted != nil:
		select {
		case a.mounted <- c.Mounted:
		default:
		}
	case c.Keys != nil || c.Refused != nil:
		select {
		case a.keys <- c:
		default:
		}
	case c.Attest != nil:
		a.reattest()
	case c.OOM != nil:
		a.oom.answer(*c.OOM)
	case c.Stop != nil:
		select {
		case a.stops <- *c.Stop:
		default:
		}
	}
}

// reattest answers the node, whose evidence about this sandbox is getting old.
func (a *Agent) reattest() {
	if err := a.restate(); err != nil {
		a.log.Error("statement", "err", err)
		return
	}
	a.mu.Lock()
	st := a.statement
	a.mu.Unlock()
	if err := a.link.send(api.Control{Statement: &api.Attested{Statement: st}}); err != nil {
		a.log.Debug("statement", "err", err) // a new connection begins with one
	}
	select {
	case a.restated <- struct{}{}:
	default:
	}
}
