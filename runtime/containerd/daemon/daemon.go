// Package daemon runs a private containerd: the installed program with a
// configuration, root, state and socket of our own, so that a cluster on one
// machine, or a test, shares nothing with the containerd of the host.
//
// It promises that Start returns when the daemon serves or with an error that
// says why not, and that Stop ends the daemon and leaves no socket behind. It
// does not end tasks: whoever created them removes them first, and Stop
// refuses to call it success where their shims still run.
//
// The daemon outlives its parent: a parent that was killed finds it again by
// its pid file, or by its command line, and uses it. A daemon that died leaves a stale pid file, which
// Start replaces.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Config says where the daemon lives.
type Config struct {
	Dir     string        // everything of the daemon: root, state, socket, log, configuration
	Socket  string        // unix socket to serve on; "" is Dir/containerd.sock
	Program string        // containerd, a name in PATH or a path
	Runc    string        // runc, only looked for so that its absence is told early
	Start   time.Duration // how long the daemon may take to serve
	Stop    time.Duration // how long it may take to end before it is killed
	Log     *slog.Logger
}

// Default is the configuration for a daemon in dir.
func Default(dir string) Config {
	return Config{
		Dir: dir, Program: "containerd", Runc: "runc",
		Start: 30 * time.Second, Stop: 10 * time.Second, Log: slog.New(slog.DiscardHandler),
	}
}

// Daemon is a running private containerd.
type Daemon struct {
	cfg    Config
	pid    int
	exited chan struct{} // closed when a daemon that we started was reaped
}

// maxSocketPath is the size of sockaddr_un.sun_path less its final NUL.
const maxSocketPath = 107

// ErrNotInstalled means that containerd or runc is not on this machine.
var ErrNotInstalled = errors.New("daemon: not installed")

// Start brings the daemon up, or finds the one that already runs in cfg.Dir,
// and waits until it accepts connections.
func Start(ctx context.Context, cfg Config) (_ *Daemon, retErr error) {
	if cfg.Socket == "" {
		cfg.Socket = filepath.Join(cfg.Dir, "containerd.sock")
	}
	// containerd serves ttrpc on the same path with a suffix.
	if n := len(cfg.Socket) + len(".ttrpc"); n > maxSocketPath {
		return nil, fmt.Errorf("daemon: socket path %s is %d bytes too long for a unix socket: choose a shorter directory", cfg.Socket, n-maxSocketPath)
	}
	program, err := installed(cfg.Program, "containerd")
	if err != nil {
		return nil, err
	}
	if _, err := installed(cfg.Runc, "runc"); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.Start)
	defer cancel()

	d := &Daemon{cfg: cfg}
	if pid, ok := d.running(); ok {
		d.pid = pid
		err := d.wait(ctx)
		if err == nil {
			return d, writePID(d.pidFile(), pid)
		}
		// One that was about to die when it was found is replaced.
		gctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		if d.gone(gctx) != nil {
			return nil, fmt.Errorf("the containerd of an earlier start (pid %d) is of no use: %w", pid, err)
		}
	}
	if err := d.prepare(); err != nil {
		return nil, err
	}
	if err := d.spawn(program); err != nil {
		return nil, err
	}
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, d.kill())
		}
	}()
	return d, d.wait(ctx)
}

func installed(program, pkg string) (string, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return "", fmt.Errorf("%w: %s: install the package %q (apt-get install %s) or run scripts/setup.sh: %w", ErrNotInstalled, program, pkg, pkg, err)
	}
	return path, nil
}

// Address is the unix socket that the daemon serves on.
func (d *Daemon) Address() string { return d.cfg.Socket }

// PID is the daemon's process id.
func (d *Daemon) PID() int { return d.pid }

// LogFile is where the daemon writes.
func (d *Daemon) LogFile() string { return filepath.Join(d.cfg.Dir, "containerd.log") }

func (d *Daemon) spawn(program string) error {
	log, err := os.OpenFile(d.LogFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open the daemon's log: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(program, "--config", d.configFile())
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = "/"
	// A session of its own: a Ctrl-C for the parent must not end the daemon
	// before the parent has removed its tasks. No Pdeathsig: it fires on the
	// death of a thread, and a daemon that survives its parent is wanted.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", program, err)
	}
	d.pid = cmd.Process.Pid
	d.exited = make(chan struct{})
	go func() { // ends with the daemon; reaps it
		_ = cmd.Wait() // how it ended is in its log
		close(d.exited)
	}()
	if err := writePID(d.pidFile(), d.pid); err != nil {
		return errors.Join(err, d.kill())
	}
	return nil
}

// wait polls until the daemon accepts a connection on both of its sockets,
// which it opens after its plug-ins are up, and checks that they are.
func (d *Daemon) wait(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		if last = dial(ctx, d.cfg.Socket); last == nil {
			if last = dial(ctx, d.cfg.Socket+".ttrpc"); last == nil {
				// A daemon that is about to end still takes connections for a moment.
				if last = d.usable(ctx); last == nil || !unreachable(last) {
					return last
				}
			}
		}
		// One that an earlier parent started is nobody's child here, so that only
		// its command line tells; that of a new one may not be there yet.
		if d.exited == nil && !d.alive(d.pid) {
			return fmt.Errorf("containerd (pid %d) ended while it started; see %s", d.pid, d.LogFile())
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("containerd (pid %d) does not serve on %s: %w; see %s", d.pid, d.cfg.Socket, errors.Join(last, ctx.Err()), d.LogFile())
		case <-d.exited: // nil, so never, for a daemon that an earlier parent started
		case <-tick.C:
		}
	}
}

func dial(ctx context.Context, socket string) error {
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	return c.Close()
}

// Stop ends the daemon: SIGTERM, SIGKILL after cfg.Stop, and removes its
// sockets and pid file. Images and logs stay. It is an error if shims of the
// daemon still run.
func (d *Daemon) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Stop)
	defer cancel()
	if err := syscall.Kill(d.pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("end containerd (pid %d): %w", d.pid, err)
	}
	if err := d.gone(ctx); err != nil {
		d.cfg.Log.Warn("containerd did not end in time and is killed", "pid", d.pid)
		if err := d.kill(); err != nil {
			return err
		}
	}
	for _, f := range []string{d.cfg.Socket, d.cfg.Socket + ".ttrpc", d.pidFile()} {
		if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("clean up after containerd: %w", err)
		}
	}
	shims, err := d.shims()
	if err != nil {
		return err
	}
	if len(shims) > 0 {
		return fmt.Errorf("containerd ended, but %d of its shims still run (pids %v): remove sandboxes before stopping it", len(shims), shims)
	}
	return nil
}

// gone waits for the daemon's end.
func (d *Daemon) gone(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		// One that an earlier parent started is nobody's child here, so that only
		// its command line tells; that of a new one may not be there yet.
		if d.exited == nil && !d.alive(d.pid) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-d.exited:
			return nil
		case <-tick.C:
		}
	}
}

func (d *Daemon) kill() error {
	if err := syscall.Kill(d.pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill containerd (pid %d): %w", d.pid, err)
	}
	ctx, cancel := cleanupContext()
	defer cancel()
	if err := d.gone(ctx); err != nil {
		return fmt.Errorf("containerd (pid %d) survives SIGKILL: %w", d.pid, err)
	}
	return nil
}

// cleanupContext bounds clean-up that must happen although the caller's own
// context may be over.
func cleanupContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 5*time.Second)
}
