package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/agent/launcher"
	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/runtime/runtimetest"
)

// blankArg is the argument that makes this program the launcher of a blank.
const blankArg = "blank-launcher"

// startLauncher starts a blank's launcher, the same code that the real agent
// has, and collects children as PID 1 must.
func startLauncher() (*launcher.Launcher, error) {
	if os.Getenv(api.EnvBlank) != "1" {
		return nil, nil
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	l, err := launcher.Start(context.Background(), launcher.Command{Path: self, Args: []string{blankArg}, Env: []string{"GOMAXPROCS=1"}, Blank: true})
	if err != nil {
		return nil, err
	}
	chld := make(chan os.Signal, 1)
	signal.Notify(chld, syscall.SIGCHLD)
	go func() {
		for range chld {
			for {
				if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != nil || pid <= 0 {
					break
				}
			}
		}
	}()
	return l, nil
}

// enter has the launcher become the function's: uid, gid, and "inet" where it may
// have IP sockets.
func (s *session) enter(args []string) error {
	if s.launcher == nil || len(args) != 3 {
		return errors.New("enter takes uid, gid and inet or none, in a blank")
	}
	uid, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	gid, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	return s.launcher.Enter(context.Background(), launcher.EnterOptions{
		FilterOptions: launcher.FilterOptions{DenyInet: args[2] != "inet"}, Root: api.FunctionRoot, UID: uid, GID: gid})()
}

// launched is a function that the launcher runs.
type launched struct {
	proc *launcher.Process
	done chan struct{}
}

// launch starts a function by way of the launcher.
func (s *session) launch(c runtimetest.Command) error {
	if c.Root {
		return errors.New("nothing runs as root in a bound sandbox")
	}
	in, stdin, err := os.Pipe()
	if err != nil {
		return err
	}
	defer in.Close()
	stdout, out, err := os.Pipe()
	if err != nil {
		return err
	}
	defer out.Close()
	p, err := s.launcher.StartProcess(context.Background(), launcher.Spec{Argv: c.Args,
		Env: []string{"IN_SANDBOX=1", "PATH=/bin:/usr/bin"}, Dir: "/", Stdin: in, Stdout: out, Stderr: out})
	if err != nil {
		return err
	}
	s.stdin, s.out, s.fn = stdin, bytes.Buffer{}, &launched{proc: p, done: make(chan struct{})}
	go func() {
		defer close(s.fn.done)
		_, _ = io.Copy(&s.out, stdout)
	}()
	return nil
}

// finish waits for the end of a function that the launcher runs.
func (s *session) finish() (ans runtimetest.Answer) {
	<-s.fn.proc.Done()
	select { // what it started may hold the pipe open
	case <-s.fn.done:
		ans.Output = s.out.String()
	case <-time.After(2 * time.Second):
	}
	e := s.fn.proc.Exit()
	ans.Status = "exit status " + strconv.Itoa(e.Code)
	if e.Signal != 0 {
		ans.Status = "signal: " + map[bool]string{true: "killed", false: e.Signal.String()}[e.Signal == unix.SIGKILL]
	}
	return ans
}
