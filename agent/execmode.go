package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/faasd-sec/faasd-sec/agent/launcher"
	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/upstream"
)

// viaProcess runs a process for the request: its body is the standard input,
// the standard output is the reply.
func (inv *invocation) viaProcess(life context.Context) outcome {
	p, err := inv.startProcess(life)
	if err != nil {
		var ours *api.Error
		if errors.As(err, &ours) {
			return outcome{fail: ours}
		}
		if errors.Is(err, context.DeadlineExceeded) {
			return outcome{fail: inv.late(err)}
		}
		return outcome{fail: inv.f.startError(err)}
	}
	if inv.f.b.desc.Config.Mode == sealed.ModeSerializing {
		return inv.serialized(p)
	}
	return inv.streamed(p)
}

// process is one request's process and its pipes.
type process struct {
	inv   *invocation
	proc  *launcher.Process
	out   *os.File
	feed  *feeder
	timer *time.Timer // kills the group at the deadline
	late  atomic.Bool
	over  chan struct{} // closed by Close
}

// strayWait is how long the output of a process that has ended may stay open
// and silent, because something it started left the group and holds it.
const strayWait = 100 * time.Millisecond

func (inv *invocation) startProcess(life context.Context) (_ *process, retErr error) {
	f := inv.f
	in, stdin, err := pipeTo(true)
	if err != nil {
		return nil, fmt.Errorf("pipe: %w", err)
	}
	defer stdin.Close()
	defer closeOn(&retErr, in)
	out, stdout, err := pipeTo(false)
	if err != nil {
		return nil, fmt.Errorf("pipe: %w", err)
	}
	defer stdout.Close()
	defer closeOn(&retErr, out)
	stderr, err := f.logPipe(streamErr)
	if err != nil {
		return nil, err
	}
	defer stderr.Close()
	ctx, cancel := context.WithDeadline(life, inv.deadline)
	defer cancel()
	proc, err := f.launcher.StartProcess(ctx, launcher.Spec{Argv: f.b.argv, Env: append(requestEnv(&inv.head), f.env...),
		Dir: f.b.dir, Stdin: stdin, Stdout: stdout, Stderr: stderr})
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	f.running[proc] = struct{}{}
	f.mu.Unlock()
	inv.onAbort(func() { proc.Signal(syscall.SIGKILL) })
	p := &process{inv: inv, proc: proc, out: out, over: make(chan struct{})}
	p.timer = time.AfterFunc(time.Until(inv.deadline), func() {
		p.late.Store(true)
		proc.Signal(syscall.SIGKILL)
	})
	p.feed = startFeeder(in, inv.body, inv.cancelInput(), func() { proc.Signal(syscall.SIGKILL) })
	go p.endOutput()
	return p, nil
}

// endOutput ends the reading of the output when the process is gone and nothing
// waits in the pipe any more. Usually the pipe has ended by itself long before.
func (p *process) endOutput() {
	select {
	case <-p.over:
		return
	case <-p.proc.Done():
	}
	t := time.NewTicker(strayWait)
	defer t.Stop()
	for {
		select {
		case <-p.over:
			return
		case <-t.C:
			if pipeBuffered(p.out) == 0 {
				_ = p.out.SetReadDeadline(time.Unix(1, 0))
				return
			}
		}
	}
}

// Read reads the output.
func (p *process) Read(b []byte) (int, error) {
	n, err := p.out.Read(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = io.EOF
	}
	return n, err
}

func closeOn(err *error, f *os.File) {
	if *err != nil {
		_ = f.Close()
	}
}

// serialized waits for the process before a byte of its output is sent, so that
// an exit code other than 0 is a status of 500.
func (inv *invocation) serialized(p *process) outcome {
	sp := &overflow{budget: inv.f.spools}
	n, err := io.Copy(sp, p)
	if err == nil {
		err = p.Finish()
	}
	_ = p.Close()
	if err == nil {
		err = sp.rewind()
	}
	if err != nil {
		_ = sp.Close()
		return outcome{fail: inv.explain(err)}
	}
	return outcome{status: 200, header: inv.execHeader(), body: sp, size: n}
}

// streamed sends output as it comes. A process that ends badly before its first
// byte is still a status of 500; later the reply ends without its end.
func (inv *invocation) streamed(p *process) outcome {
	first := make([]byte, 1)
	n, err := p.Read(first)
	if n == 0 {
		if err == io.EOF {
			err = p.Finish()
		}
		_ = p.Close()
		if err != nil {
			return outcome{fail: inv.explain(err)}
		}
		return outcome{status: 200, header: inv.execHeader(), body: &overflow{}, size: 0}
	}
	return outcome{status: 200, header: inv.execHeader(), body: &streamedBody{process: p, first: first}, size: -1}
}

// streamedBody is a process's output with the byte that showed that there is some.
type streamedBody struct {
	*process
	first []byte
}

func (b *streamedBody) Read(p []byte) (int, error) {
	if len(b.first) > 0 && len(p) > 0 {
		p[0], b.first = b.first[0], nil
		// What came with the first byte is in the pipe already, if anything did;
		// asking for it here could wait.
		return 1, nil
	}
	return b.process.Read(p)
}

// Buffered implements resultBody: after the first byte there is more, usually.
func (b *streamedBody) Buffered() int { return pipeBuffered(b.out) }

// Finish waits for the process and, if it ended well, for the end of its input.
func (p *process) Finish() error {
	<-p.proc.Done()
	exit := p.proc.Exit()
	if exit.Code == 0 && exit.Signal == 0 && !exit.Lost {
		if err := p.feed.wait(time.Until(p.inv.deadline)); err != nil {
			return &upstream.BodyError{Err: err}
		}
		return nil
	}
	switch err := p.feed.broken(); {
	case err != nil: // then we killed it
		return &upstream.BodyError{Err: err}
	case p.late.Load():
		return p.inv.late(os.ErrDeadlineExceeded)
	case p.inv.f.stopping.Load():
		return api.Errorf(api.CodeDraining, "the sandbox was stopped while the process ran")
	case exit.Signal == 0 && !exit.Lost:
		e := api.Errorf(api.CodeFunctionCrashed, "the process ended with exit code %d", exit.Code)
		e.Remedy = "its log has what it printed to standard error"
		return e
	}
	return p.inv.f.whyDied(exit)
}

// Close ends the process, if it still runs, and everything around it.
func (p *process) Close() error {
	p.proc.Signal(syscall.SIGKILL) // the whole group; nothing, if all of it ended
	_ = p.out.Close()
	p.timer.Stop()
	close(p.over)
	p.feed.cancel()
	<-p.proc.Done()
	f := p.inv.f
	f.mu.Lock()
	delete(f.running, p.proc)
	f.mu.Unlock()
	return nil
}

// execHeader is the reply's header: the type that the environment of the
// function states, else that of the request, as OpenFaaS's watchdog does.
func (inv *invocation) execHeader() []sealed.Field {
	kind := "application/octet-stream"
	for _, h := range inv.head.Header {
		if h.Name == "content-type" {
			kind = h.Value
		}
	}
	if v, ok := lookupEnv(inv.f.env, "content_type"); ok && v != "" {
		kind = v
	}
	return []sealed.Field{{Name: "content-type", Value: kind}}
}
