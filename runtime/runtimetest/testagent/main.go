// Command testagent is PID 1 of sandboxes in the tests of runtimes: it does
// what it is told on its socket. It protects nothing and holds no secret.
//
// With arguments it is a function instead: it waits for a line on its
// standard input, then does what its first argument says.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/agent/launcher"
	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/runtime/runtimetest"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == blankArg {
		if err := launcher.Main(true, api.AgentRunDir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(71)
		}
		return
	}
	if len(os.Args) > 1 {
		if err := function(os.Args[1:]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	fmt.Fprintln(os.Stderr, serve())
	os.Exit(70)
}

// serve returns only with an error.
func serve() error {
	// As the real agent does: nobody else in the sandbox can look into it.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return err
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	deaf := make(chan struct{})
	go func() {
		<-term
		select {
		case <-deaf:
		default:
			os.Exit(0)
		}
	}()
	launcher, err := startLauncher()
	if err != nil {
		return err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: api.AgentHTTPSocket})
	if err != nil {
		return err
	}
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return err
		}
		go (&session{conn: c, deaf: deaf, launcher: launcher}).run()
	}
}

type session struct {
	conn     *net.UnixConn
	launcher *launcher.Launcher // in a blank
	fn       *launched          // in a blank
	deaf     chan struct{}
	child    *exec.Cmd
	stdin    io.WriteCloser
	out      bytes.Buffer
}

func (s *session) run() {
	defer s.conn.Close()
	r := bufio.NewReader(s.conn)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return
		}
		var c runtimetest.Command
		if err := json.Unmarshal(line, &c); err != nil {
			return
		}
		ans, rights, err := s.do(c)
		if err != nil {
			ans.Error = err.Error()
		}
		b, _ := json.Marshal(ans)
		if _, _, err := s.conn.WriteMsgUnix(append(b, '\n'), rights, nil); err != nil {
			return
		}
	}
}

func (s *session) do(c runtimetest.Command) (ans runtimetest.Answer, rights []byte, err error) {
	switch c.Do {
	case "ping":
	case "env":
		ans.Env = os.Environ()
	case "exit":
		os.Exit(c.Code)
	case "deaf":
		close(s.deaf)
	case "launcher":
		if s.launcher == nil {
			return ans, nil, fmt.Errorf("this sandbox is no blank")
		}
		rights = unix.UnixRights(int(s.launcher.PIDFD.Fd()))
	case "enter":
		err = s.enter(c.Args)
	case "start":
		if s.launcher != nil {
			return ans, nil, s.launch(c)
		}
		ans.PID, rights, err = s.start(c)
	case "wait":
		// A program that reads nothing may have ended by now.
		if _, err := io.WriteString(s.stdin, strings.Join(c.Args, " ")+"\n"); err != nil && !errors.Is(err, syscall.EPIPE) {
			return ans, nil, err
		}
		if s.launcher != nil {
			return s.finish(), nil, nil
		}
		werr := s.child.Wait()
		ans.Status, ans.Output = s.child.ProcessState.String(), s.out.String()
		if s.child.ProcessState == nil {
			return ans, nil, werr
		}
	default:
		err = fmt.Errorf("unknown command %q", c.Do)
	}
	return ans, rights, err
}

func (s *session) start(c runtimetest.Command) (int, []byte, error) {
	s.out.Reset()
	cmd := exec.Command(c.Args[0], c.Args[1:]...)
	cmd.Stdout, cmd.Stderr = &s.out, &s.out
	cmd.Env = append(os.Environ(), "IN_SANDBOX=1")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return 0, nil, err
	}
	pidfd := -1
	cmd.SysProcAttr = &syscall.SysProcAttr{PidFD: &pidfd}
	if !c.Root {
		uid, err := strconv.Atoi(os.Getenv("FAASD_SEC_UID"))
		if err != nil {
			return 0, nil, err
		}
		gid, err := strconv.Atoi(os.Getenv("FAASD_SEC_GID"))
		if err != nil {
			return 0, nil, err
		}
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	if err := cmd.Start(); err != nil {
		return 0, nil, err
	}
	s.child, s.stdin = cmd, stdin
	return cmd.Process.Pid, unix.UnixRights(pidfd), nil
}

// function is what the tests run in the function's place.
func function(args []string) error {
	if args[0] == "idle" { // what threads starts
		time.Sleep(time.Hour)
	}
	line, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err != nil {
		return err
	}
	if f := strings.Fields(line); len(f) > 0 {
		args = f
	}
	number := func() int {
		if len(args) < 2 {
			return 0
		}
		n, _ := strconv.Atoi(args[1])
		return n
	}
	switch args[0] {
	case "hog": // touches so many MiB
		var keep [][]byte
		for range number() {
			b := make([]byte, 1<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			keep = append(keep, b)
		}
		fmt.Println("held", len(keep))
	case "threads": // forks so many processes that stay
		for i := range number() {
			if err := exec.Command("/proc/self/exe", "idle").Start(); err != nil {
				return fmt.Errorf("after %d: %w", i, err)
			}
		}
	case "burn": // computes for so many milliseconds
		for end := time.Now().Add(time.Duration(number()) * time.Millisecond); time.Now().Before(end); {
		}
	case "write": // writes so many MiB to a path
		return os.WriteFile(args[2], make([]byte, number()<<20), 0o600)
	case "fill": // writes to a path until that fails, and says how much it took
		return fill(args[1])
	case "put": // writes a word to a path, so many times, and waits for the disk
		return put(args[1], args[2], args[3])
	case "take": // reads a path from the disk, and says how much there was
		return take(args[1])
	case "remove":
		return os.Remove(args[1])
	case "script": // runs a program that it writes to a path
		b, err := os.ReadFile("/proc/self/exe")
		if err != nil {
			return err
		}
		if err := os.WriteFile(args[1], b, 0o700); err != nil {
			return err
		}
		cmd := exec.Command(args[1], "say")
		cmd.Stdin = strings.NewReader("\n")
		out, err := cmd.CombinedOutput()
		fmt.Printf("%s", out)
		return err
	case "say":
		fmt.Println("ok")
	case "cat":
		b, err := os.ReadFile(args[1])
		fmt.Printf("%s", b)
		return err
	case "ls":
		for _, p := range args[1:] {
			var st unix.Stat_t
			if err := unix.Lstat(p, &st); err != nil {
				fmt.Println(p, err)
				continue
			}
			fmt.Printf("%s %o %d:%d\n", p, st.Mode, st.Uid, st.Gid)
		}
	default:
		return fmt.Errorf("unknown function %q", args[0])
	}
	return nil
}
