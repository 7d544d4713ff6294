package boot

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Server says how to execute the program that serves, with its arguments. It
// is given the task socket as descriptor 3 and the control socket as 4.
type Server struct {
	Program string
	Args    []string // the first is how the process is called
	Env     []string
}

// The deadlines of a command: the first has the server start up, the second
// leaves time for a cleaning up without it, for containerd gives delete 5 s.
const (
	expectTimeout = 10 * time.Second
	forgetTimeout = 3 * time.Second
)

// addressFile is where containerd looks for the socket after a restart.
const addressFile = "address"

// Start makes sure that the group's process runs and expects task id, writes
// its address into the bundle and returns it.
func Start(g Group, id, bundle string, s Server) (string, error) {
	lock, err := g.Lock(true)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	announce := Command{Verb: Expect, ID: id, Bundle: bundle}
	_, err = g.command(announce, expectTimeout)
	if errors.Is(err, errNone) {
		if err = s.spawn(g); err == nil {
			_, err = g.command(announce, expectTimeout)
		}
	}
	if err != nil {
		return "", fmt.Errorf("announce task %s: %w", id, err)
	}
	if err := os.WriteFile(filepath.Join(bundle, addressFile), []byte(g.URL()), 0o600); err != nil {
		return "", fmt.Errorf("write the shim's address: %w", err)
	}
	return g.URL(), nil
}

// spawn starts the group's process on new sockets. The lock must be held.
func (s Server) spawn(g Group) error {
	if err := g.removeSockets(); err != nil {
		return fmt.Errorf("start the shim: %w", err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("start the shim: %w", err)
	}
	defer null.Close()
	files := []*os.File{null, null, null}
	for _, path := range []string{g.TaskSocket(), g.ControlSocket()} {
		f, err := listen(path)
		if err != nil {
			return fmt.Errorf("start the shim: %w", err)
		}
		defer f.Close()
		files = append(files, f)
	}
	p, err := os.StartProcess(s.Program, s.Args, &os.ProcAttr{
		Dir: "/", // not the bundle, which it outlives
		Env: s.Env, Files: files,
		// A session of its own: it outlives containerd, whose service manager may
		// signal a whole group.
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return errors.Join(fmt.Errorf("start the shim: %w", err), g.removeSockets())
	}
	return p.Release()
}

// ErrNotDone means that nobody could end a task: its remains have to be
// cleaned up without the group's process.
var ErrNotDone = errors.New("no shim answers for the task")

// Killed is the exit code of a process that SIGKILL ended.
const Killed = 128 + 9

// Delete has the group's process end and delete a task that containerd has
// lost. It is run after each ordinary deletion as well; the server has removed
// the bundle's address by then.
func Delete(g Group, id, bundle string) (Exit, error) {
	if _, err := os.Lstat(filepath.Join(bundle, addressFile)); errors.Is(err, os.ErrNotExist) {
		return Exit{Code: Killed, At: time.Now()}, nil
	}
	e, err := g.command(Command{Verb: Forget, ID: id, Bundle: bundle}, forgetTimeout)
	if err != nil {
		return Exit{}, fmt.Errorf("%w: %w", ErrNotDone, err)
	}
	return e, nil
}

// Deleted has the delete command leave the task of a bundle alone: there is
// nothing left of it.
func Deleted(bundle string) error {
	if err := os.Remove(filepath.Join(bundle, addressFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the shim's address: %w", err)
	}
	return nil
}

// WriteExit writes the answer to the delete command, a
// containerd.task.v2.DeleteResponse.
func WriteExit(w io.Writer, e Exit) error {
	number := func(b []byte, field int, v uint64) []byte {
		if v == 0 {
			return b
		}
		return varint(varint(b, uint64(field)<<3), v)
	}
	var at []byte // google.protobuf.Timestamp
	at = number(at, 1, uint64(e.At.Unix()))
	at = number(at, 2, uint64(e.At.Nanosecond()))
	var b []byte
	b = number(b, 1, uint64(e.PID))
	b = number(b, 2, uint64(e.Code))
	b = varint(varint(b, 3<<3|2), uint64(len(at)))
	if _, err := w.Write(append(b, at...)); err != nil {
		return fmt.Errorf("answer containerd: %w", err)
	}
	return nil
}

// varint appends a number as protocol buffers write it.
func varint(b []byte, v uint64) []byte {
	for ; v >= 0x80; v >>= 7 {
		b = append(b, byte(v)|0x80)
	}
	return append(b, byte(v))
}

// Execute replaces this process by the server's program.
func (s Server) Execute() error {
	if err := unix.Exec(s.Program, s.Args, s.Env); err != nil {
		return fmt.Errorf("execute %s: %w", s.Program, err)
	}
	return nil
}
