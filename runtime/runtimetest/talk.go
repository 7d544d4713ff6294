package runtimetest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// Command is what a test asks the test agent; one JSON object per line on its
// socket, where the real agent serves HTTP.
type Command struct {
	Do   string   `json:"do"`             // ping, env, exit, deaf, start, wait; in a blank: launcher, enter
	Code int      `json:"code,omitempty"` // exit
	Root bool     `json:"root,omitempty"` // start: as the sandbox's root instead of the function's user
	Args []string `json:"args,omitempty"` // start: program and arguments; wait: other arguments, for a program that is /bin/fn
}

// Answer is what it says.
type Answer struct {
	Error  string   `json:"error,omitempty"`
	Env    []string `json:"env,omitempty"`
	PID    int      `json:"pid,omitempty"`    // start: inside; a pidfd comes along
	Output string   `json:"output,omitempty"` // wait
	Status string   `json:"status,omitempty"` // wait: "exit status 1", "signal: killed"
}

// Agent is a connection to the test agent of a sandbox.
type Agent struct {
	conn *net.UnixConn
	r    *bufio.Reader
	oob  []byte
	fds  []int
}

// Dial connects to the agent whose socket directory is dir, and waits until it
// listens.
func Dial(ctx context.Context, dir string) (*Agent, error) {
	addr := &net.UnixAddr{Net: "unix", Name: filepath.Join(dir, filepath.Base(api.AgentHTTPSocket))}
	for {
		c, err := net.DialUnix("unix", nil, addr)
		if err == nil {
			a := &Agent{conn: c, oob: make([]byte, 64)}
			a.r = bufio.NewReader(readerFunc(a.read))
			return a, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("dial the test agent: %w", errors.Join(err, ctx.Err()))
		case <-time.After(time.Millisecond):
		}
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// read keeps descriptors that arrive with the bytes.
func (a *Agent) read(p []byte) (int, error) {
	n, oobn, _, _, err := a.conn.ReadMsgUnix(p, a.oob)
	if oobn > 0 {
		msgs, merr := syscall.ParseSocketControlMessage(a.oob[:oobn])
		if merr != nil {
			return n, merr
		}
		for _, m := range msgs {
			fds, rerr := syscall.ParseUnixRights(&m)
			if rerr != nil {
				return n, rerr
			}
			a.fds = append(a.fds, fds...)
		}
	}
	if n == 0 && err == nil {
		return 0, errors.New("the test agent hung up")
	}
	return max(n, 0), err
}

// Do asks and waits for the answer.
func (a *Agent) Do(c Command) (Answer, error) {
	b, err := json.Marshal(c)
	if err != nil {
		return Answer{}, err
	}
	if err := a.conn.SetDeadline(time.Now().Add(60 * time.Second)); err != nil {
		return Answer{}, err
	}
	if _, err := a.conn.Write(append(b, '\n')); err != nil {
		return Answer{}, fmt.Errorf("ask the test agent to %s: %w", c.Do, err)
	}
	line, err := a.r.ReadBytes('\n')
	if err != nil {
		return Answer{}, fmt.Errorf("ask the test agent to %s: %w", c.Do, err)
	}
	var ans Answer
	if err := json.Unmarshal(line, &ans); err != nil {
		return Answer{}, fmt.Errorf("answer to %s: %w", c.Do, err)
	}
	if ans.Error != "" {
		return ans, fmt.Errorf("the test agent: %s: %s", c.Do, ans.Error)
	}
	return ans, nil
}

// Start starts a program that waits for Wait, and returns its pid as the host
// sees it.
func (a *Agent) Start(root bool, args ...string) (int, error) {
	if _, err := a.Do(Command{Do: "start", Root: root, Args: args}); err != nil {
		return 0, err
	}
	return a.pid()
}

// Ping asks the agent for a sign of life within d.
func (a *Agent) Ping(d time.Duration) error {
	if err := a.conn.SetDeadline(time.Now().Add(d)); err != nil {
		return err
	}
	if _, err := a.conn.Write([]byte("{\"do\":\"ping\"}\n")); err != nil {
		return err
	}
	_, err := a.r.ReadBytes('\n')
	return err
}

// Launcher is the pid of a blank's launcher as the host sees it.
func (a *Agent) Launcher() (int, error) {
	if _, err := a.Do(Command{Do: "launcher"}); err != nil {
		return 0, err
	}
	return a.pid()
}

// Enter has the launcher of a blank become the function's, after Bind.
func (a *Agent) Enter(uid, gid int, inet bool) error {
	net := "none"
	if inet {
		net = "inet"
	}
	_, err := a.Do(Command{Do: "enter", Args: []string{strconv.Itoa(uid), strconv.Itoa(gid), net}})
	return err
}

// Launch starts a program in a bound sandbox, which waits for Wait.
func (a *Agent) Launch(args ...string) error {
	_, err := a.Do(Command{Do: "start", Args: args})
	return err
}

// pid reads the pidfd that came with the last answer.
func (a *Agent) pid() (int, error) {
	if len(a.fds) != 1 {
		return 0, fmt.Errorf("the test agent sent %d descriptors", len(a.fds))
	}
	defer func() { _ = syscall.Close(a.fds[0]); a.fds = nil }()
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", a.fds[0]))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "Pid:"); ok {
			return strconv.Atoi(strings.TrimSpace(v))
		}
	}
	return 0, errors.New("the descriptor from the test agent is no pidfd")
}

// Wait lets the started program go and waits for its end. The test agent as a
// function takes arguments from here, if there are any.
func (a *Agent) Wait(args ...string) (Answer, error) {
	return a.Do(Command{Do: "wait", Args: args})
}

// Run is Start and Wait.
func (a *Agent) Run(root bool, args ...string) (Answer, error) {
	if _, err := a.Start(root, args...); err != nil {
		return Answer{}, err
	}
	return a.Wait()
}

// Close ends the connection.
func (a *Agent) Close() error { return a.conn.Close() }
