package cgroups

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Counter names a counter that a Watcher follows.
type Counter string

// The counters.
const (
	OOMKillings  Counter = "oom_kills"     // see Group.OOMKills
	PIDsRefusals Counter = "pids_refusals" // see Group.PIDsRefused
)

// Watcher tells when a group's counters grow. The kernel's own notices come in
// bursts, come before the counter has moved, and on v1 come for an OOM that
// killed in another group as well; a Watcher takes them as a hint to look at
// the counter, and reports each growth once.
//
// A v1 kernel gives no notice of a refused fork, so there the counter is looked
// at once a second. One goroutine on one epoll serves all groups.
type Watcher struct {
	notify func(id string, c Counter, grown int64)
	epoll  int
	wake   int // eventfd that ends the goroutine
	done   chan struct{}

	mu      sync.Mutex
	closed  bool
	watched map[string]*watched
	byFD    map[int32]*source
}

// watched is one group.
type watched struct {
	id      string
	group   Group
	sources []*source
}

// source is one counter of one group.
type source struct {
	counter Counter
	owner   *watched
	fd      int
	more    int   // a v1 eventfd's control file, -1 if none
	polled  bool  // the kernel gives no notice of this one
	seen    int64 // value when last reported
	again   time.Time
}

// settle is how long after a notice the counter is looked at again: the kernel
// notifies before it kills.
const settle = 500 * time.Millisecond

// recheck is the time between two looks while a notice settles.
const recheck = 5 * time.Millisecond

// poll is the time between two looks at counters without a notice: a few
// microseconds for each group.
const poll = time.Second

// NewWatcher starts a Watcher. notify is called by its goroutine with the id
// given to Add and by how much the counter grew; it must not block.
func NewWatcher(notify func(id string, c Counter, grown int64)) (*Watcher, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("watch cgroups: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		_ = unix.Close(epoll)
		return nil, fmt.Errorf("watch cgroups: %w", err)
	}
	w := &Watcher{
		notify: notify, epoll: epoll, wake: wake, done: make(chan struct{}),
		watched: make(map[string]*watched), byFD: make(map[int32]*source),
	}
	if err := w.register(wake, unix.EPOLLIN); err != nil {
		_ = unix.Close(epoll)
		_ = unix.Close(wake)
		return nil, err
	}
	go w.loop()
	return w, nil
}

// Add watches the group under an id, which must not be in use. Growth counts
// from now on.
func (w *Watcher) Add(id string, g Group) (retErr error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return errors.New("watch cgroups: closed")
	}
	if w.watched[id] != nil {
		return fmt.Errorf("watch cgroup %s: %q is watched already", g.path, id)
	}
	e := &watched{id: id, group: g}
	defer func() {
		if retErr != nil {
			w.drop(e)
		}
	}()
	for _, c := range []Counter{OOMKillings, PIDsRefusals} {
		s, err := e.open(c)
		if err != nil {
			return fmt.Errorf("watch %s of cgroup %s: %w", c, g.path, err)
		}
		e.sources = append(e.sources, s)
		w.byFD[int32(s.fd)] = s
		if s.polled {
			continue
		}
		// Kernel files report a change as an exceptional condition.
		events := uint32(unix.EPOLLPRI)
		if s.more >= 0 {
			events = unix.EPOLLIN
		}
		if err := w.register(s.fd, events); err != nil {
			return err
		}
	}
	w.watched[id] = e
	return nil
}

// Remove ends the watching of id. It must come before the group is deleted.
func (w *Watcher) Remove(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e := w.watched[id]; e != nil {
		w.drop(e)
		delete(w.watched, id)
	}
}

// Close ends the Watcher and its goroutine.
func (w *Watcher) Close() error {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return nil
	}
	w.closed = true
	w.mu.Unlock()
	one := [8]byte{1}
	if _, err := unix.Write(w.wake, one[:]); err != nil {
		return fmt.Errorf("end the cgroup watcher: %w", err)
	}
	<-w.done
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, e := range w.watched {
		w.drop(e)
		delete(w.watched, id)
	}
	return errors.Join(unix.Close(w.epoll), unix.Close(w.wake))
}

func (w *Watcher) register(fd int, events uint32) error {
	if err := unix.EpollCtl(w.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)}); err != nil {
		return fmt.Errorf("watch cgroups: %w", err)
	}
	return nil
}

