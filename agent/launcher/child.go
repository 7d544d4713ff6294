package launcher

import (
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Main is the launcher's whole life: it returns when the agent's end of the
// pair is closed, after it has killed what it started.
//
// A blank one was started without a function, as root of the sandbox in
// namespaces of its own: it sets them up, and becomes the function's when the
// agent says so. private are directories of the agent's alone.
func Main(blank bool, private ...string) error {
	// The function runs under the same uid: without this it could write our
	// memory through /proc. Executing the function makes it dumpable again.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("launcher: not dumpable: %w", err)
	}
	check := checkPowerless
	if blank {
		check = func() error { return settle(private) }
	}
	if err := check(); err != nil {
		return fmt.Errorf("launcher: %w", err)
	}
	// Whatever else we were started with must not reach a function: the Go
	// runtime closes only what it opened itself.
	if err := unix.CloseRange(SocketFD+1, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("launcher: mark descriptors: %w", err)
	}
	f := os.NewFile(SocketFD, "agent")
	if f == nil {
		return errors.New("launcher: descriptor 3 is not there: only the agent starts a launcher")
	}
	nc, err := net.FileConn(f)
	_ = f.Close() // FileConn has its own
	if err != nil {
		return fmt.Errorf("launcher: descriptor 3: %w", err)
	}
	conn, ok := nc.(*net.UnixConn)
	if !ok {
		return errors.New("launcher: descriptor 3 is not a unix socket")
	}
	defer conn.Close()
	reserveThreads(spareThreads)
	filter, err := Filter(FilterOptions{AllowEnter: blank})
	if err != nil {
		return err
	}
	if err := Install(filter); err != nil {
		return err
	}
	c := &child{conn: conn, blank: blank,
		running: make(map[int]uint64), pids: make(map[uint64]int)}
	return c.serve()
}

// spareThreads is how many idle threads the launcher keeps. It shares the
// function's limit of processes, and a Go program that needs a thread and gets
// none ends: a function that forks to its limit must not take the launcher along.
const spareThreads = 4

// reserveThreads has n more threads made, which the runtime keeps and reuses.
func reserveThreads(n int) {
	var ready, all sync.WaitGroup
	release := make(chan struct{})
	for range n {
		ready.Add(1)
		all.Go(func() {
			runtime.LockOSThread() // so that each has one of its own
			defer runtime.UnlockOSThread()
			ready.Done()
			<-release
		})
	}
	ready.Wait()
	close(release)
	all.Wait()
}

// checkPowerless refuses to run with a capability: nothing the agent does wrong
// may hand one to a function.
func checkPowerless() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	for _, d := range data {
		if d.Effective|d.Permitted|d.Inheritable != 0 {
			return errors.New("it was started with capabilities; it must have none")
		}
	}
	if os.Geteuid() == 0 || os.Getegid() == 0 {
		return errors.New("it was started as root; a function never runs as root")
	}
	return nil
}

// child is the launcher's state.
type child struct {
	conn  *net.UnixConn
	blank bool // not entered yet
	unfit bool // entering failed: nothing may start any more

	mu      sync.Mutex     // held from before a fork until its pid is in the maps
	running map[int]uint64 // pid → id
	pids    map[uint64]int // id → pid
}

func (c *child) serve() error {
	chld := make(chan os.Signal, 1)
	signal.Notify(chld, syscall.SIGCHLD)
	stop, reaped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(reaped)
		for {
			select {
			case <-chld:
				c.reap()
			case <-stop:
				return
			}
		}
	}()
	defer func() {
		signal.Stop(chld)
		close(stop)
		<-reaped
		c.killAll()
	}()
	if err := send(c.conn, message{Op: opReady, PID: os.Getpid()}); err != nil {
		return err
	}
	buf := make([]byte, maxMessage)
	var unpacking sync.WaitGroup
	defer unpacking.Wait()
	for {
		m, fds, err := receive(c.conn, buf)
		if err != nil {
			closeAll(fds)
			return nil //nolint:nilerr // the agent is gone: an end like any other
		}
		switch m.Op {
		case opStart:
			if c.blank || c.unfit {
				c.reply(m.ID, 0, errors.New("there is no function yet"))
				break
			}
			c.start(m, fds)
		case opSignal:
			c.signal(m)
		case opEnter:
			err := c.enter(m)
			c.unfit = c.unfit || err != nil
			c.reply(m.ID, 0, err)
		case opUnpack:
			if len(fds) != 1 || c.blank || c.unfit {
				c.reply(m.ID, 0, errors.New("unpack needs one file, and a function"))
				break
			}
			archive := os.NewFile(uintptr(fds[0]), "archive")
			fds = nil
			unpacking.Go(func() {
				defer archive.Close()
				c.reply(m.ID, 0, Unpack(archive, UnpackOptions{
					CodeDir: m.CodeDir, SecretsDir: m.Secrets, MaxBytes: m.MaxBytes, MaxFiles: m.MaxFiles}))
			})
		}
		closeAll(fds)
	}
}

