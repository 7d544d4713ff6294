package launcher

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// Main is the launcher's whole life: it returns when the agent's end of the
// pair is closed, after it has killed what it started.
//
// A blank one was started without a function, as root of the sandbox in
// namespaces of its own: it sets them up, and becomes the function's when the
// agent says so. private are directories of the agent's alone.
//
// What the agent asks for is done by one goroutine.
func Main(blank bool, private ...string) error {
	if blank {
		runtime.LockOSThread() // until enter: this thread keeps the last capabilities
	}
	oom := openOOM()
	// The function runs under the same uid: without this it could write our
	// memory through /proc. Executing the function makes it dumpable again.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("launcher: not dumpable: %w", err)
	}
	var own uint32
	if blank {
		if err := settle(private); err != nil {
			return fmt.Errorf("launcher: %w", err)
		}
		own = blankCapabilities
	}
	reserveThreads(spareThreads)
	all, err := openThreads()
	if err != nil {
		return fmt.Errorf("launcher: %w", err)
	}
	defer all.close()
	if err := all.checkPowerless(own); err != nil {
		return fmt.Errorf("launcher: %w", err)
	}
	agent, err := openEnd()
	if err != nil {
		return fmt.Errorf("launcher: %w", err)
	}
	defer agent.close()
	filter, err := Filter(FilterOptions{AllowEnter: blank})
	if err != nil {
		return err
	}
	if err := Install(filter); err != nil {
		return err
	}
	c := &child{agent: agent, blank: blank, threads: all, oom: oom,
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

// child is the launcher's state.
type child struct {
	agent   *end
	threads *threads
	oom     *oomScore
	blank   bool // not entered yet
	unfit   bool // entering failed: nothing may start any more

	caught uint64      // signals that have handlers here: bit n-1 for signal n
	ended  int         // readable when a child may have ended that serve must collect
	pinned atomic.Bool // the function's ids are those of serve's thread alone

	mu      sync.Mutex     // held from before a fork until its pid is in the maps
	running map[int]uint64 // pid → id
	pids    map[uint64]int // id → pid
}

func (c *child) serve() error {
	stop, err := c.watch()
	if err != nil {
		return err
	}
	defer c.killAll()
	defer stop()
	if c.caught, err = caughtSignals(); err != nil {
		return err
	}
	c.rehearse()
	if err := c.agent.send(message{Op: opReady, PID: os.Getpid()}); err != nil {
		return err
	}
	for {
		next := c.agent.await
		if c.blank || c.pinned.Load() {
			next = c.agent.receive
		}
		m, fds, err := next()
		switch {
		case err == unix.EAGAIN:
			if c.agent.wait(c.ended) {
				c.reap()
			}
		case err == unix.EINTR:
		case err != nil:
			closeAll(fds)
			return nil //nolint:nilerr // the agent is gone: an end like any other
		default:
			c.handle(m, fds)
		}
	}
}

// handle does what the agent asks for, and closes the files.
func (c *child) handle(m message, fds []int) {
	defer func() { closeAll(fds) }()
	switch m.Op {
	case opStart:
		if c.blank || c.unfit {
			c.reply(m.ID, 0, errors.New("there is no function yet"))
			return
		}
		pid, err := c.start(m, fds)
		c.reply(m.ID, pid, err)
	case opSignal:
		c.signal(m)
	case opEnter:
		err := c.enter(m)
		c.unfit = c.unfit || err != nil
		c.reply(m.ID, 0, err)
	case opUnpack:
		if len(fds) != 1 || c.blank || c.unfit {
			c.reply(m.ID, 0, errors.New("unpack needs one file, and a function"))
			return
		}
		// Nothing runs before its files are there, so nothing else waits. The agent
		// made the pipe for us alone: reading it may block.
		err := unix.SetNonblock(fds[0], false)
		archive := os.NewFile(uintptr(fds[0]), "archive")
		fds = nil
		if err == nil {
			err = Unpack(archive, UnpackOptions{CodeDir: m.CodeDir, SecretsDir: m.Secrets, MaxBytes: m.MaxBytes, MaxFiles: m.MaxFiles})
		}
		_ = archive.Close()
		c.reply(m.ID, 0, err)
	}
}

// rehearse starts a program that is not there, the way all programs start: what
// the first start needs in memory is there before anybody waits for it.
func (c *child) rehearse() {
	b, err := encode(message{Op: opStart, ID: 1, Argv: toBytes([]string{"/"}), Env: toBytes([]string{"A=1"}), Dir: "/", Listen: true})
	if err != nil {
		return
	}
	m, _, err := decode(b, nil, 0)
	if err != nil {
		return
	}
	file := c.threads.dir // any will do
	_, _ = c.start(m, []int{file, file, file, file})
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
	_ = c.agent.send(m)
}

// enter makes this launcher the function's. From then on nothing widens again.
func (c *child) enter(m message) error {
	if c.blank {
		pinned, err := enter(m.Root, m.UID, m.GID)
		if err != nil {
			return err
		}
		c.pinned.Store(pinned)
		if err := c.threads.checkPowerless(0); err != nil {
			return err
		}
		c.blank = false
	} else if m.Root != "" || !m.DenyInet {
		if m.Root != "" {
			return errors.New("this launcher has its root already")
		}
		return nil
	}
	filter, err := narrower(m.DenyInet)
	if err != nil {
		return err
	}
	return Install(filter)
}

func (c *child) start(m message, fds []int) (int, error) {
	want := 3
	if m.Listen {
		want = 4
	}
	if len(fds) != want || len(m.Argv) == 0 {
		return 0, fmt.Errorf("start needs %d files and a program", want)
	}
	argv, env := toStrings(m.Argv), toStrings(m.Env)
	path, err := lookPath(argv[0], m.Dir, env)
	if err != nil {
		return 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.oom.prefer(true) // which the child inherits
	pid, err := c.forkExec(path, argv, env, m.Dir, fds, m.Listen)
	c.oom.prefer(false)
	if err != nil {
		return 0, err
	}
	c.running[pid], c.pids[m.ID] = m.ID, pid
	return pid, nil
}

func (c *child) signal(m message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if pid, ok := c.pids[m.ID]; ok {
		// Not reaped yet, so pid and group still mean what we started.
		_ = syscall.Kill(-pid, syscall.Signal(m.Signal))
	}
}
