package launcher

import (
	"context"
	"os"
	"syscall"
)

// Spec asks for one process.
type Spec struct {
	Argv   []string
	Env    []string
	Dir    string
	Stdin  *os.File // the three stay the caller's, to be closed after Start
	Stdout *os.File
	Stderr *os.File
	Listen *os.File // becomes descriptor 3; nil for none
	Asked  func()   // called once the launcher has been asked, or could not be; nil for nothing
}

// Exit is how a process ended.
type Exit struct {
	Code   int            // -1 if a signal ended it
	Signal syscall.Signal // 0 if none did
	Lost   bool           // nobody knows: the launcher itself is gone
}

// Process is one started process and its group.
type Process struct {
	PID  int
	l    *Launcher
	id   uint64
	done chan struct{}
	exit Exit
}

// StartProcess forks and executes. An error that wraps a syscall.Errno is the
// kernel's refusal to execute.
func (l *Launcher) StartProcess(ctx context.Context, s Spec) (*Process, error) {
	p := &Process{l: l, done: make(chan struct{})}
	m := message{Op: opStart, Argv: toBytes(s.Argv), Env: toBytes(s.Env), Dir: s.Dir, Listen: s.Listen != nil}
	files := []*os.File{s.Stdin, s.Stdout, s.Stderr}
	if s.Listen != nil {
		files = append(files, s.Listen)
	}
	// The process is known before its start is asked for: it may have ended
	// before we hear that it began.
	r, err := l.callAsked(ctx, m, func(id uint64) { p.id, l.procs[id] = id, p }, s.Asked, files...)
	if err != nil {
		if ctx.Err() != nil { // it may have begun after all
			p.Signal(syscall.SIGKILL)
		}
		l.mu.Lock()
		delete(l.procs, p.id)
		l.mu.Unlock()
		return nil, err
	}
	p.PID = r.PID
	return p, nil
}

func (p *Process) end(e Exit) {
	p.exit = e
	close(p.done)
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit is how it ended; only after Done.
func (p *Process) Exit() Exit { return p.exit }

// Signal signals the whole process group. It is a request: a group that is gone
// takes none.
func (p *Process) Signal(sig syscall.Signal) {
	_ = send(p.l.conn, message{Op: opSignal, ID: p.id, Signal: int(sig)})
}
