package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/faasd-sec/faasd-sec/agent/launcher"
	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
	"github.com/faasd-sec/faasd-sec/upstream"
)

// function is a bound function that can be invoked.
type function struct {
	cfg      *Config
	b        *binding
	launcher *launcher.Launcher
	logs     *logSink
	oom      *oomWatch
	opener   *unseal.Opener
	opened   *unseal.Cache      // the opener's grants
	grants   *sealed.GrantCache // of replies and logs
	env      []string
	hold     *budget // decrypted bodies that wait
	inline   *budget // requests that were read whole at once
	spools   *budget

	client *upstream.Client  // http mode
	proc   *launcher.Process // http mode

	inFlight atomic.Int64
	stopping atomic.Bool
	primed   atomic.Bool // the first request's reply grant is being made

	looked chan struct{} // closed once the grant that was foreseen is opened or refused; nil if none was
	kit    *kit          // what of a start was made before there was a function

	dead  chan struct{} // closed when the function's process ended, http mode
	cause *api.Error    // why; after dead
	exit  api.Exited    // how; after dead

	mu      sync.Mutex
	running map[*launcher.Process]struct{} // processes of requests
	pipes   sync.WaitGroup                 // readers of the processes' output
}

// newFunction makes a bound function, which start and unlock complete. Its replay
// set and grant caches live as long as the sandbox, which serves one revision ever.
func newFunction(cfg *Config, b *binding, l *launcher.Launcher, logs *logSink, oom *oomWatch) *function {
	return &function{cfg: cfg, b: b, launcher: l, logs: logs, oom: oom,
		hold: newBudget(cfg.HoldBytes), inline: newBudget(cfg.ReadBytes), spools: newBudget(cfg.SpoolBytes),
		dead: make(chan struct{}), running: make(map[*launcher.Process]struct{})}
}

// unlock makes it able to open requests, once the binding has its keys.
func (f *function) unlock(grants *sealed.GrantCache) error {
	cfg := f.cfg
	f.grants = grants
	replay, err := sealed.NewReplaySet(sealed.ReplayConfig{Size: cfg.ReplaySize, Clock: cfg.Now})
	if err != nil {
		return err
	}
	cacheConfig := unseal.DefaultCacheConfig()
	cacheConfig.Size = min(cacheConfig.Size, 512)
	cache, err := unseal.NewCache(cacheConfig)
	if err != nil {
		return err
	}
	f.opened = cache
	f.opener, err = unseal.NewOpener(unseal.Config{Keys: f.b.keys, Cache: cache, Replay: replay, Clock: cfg.Now})
	return err
}

// forget wipes the seeds of grants whose window has ended. A function that is not
// called any more has nobody else who would.
func (f *function) forget() {
	if f.opened != nil {
		f.opened.Expire(uint64(max(0, f.cfg.Now().UnixMilli())))
	}
}

// start brings an http function up, with env of its bundle beside the image's,
// and returns when it serves. Functions run by exec need nothing more.
// asked, unless nil, is called once the launcher has been asked for its process.
func (f *function) start(ctx context.Context, bundle map[string]string, asked func()) error {
	f.env = environ(f.b.image.Env, bundle)
	if !f.b.hosts() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, f.b.start)
	defer cancel()
	cfg := upstream.DefaultConfig()
	cfg.MaxIdle = int(min(f.b.inFlight, int64(cfg.MaxIdle)))
	k := f.kit
	if k == nil {
		var err error
		if k, err = newKit(); err != nil {
			return fmt.Errorf("start the function: %w", err)
		}
	}
	f.kit = nil
	defer k.close()
	var listen *os.File
	env := f.env
	if f.b.network == "unix" {
		listen = k.listen
		addr := k.addr
		env = append(append(make([]string, 0, len(env)+3), env...), "LISTEN_FDS=1", "LISTEN_FDNAMES=http",
			fmt.Sprintf("FAASD_SEC_LISTEN_FD=%d", launcher.ListenFD))
		cfg.Dial = func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", addr)
		}
	} else {
		cfg.Host = f.b.addr
		cfg.Dial = func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", f.b.addr)
		}
	}
	f.logFrom(streamOut, &k.out)
	f.logFrom(streamErr, &k.err)
	proc, err := f.launcher.StartProcess(ctx, launcher.Spec{Argv: f.b.argv, Env: env, Dir: f.b.dir,
		Stdin: k.null, Stdout: k.out.theirs, Stderr: k.err.theirs, Listen: listen, Asked: asked})
	if err != nil {
		return f.startError(err)
	}
	f.proc, f.client = proc, upstream.New(cfg)
	go f.watch()
	if f.b.network == "unix" {
		f.client.Offer(k.conn)
		k.conn = nil
		// The socket takes connections already; the first request waits in it
		// until the function accepts. Nobody polls.
		return nil
	}
	if err := f.client.WaitAccept(ctx, proc.Done()); err != nil {
		select {
		case <-proc.Done():
			<-f.dead
			return f.cause
		default:
		}
		e := api.Wrap(api.CodeFunctionNotReady, err, fmt.Sprintf("the function takes no connection on %s after %s", f.b.addr, f.b.start))
		e.Remedy = "have it listen there, set `upstream` to where it does, or raise the start timeout; its log has more"
		return e
	}
	return nil
}