// reply answers the agent. An error of the socket is left to the reading side,
// which sees the same end.
func (c *child) reply(id uint64, pid int, err error) {
	m := message{Op: opReply, ID: id, PID: pid}
	if err != nil {
		m.Error = err.Error()
		var errno syscall.Errno
		if errors.As(err, &errno) {
			m.Errno = int(errno)
		}
	}
	_ = send(c.conn, m)
}

// enter makes this launcher the function's. From then on nothing widens again.
func (c *child) enter(m message) error {
	if c.blank {
		if err := enter(m.Root, m.UID, m.GID); err != nil {
			return err
		}
		c.blank = false
	} else if m.Root != "" || !m.DenyInet {
		if m.Root != "" {
			return errors.New("this launcher has its root already")
		}
		return nil
	}
	filter, err := Filter(FilterOptions{DenyInet: m.DenyInet})
	if err != nil {
		return err
	}
	return Install(filter)
}

func (c *child) start(m message, fds []int) {
	want := 3
	if m.Listen {
		want = 4
	}
	if len(fds) != want || len(m.Argv) == 0 {
		c.reply(m.ID, 0, fmt.Errorf("start needs %d files and a program", want))
		return
	}
	argv, env := toStrings(m.Argv), toStrings(m.Env)
	files := make([]uintptr, len(fds))
	for i, fd := range fds {
		files[i] = uintptr(fd)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var pid int
	path, err := lookPath(argv[0], m.Dir, env)
	switch {
	case err != nil:
	case m.Listen:
		pid, err = c.forkListener(path, argv, env, m.Dir, files)
	default:
		pid, err = syscall.ForkExec(path, argv, &syscall.ProcAttr{
			Dir: m.Dir, Env: env, Files: files, Sys: &syscall.SysProcAttr{Setsid: true}})
		if err != nil {
			// Under the name that the descriptor has: where a PATH of the sealed
			// bundle led is not for the node, which sees this error.
			err = fmt.Errorf("execute %s in %s: %w", argv[0], m.Dir, err)
		}
	}
	if err != nil {
		c.reply(m.ID, 0, err)
		return
	}
	preferForOOM(pid)
	c.running[pid], c.pids[m.ID] = m.ID, pid
	c.reply(m.ID, pid, nil)
}

// preferForOOM makes the kernel choose a function's process over the launcher,
// which is in the same cgroup and without which the sandbox ends. It is a wish:
// where /proc refuses, the kernel's own choice by size is nearly always the same.
func preferForOOM(pid int) {
	f, err := os.OpenFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", os.O_WRONLY, 0)
	if err != nil {
		return
	}
	_, _ = f.WriteString("500")
	_ = f.Close()
}

func (c *child) signal(m message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if pid, ok := c.pids[m.ID]; ok {
		// Not reaped yet, so pid and group still mean what we started.
		_ = syscall.Kill(-pid, syscall.Signal(m.Signal))
	}
}

// reap collects what ended. Before a process is waited for, while its id cannot
// be used again, the rest of its group is killed: a request leaves
// nothing of its group running. What has left the group goes on.
func (c *child) reap() {
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err == unix.EINTR {
			continue
		}
		pid := siginfoPID(&info)
		if err != nil || pid == 0 {
			return
		}
		c.mu.Lock()
		id, ours := c.running[pid]
		if ours {
			_ = syscall.Kill(-pid, syscall.SIGKILL)
		}
		var ws syscall.WaitStatus
		_, err = syscall.Wait4(pid, &ws, 0, nil)
		delete(c.running, pid)
		delete(c.pids, id)
		c.mu.Unlock()
		if err != nil || !ours {
			continue
		}
		m := message{Op: opExited, ID: id, PID: pid, Code: ws.ExitStatus()}
		if ws.Signaled() {
			m.Signal = int(ws.Signal())
		}
		_ = send(c.conn, m)
	}
}

// killAll ends and collects every process group when the agent is gone.
func (c *child) killAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for pid := range c.running {
		_ = syscall.Kill(-pid, syscall.SIGKILL)
	}
	for pid := range c.running {
		_, _ = syscall.Wait4(pid, nil, 0, nil)
	}
}
