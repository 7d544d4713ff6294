package agent

import (
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/faasd-sec/faasd-sec/sealed"
)

// feeder writes a request's body to a process's standard input.
type feeder struct {
	done   chan struct{}
	in     *os.File
	stop   func() // ends a read of the body under way
	once   sync.Once
	closed atomic.Bool
	err    atomic.Pointer[error] // of the body, set before the process is killed for it
}

// startFeeder begins. broken is called when the body breaks: the process must
// not take the part it has for the whole.
func startFeeder(in *os.File, body io.Reader, stop, broken func()) *feeder {
	f := &feeder{done: make(chan struct{}), in: in, stop: stop}
	go func() {
		defer close(f.done)
		f.run(body, broken)
	}()
	return f
}

func (f *feeder) run(body io.Reader, broken func()) {
	buf := recordBuffers.Get().(*[]byte)
	most := 0
	defer func() {
		clear((*buf)[:most])
		recordBuffers.Put(buf)
	}()
	refused := false
	for {
		n, err := body.Read((*buf)[:sealed.MaxRecord])
		most = max(most, n)
		if n > 0 && !refused {
			if _, werr := f.in.Write((*buf)[:n]); werr != nil {
				refused = true // it wants no more; the body must still end well
			}
		}
		if err == io.EOF {
			_ = f.in.Close()
			return
		}
		if err != nil {
			if !f.closed.Load() {
				f.err.Store(&err)
				broken()
			}
			_ = f.in.Close()
			return
		}
	}
}

// broken is the error of the body, if it had one so far.
func (f *feeder) broken() error {
	if err := f.err.Load(); err != nil {
		return *err
	}
	return nil
}

// wait returns once the body was read to its end: nil means it was whole.
func (f *feeder) wait(most time.Duration) error {
	t := time.NewTimer(most)
	defer t.Stop()
	select {
	case <-f.done:
		return f.broken()
	case <-t.C:
		f.cancel()
		return os.ErrDeadlineExceeded
	}
}

// cancel ends the feeding and waits for it.
func (f *feeder) cancel() {
	f.once.Do(func() {
		select {
		case <-f.done:
			return
		default:
		}
		f.closed.Store(true)
		_ = f.in.Close()
		f.stop()
		<-f.done
	})
}