// startError explains why the function could not be executed.
func (f *function) startError(err error) *api.Error {
	e := api.Wrap(api.CodeStartFailed, err, "the function could not be started: "+err.Error())
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.ENOEXEC) {
		e.Field = "fprocess"
		e.Remedy = "name a program that the image or the bundle has, executable by every user, with its interpreter"
	}
	return e
}

// watch waits for the end of the function's process, finds out why it came and
// ends the requests under way. It ends with the process.
func (f *function) watch() {
	<-f.proc.Done()
	exit := f.proc.Exit()
	f.exit = api.Exited{ExitCode: exit.Code}
	if exit.Signal != 0 {
		f.exit.Signal = signalName(exit.Signal)
	}
	f.cause = f.whyDied(exit)
	f.exit.OOM = f.cause.Code == api.CodeOOMKilled
	close(f.dead)
	f.client.Close()
}

// whyDied turns an exit into what a caller and the owner are told.
func (f *function) whyDied(exit launcher.Exit) *api.Error {
	switch {
	case exit.Lost:
		return api.Errorf(api.CodeFunctionCrashed, "the launcher ended, and the function with it")
	case exit.Signal == syscall.SIGKILL && f.oom.killed():
		e := api.Errorf(api.CodeOOMKilled, "the function passed its memory limit and was killed")
		e.Field, e.Remedy = "limits.memory", "raise it, or send less at once"
		return e
	case exit.Signal != 0:
		return api.Errorf(api.CodeFunctionCrashed, "the function's process was ended by %s", signalName(exit.Signal))
	}
	return api.Errorf(api.CodeFunctionCrashed, "the function's process ended with exit code %d", exit.Code)
}

// logFrom has the lines of a pipe go to the log, and takes our end of it.
func (f *function) logFrom(stream uint, p *pipePair) {
	r := p.ours
	p.ours = nil
	f.pipes.Go(func() {
		defer r.Close()
		f.logs.lines(stream, r)
	})
}

// logPipe returns the writing end of a pipe whose lines go to the log.
func (f *function) logPipe(stream uint) (*os.File, error) {
	r, w, err := pipeTo(false)
	if err != nil {
		return nil, fmt.Errorf("pipe for the log: %w", err)
	}
	f.pipes.Go(func() {
		defer r.Close()
		f.logs.lines(stream, r)
	})
	return w, nil
}

// prime makes the grant of the first reply while the function, which may not even
// have started, works on the request. A grant that cannot be made shows again when
// the reply needs it.
func (f *function) prime(replyKey sealed.PublicKey) {
	if replyKey == (sealed.PublicKey{}) {
		return
	}
	if g, err := f.grants.Get(f.replyGrant(replyKey)); err == nil {
		g.Release()
	}
}

// replyGrant asks for the grant of replies to one key.
func (f *function) replyGrant(to sealed.PublicKey) sealed.GrantParams {
	return sealed.GrantParams{Role: sealed.RoleReply, Recipient: to, Sender: f.b.signer, Context: f.b.revision, Name: f.b.name}
}

// begin admits an invocation; end must follow.
func (f *function) begin() error {
	if f.stopping.Load() {
		return api.Errorf(api.CodeDraining, "the sandbox is being stopped")
	}
	select {
	case <-f.dead:
		return f.cause
	default:
	}
	if f.enter() {
		return nil
	}
	// The node hands a slot on when the caller has left, or has all of the reply,
	// which may be a moment before it is free here.
	late := time.NewTimer(handOver)
	defer late.Stop()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for {
		select {
		case <-poll.C:
			if f.enter() {
				return nil
			}
		case <-f.dead:
			return f.cause
		case <-late.C:
			e := api.Errorf(api.CodeBusy, "%d invocations are under way in this sandbox, which is its limit", f.b.inFlight)
			e.Field, e.Remedy = "max_inflight", "retry later"
			return e
		}
	}
}

// handOver is how long an invocation waits for the one before it to end: more than
// callerCheck.
const handOver = time.Second

func (f *function) enter() bool {
	if f.inFlight.Add(1) > f.b.inFlight {
		f.inFlight.Add(-1)
		return false
	}
	return true
}

func (f *function) end() { f.inFlight.Add(-1) }

// stop ends the function: SIGTERM, grace, SIGKILL. Processes of requests may
// use the grace to end by themselves.
func (f *function) stop(grace time.Duration) {
	f.stopping.Store(true)
	if f.proc != nil {
		f.proc.Signal(syscall.SIGTERM)
	}
	deadline := time.NewTimer(grace)
	defer deadline.Stop()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for waiting := true; waiting && !f.ended(); {
		select {
		case <-poll.C:
		case <-deadline.C:
			waiting = false
		case <-f.launcher.Done():
			waiting = false
		}
	}
	if f.proc != nil {
		f.proc.Signal(syscall.SIGKILL)
	}
	f.mu.Lock()
	for p := range f.running {
		p.Signal(syscall.SIGKILL)
	}
	f.mu.Unlock()
	if f.client != nil {
		f.client.Close()
	}
}

// ended reports whether nothing of the function runs any more.
func (f *function) ended() bool {
	f.mu.Lock()
	n := len(f.running)
	f.mu.Unlock()
	if n > 0 {
		return false
	}
	if f.proc == nil {
		return true
	}
	select {
	case <-f.dead:
		return true
	default:
		return false
	}
}

// signal passes a signal on to everything of the function that runs.
func (f *function) signal(sig syscall.Signal) {
	if f.proc != nil {
		f.proc.Signal(sig)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for p := range f.running {
		p.Signal(sig)
	}
}
