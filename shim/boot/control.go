package boot

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A command is one line, "expect ID BUNDLE" or "forget ID BUNDLE"; so is its
// answer, "ok" with what the command gives, or "error" with a reason.
const (
	Expect = "expect"
	Forget = "forget"
	okay   = "ok"
	failed = "error"
)

// MaxLine is the longest line of either side, in bytes.
const MaxLine = 4096

// Exit is how a task ended.
type Exit struct {
	PID  uint32
	Code uint32
	At   time.Time
}

// Answer is the line that says how a command went.
func Answer(e Exit, err error) string {
	if err != nil {
		reason := strings.ReplaceAll(err.Error(), "\n", "; ")
		return failed + " " + reason[:min(len(reason), MaxLine/2)] + "\n"
	}
	return fmt.Sprintf("%s %d %d %d\n", okay, e.PID, e.Code, e.At.UnixNano())
}

// parseAnswer reads what Answer wrote.
func parseAnswer(line string) (Exit, error) {
	if reason, ok := strings.CutPrefix(line, failed+" "); ok {
		return Exit{}, fmt.Errorf("the shim: %s", strings.TrimSpace(reason))
	}
	var e Exit
	var nanos int64
	if _, err := fmt.Sscanf(line, okay+" %d %d %d\n", &e.PID, &e.Code, &nanos); err != nil {
		return Exit{}, fmt.Errorf("the shim answered %q", line)
	}
	e.At = time.Unix(0, nanos)
	return e, nil
}

// Command is what a line asks for.
type Command struct {
	Verb   string // Expect or Forget
	ID     string // of a task
	Bundle string // its directory
}

// ParseCommand reads a command's line.
func ParseCommand(line string) (Command, error) {
	f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 3)
	if len(f) != 3 || f[1] == "" || f[2] == "" || (f[0] != Expect && f[0] != Forget) {
		return Command{}, fmt.Errorf("%q is no command", line)
	}
	return Command{Verb: f[0], ID: f[1], Bundle: f[2]}, nil
}

// errNone means that nobody serves the group.
var errNone = errors.New("no shim serves this namespace")

// command sends one command to the group's process and waits for its answer.
func (g Group) command(c Command, timeout time.Duration) (Exit, error) {
	line := fmt.Sprintf("%s %s %s\n", c.Verb, c.ID, c.Bundle)
	if parsed, err := ParseCommand(line); err != nil || parsed != c || strings.Count(line, "\n") > 1 || len(line) > MaxLine {
		return Exit{}, fmt.Errorf("task %q in bundle %q cannot be named in a command", c.ID, c.Bundle)
	}
	fd, err := g.connect(timeout)
	if err != nil {
		return Exit{}, err
	}
	defer unix.Close(fd)
	if err := retry(func() error { return unix.Sendto(fd, []byte(line), unix.MSG_NOSIGNAL, nil) }); err != nil {
		return Exit{}, fmt.Errorf("connect to the shim: %w", err)
	}
	var answer []byte
	for !strings.HasSuffix(string(answer), "\n") && len(answer) < MaxLine {
		buf := make([]byte, MaxLine)
		var n int
		if err := retry(func() error { n, err = unix.Read(fd, buf); return err }); err != nil {
			return Exit{}, fmt.Errorf("read the shim's answer: %w", err)
		}
		if n == 0 {
			return Exit{}, errors.New("the shim hung up")
		}
		answer = append(answer, buf[:n]...)
	}
	return parseAnswer(string(answer))
}

// connect gives a connection to the group's process, each call on which has the
// timeout; errNone where there is no process.
func (g Group) connect(timeout time.Duration) (fd int, retErr error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("connect to the shim: %w", err)
	}
	defer func() {
		if retErr != nil {
			_ = unix.Close(fd)
		}
	}()
	tv := unix.NsecToTimeval(timeout.Nanoseconds())
	for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &tv); err != nil {
			return -1, fmt.Errorf("connect to the shim: %w", err)
		}
	}
	err = retry(func() error { return unix.Connect(fd, &unix.SockaddrUnix{Name: g.ControlSocket()}) })
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return -1, errNone
	}
	if err != nil {
		return -1, fmt.Errorf("connect to the shim: %w", err)
	}
	return fd, nil
}

// retry makes a call again that a signal has interrupted.
func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
