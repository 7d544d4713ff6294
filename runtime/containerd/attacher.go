package containerd

import (
	"errors"
	"fmt"
	"os"
	goruntime "runtime"

	"golang.org/x/sys/unix"
)

// attacher is one thread of this process that can step into a sandbox's mount
// namespace: setns(2) needs a thread that shares its root with no other. It
// steps in, does one thing on descriptors, and steps out.
//
// It follows no path while it is inside a sandbox that has a function.
type attacher struct {
	jobs chan attachJob
	done chan struct{}
}

type attachJob struct {
	mntns *os.File
	do    func() error
	err   chan error
}

var errAttacherGone = errors.New("the thread that enters sandboxes has ended")

// newAttacher starts the thread, which lives until close. It shares nothing that
// unshare names; prepare, unless it is nil, is what it does first.
func newAttacher(unshare int, prepare func() error) (*attacher, error) {
	a := &attacher{jobs: make(chan attachJob), done: make(chan struct{})}
	ready := make(chan error, 1)
	go a.run(unshare, prepare, ready)
	return a, <-ready
}

func (a *attacher) run(unshare int, prepare func() error, ready chan<- error) {
	// Never unlocked: the thread ends with this goroutine, and no other one ever
	// runs on it.
	goruntime.LockOSThread()
	if unix.Gettid() == os.Getpid() {
		// The first thread is what /proc/self shows and cannot end. Another
		// goroutine gets another thread while this one holds it.
		next := make(chan struct{})
		go func() { defer close(next); a.run(unshare, prepare, ready) }()
		<-next
		goruntime.UnlockOSThread()
		return
	}
	defer close(a.done)
	if err := unix.Unshare(unshare); err != nil {
		ready <- fmt.Errorf("unshare the thread's root: %w", err)
		return
	}
	home, err := os.Open("/proc/thread-self/ns/mnt")
	if err != nil {
		ready <- fmt.Errorf("open the mount namespace: %w", err)
		return
	}
	defer home.Close()
	if prepare != nil {
		if err := prepare(); err != nil {
			ready <- err
			return
		}
	}
	ready <- nil
	for job := range a.jobs {
		if job.mntns == nil {
			job.err <- job.do()
			continue
		}
		if err := unix.Setns(int(job.mntns.Fd()), unix.CLONE_NEWNS); err != nil {
			job.err <- fmt.Errorf("enter the sandbox's mounts: %w", err)
			continue
		}
		err := job.do()
		back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNS)
		job.err <- errors.Join(err, back)
		if back != nil {
			return // this thread must not do anything more
		}
	}
}

// here runs do on the thread, where it is at home.
func (a *attacher) here(do func() error) error { return a.in(nil, do) }

// in runs do inside a mount namespace.
func (a *attacher) in(mntns *os.File, do func() error) error {
	job := attachJob{mntns: mntns, do: do, err: make(chan error, 1)}
	select {
	case a.jobs <- job:
		return <-job.err
	case <-a.done:
		return errAttacherGone
	}
}

// close ends the thread. No in may be under way or follow.
func (a *attacher) close() {
	if a != nil {
		close(a.jobs)
		<-a.done
	}
}
