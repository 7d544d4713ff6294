package boot

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A command is one line, "expect ID" or "forget ID"; so is its answer, "ok"
// with what the command gives, or "error" with a reason.
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

// ParseCommand reads a command's line.
func ParseCommand(line string) (verb, id string, err error) {
	verb, id, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
	if !ok || id == "" || (verb != Expect && verb != Forget) {
		return "", "", fmt.Errorf("%q is no command", line)
	}
	return verb, id, nil
}

// errNone means that nobody serves the group.
var errNone = errors.New("no shim serves this namespace")

// command sends one command to the group's process and waits for its answer.
func (g Group) command(verb, id string, timeout time.Duration) (Exit, error) {
	if strings.ContainsAny(id, " \n") || len(id) > MaxLine/2 {
		return Exit{}, fmt.Errorf("task id %q is not one", id)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return Exit{}, fmt.Errorf("connect to the shim: %w", err)
	}
	defer unix.Close(fd)
	tv := unix.NsecToTimeval(timeout.Nanoseconds())
	for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &tv); err != nil {
			return Exit{}, fmt.Errorf("connect to the shim: %w", err)
		}
	}
	err = retry(func() error { return unix.Connect(fd, &unix.SockaddrUnix{Name: g.ControlSocket()}) })
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return Exit{}, errNone
	}
	if err == nil {
		err = retry(func() error { return unix.Sendto(fd, []byte(verb+" "+id+"\n"), unix.MSG_NOSIGNAL, nil) })
	}
	if err != nil {
		return Exit{}, fmt.Errorf("connect to the shim: %w", err)
	}
	var line []byte
	for !strings.HasSuffix(string(line), "\n") && len(line) < MaxLine {
		buf := make([]byte, MaxLine)
		var n int
		if err := retry(func() error { n, err = unix.Read(fd, buf); return err }); err != nil {
			return Exit{}, fmt.Errorf("read the shim's answer: %w", err)
		}
		if n == 0 {
			return Exit{}, errors.New("the shim hung up")
		}
		line = append(line, buf[:n]...)
	}
	return parseAnswer(string(line))
}

// retry makes a call again that a signal has interrupted.
func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