// drop closes an entry's files, which takes them out of the epoll.
func (w *Watcher) drop(e *watched) {
	for _, s := range e.sources {
		delete(w.byFD, int32(s.fd))
		_ = unix.Close(s.fd)
		if s.more >= 0 {
			_ = unix.Close(s.more)
		}
	}
}

// open readies the kernel's notice for one counter.
func (e *watched) open(c Counter) (*source, error) {
	s := &source{counter: c, owner: e, fd: -1, more: -1}
	now, err := e.read(c)
	if err != nil {
		return nil, err
	}
	s.seen = now
	switch {
	case c == PIDsRefusals:
		s.polled = e.group.fs.mode != V2
		s.fd, err = openRead(e.group.file(PIDs, "pids.events"))
	case e.group.fs.mode == V2:
		s.fd, err = openRead(e.group.file(Memory, "memory.events"))
	default:
		s.fd, s.more, err = e.group.oomEventFD()
	}
	if err != nil {
		return nil, err
	}
	// A kernel file reports changes since it was last read through this
	// descriptor; an eventfd is empty and says so.
	s.consume()
	return s, nil
}

// oomEventFD registers an eventfd for v1's OOM notices. The control file must
// stay open as long as the eventfd.
func (g Group) oomEventFD() (event, control int, err error) {
	control, err = openRead(g.file(Memory, "memory.oom_control"))
	if err != nil {
		return -1, -1, err
	}
	event, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		_ = unix.Close(control)
		return -1, -1, fmt.Errorf("eventfd: %w", err)
	}
	if err := write(g.file(Memory, "cgroup.event_control"), fmt.Sprintf("%d %d", event, control)); err != nil {
		_ = unix.Close(control)
		_ = unix.Close(event)
		return -1, -1, err
	}
	return event, control, nil
}

func openRead(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

func (e *watched) read(c Counter) (int64, error) {
	if c == PIDsRefusals {
		return e.group.PIDsRefused()
	}
	return e.group.OOMKills()
}

// consume takes the notice back, so that the next one is seen.
func (s *source) consume() {
	buf := make([]byte, 512)
	if s.more >= 0 {
		_, _ = unix.Read(s.fd, buf[:8]) // EAGAIN if there is none
		return
	}
	_, _ = unix.Pread(s.fd, buf, 0) // ENODEV once the group is gone
}

func (w *Watcher) loop() {
	defer close(w.done)
	events := make([]unix.EpollEvent, 32)
	settling := make(map[*source]bool)
	next := time.Now().Add(poll)
	for {
		wait := time.Until(next)
		if len(settling) > 0 {
			wait = recheck
		}
		n, err := unix.EpollWait(w.epoll, events, int(max(wait, 0)/time.Millisecond)+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return // only a closed epoll, which Close does after this goroutine's end
		}
		w.mu.Lock()
		if w.closed {
			w.mu.Unlock()
			return
		}
		until := time.Now().Add(settle)
		for _, ev := range events[:max(n, 0)] {
			if s := w.byFD[ev.Fd]; s != nil {
				s.consume()
				s.again = until
				settling[s] = true
			}
		}
		var grown []growth
		if now := time.Now(); now.After(next) {
			next = now.Add(poll)
			for _, s := range w.byFD {
				if !s.polled {
					continue
				}
				if g, ok := w.look(s); ok {
					grown = append(grown, g)
				}
			}
		}
		for s := range settling {
			g, ok := w.look(s)
			if ok {
				grown = append(grown, g)
			}
			if w.byFD[int32(s.fd)] != s || time.Now().After(s.again) {
				delete(settling, s)
			}
		}
		w.mu.Unlock()
		for _, g := range grown {
			w.notify(g.id, g.counter, g.by)
		}
	}
}

type growth struct {
	id      string
	counter Counter
	by      int64
}

// look compares a counter with what was reported of it.
func (w *Watcher) look(s *source) (growth, bool) {
	if w.byFD[int32(s.fd)] != s {
		return growth{}, false // dropped meanwhile
	}
	now, err := s.owner.read(s.counter)
	if err != nil {
		// A group that was deleted under us raises its last notice for ever.
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			_ = unix.EpollCtl(w.epoll, unix.EPOLL_CTL_DEL, s.fd, nil)
		}
		return growth{}, false
	}
	if now <= s.seen {
		return growth{}, false
	}
	g := growth{id: s.owner.id, counter: s.counter, by: now - s.seen}
	s.seen = now
	return g, true
}
