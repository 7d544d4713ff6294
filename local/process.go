package local

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is one supervised part.
type process struct {
	name    string
	health  func(context.Context) error // nil when it serves
	path    string
	args    []string
	log     string
	pidFile string

	mu       sync.Mutex
	cmd      *exec.Cmd
	stopping bool
	deaths   []time.Time
	wake     chan struct{} // closed to stop waiting before a new start
	done     chan struct{} // closed when the supervisor ended
	failed   chan struct{} // closed when it died too often
}

// tooOften deaths within a minute end the cluster.
const tooOften = 5

// spawn starts a part and returns when the URL health answers 200.
func (c *Cluster) spawn(ctx context.Context, name, health, path string, args ...string) error {
	return c.spawnWith(ctx, name, func(ctx context.Context) error { return answers(ctx, health) }, path, args...)
}

func answers(ctx context.Context, url string) error {
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d", resp.StatusCode)
	}
	return errors.Join(err, resp.Body.Close())
}

// spawnWith starts a part and returns when health finds that it serves.
func (c *Cluster) spawnWith(ctx context.Context, name string, health func(context.Context) error, path string, args ...string) error {
	p, err := c.launch(name, health, path, args...)
	if err != nil {
		return err
	}
	return c.served(ctx, p)
}

// launch starts a part and does not wait for it.
func (c *Cluster) launch(name string, health func(context.Context) error, path string, args ...string) (*process, error) {
	p := &process{
		name: name, health: health, path: path, args: args,
		log: filepath.Join(c.logs(), name+".log"), pidFile: filepath.Join(c.run, name+".pid"),
		wake: make(chan struct{}), done: make(chan struct{}), failed: make(chan struct{}),
	}
	c.procs = append(c.procs, p)
	started := make(chan error, 1)
	go p.supervise(started)
	return p, <-started
}

// served returns when a part serves.
func (c *Cluster) served(ctx context.Context, p *process) error {
	if err := p.waitHealthy(ctx); err != nil {
		return fmt.Errorf("%w\n%s", err, c.lastLines(p.name))
	}
	return nil
}

// supervise runs the part until it is stopped. It keeps one OS thread: the
// kernel's parent-death signal goes out when the thread that forked ends.
func (p *process) supervise(started chan<- error) {
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	defer close(p.done)
	first := true
	for {
		err := p.start()
		if first {
			started <- err
			first = false
			if err != nil {
				return
			}
		}
		if err == nil {
			err = p.cmd.Wait()
		}
		_ = os.Remove(p.pidFile)
		p.mu.Lock()
		stopping := p.stopping
		now := time.Now()
		p.deaths = append(p.deaths, now)
		if len(p.deaths) > tooOften {
			p.deaths = p.deaths[1:]
		}
		often := len(p.deaths) == tooOften && now.Sub(p.deaths[0]) < time.Minute
		p.mu.Unlock()
		if stopping {
			return
		}
		p.note("ended (%v); starting it again", err)
		if often {
			close(p.failed)
			return
		}
		t := time.NewTimer(time.Second)
		select {
		case <-t.C:
		case <-p.wake:
			t.Stop()
			return
		}
	}
}

// start forks the part with its log and leaves its pid for a later run.
func (p *process) start() error {
	f, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd := exec.Command(p.path, p.args...)
	cmd.Stdout, cmd.Stderr = f, f
	// Its own group: a Ctrl-C at the terminal reaches it through Stop, in order.
	// When this process is killed, the part drains by itself.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopping {
		return errors.New("stopped")
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	p.cmd = cmd
	return os.WriteFile(p.pidFile, []byte(strconv.Itoa(cmd.Process.Pid)+" "+p.path+"\n"), 0o600)
}

func (p *process) note(format string, args ...any) {
	if f, err := os.OpenFile(p.log, os.O_APPEND|os.O_WRONLY, 0o600); err == nil {
		fmt.Fprintf(f, "up: "+format+"\n", args...)
		f.Close()
	}
}

// waitHealthy polls the part's health endpoint.
func (p *process) waitHealthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		if p.health(ctx) == nil {
			return nil
		}
		t := time.NewTimer(20 * time.Millisecond)
		select {
		case <-t.C:
		case <-p.failed:
			t.Stop()
			return fmt.Errorf("%s keeps ending", p.name)
		case <-p.done:
			t.Stop()
			return fmt.Errorf("%s ended", p.name)
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("%s does not serve: %w", p.name, ctx.Err())
		}
	}
}

// stop ends the part: SIGTERM, then SIGKILL when ctx ends.
func (p *process) stop(ctx context.Context) error {
	p.mu.Lock()
	if !p.stopping {
		p.stopping = true
		close(p.wake)
	}
	cmd := p.cmd
	p.mu.Unlock()
	if cmd != nil {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended already
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
	}
	if cmd != nil {
		_ = cmd.Process.Kill()
	}
	<-p.done
	return fmt.Errorf("%s did not stop in time and was killed", p.name)
}

// stopStale ends what an earlier run that was killed left behind.
func (c *Cluster) stopStale() error {
	files, err := filepath.Glob(filepath.Join(c.run, "*.pid"))
	if err != nil {
		return err
	}
	for _, f := range files {
		if filepath.Base(f) == "containerd.pid" {
			continue
		}
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		pidText, path, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
		pid, err := strconv.Atoi(pidText)
		if err != nil || pid < 2 {
			continue
		}
		// Only the very binary: pids are used again.
		exe, err := os.Readlink("/proc/" + pidText + "/exe")
		if err != nil || strings.TrimSuffix(exe, " (deleted)") != path {
			_ = os.Remove(f)
			continue
		}
		c.log.Info("ending a part of an earlier run", "pid", pid, "path", path)
		_ = syscall.Kill(pid, syscall.SIGTERM)
		for deadline := time.Now().Add(40 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
			if syscall.Kill(pid, 0) != nil {
				break
			}
		}
		_ = syscall.Kill(pid, syscall.SIGKILL)
		_ = os.Remove(f)
	}
	return nil
}
