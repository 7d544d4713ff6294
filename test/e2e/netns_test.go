package e2e

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fabric is a network of machines: one namespace each, joined by a bridge in the
// first one. Nothing of it is in the host's own namespace.
type fabric struct {
	prefix string // of all names; one for each run
	spaces []string
}

// newFabric makes n+1 namespaces: number 0 with the bridge, at 10.77.0.1, and
// the others at 10.77.0.11 and up.
func newFabric(t testing.TB, n int) *fabric {
	t.Helper()
	var b [3]byte
	if _, err := rand.Read(b[:]); err != nil {
		t.Fatal(err)
	}
	f := &fabric{prefix: "fse" + hex.EncodeToString(b[:])}
	t.Cleanup(func() { f.remove(t) })
	for i := range n + 1 {
		name := fmt.Sprintf("%s-%d", f.prefix, i)
		run(t, "ip", "netns", "add", name)
		f.spaces = append(f.spaces, name)
		run(t, "ip", "-n", name, "link", "set", "lo", "up")
	}
	hub := f.spaces[0]
	run(t, "ip", "-n", hub, "link", "add", "br0", "type", "bridge")
	run(t, "ip", "-n", hub, "addr", "add", f.addr(0)+"/24", "dev", "br0")
	run(t, "ip", "-n", hub, "link", "set", "br0", "up")
	for i := 1; i <= n; i++ {
		port := fmt.Sprintf("port%d", i)
		run(t, "ip", "-n", hub, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", f.spaces[i])
		run(t, "ip", "-n", hub, "link", "set", port, "master", "br0", "up")
		run(t, "ip", "-n", f.spaces[i], "addr", "add", f.addr(i)+"/24", "dev", "eth0")
		run(t, "ip", "-n", f.spaces[i], "link", "set", "eth0", "up")
	}
	return f
}

// addr is machine i's address.
func (f *fabric) addr(i int) string {
	if i == 0 {
		return "10.77.0.1"
	}
	return fmt.Sprintf("10.77.0.%d", 10+i)
}

func (f *fabric) path(i int) string { return "/run/netns/" + f.spaces[i] }

// cut drops every packet between machine i and all others; mend lets them pass.
func (f *fabric) cut(t testing.TB, i int)  { f.drop(t, i, "-I") }
func (f *fabric) mend(t testing.TB, i int) { f.drop(t, i, "-D") }

func (f *fabric) drop(t testing.TB, i int, what string) {
	t.Helper()
	run(t, "nsenter", "--net="+f.path(i), "iptables", "-w", what, "INPUT", "-i", "eth0", "-j", "DROP")
	run(t, "nsenter", "--net="+f.path(i), "iptables", "-w", what, "OUTPUT", "-o", "eth0", "-j", "DROP")
}

// remove takes the namespaces away, and with them all links, and makes sure.
func (f *fabric) remove(t testing.TB) {
	for _, name := range f.spaces {
		if out, err := exec.Command("ip", "netns", "del", name).CombinedOutput(); err != nil {
			t.Errorf("ip netns del %s: %v: %s", name, err, out)
		}
	}
	if left, _ := filepath.Glob("/run/netns/" + f.prefix + "*"); len(left) > 0 {
		t.Errorf("namespaces are left: %v", left)
	}
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// within runs f on a thread that is inside machine i's network. What f starts
// there, sockets and processes, stays there; the thread comes back.
func (f *fabric) within(i int, do func() error) error {
	goruntime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		goruntime.UnlockOSThread()
		return err
	}
	defer home.Close()
	there, err := os.Open(f.path(i))
	if err != nil {
		goruntime.UnlockOSThread()
		return err
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		goruntime.UnlockOSThread()
		return fmt.Errorf("enter network of machine %d: %w", i, err)
	}
	err = do()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, back) // the thread stays locked and ends with its goroutine
	}
	goruntime.UnlockOSThread()
	return err
}

// dialer opens connections as machine i does.
func (f *fabric) dialer(i int) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		err = f.within(i, func() (err error) {
			// An address and not a name, so that the dialer needs no goroutine of
			// its own, which would run elsewhere.
			conn, err = (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, addr)
			return err
		})
		return conn, err
	}
}

// child is a process on one of the machines.
type child struct {
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when it was reaped
	err  error         // how it ended
}

// start runs a program on machine i with its output in log.
func (f *fabric) start(i int, log, name string, args ...string) (*child, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	c := &child{name: filepath.Base(name), cmd: exec.Command(name, args...), done: make(chan struct{})}
	c.cmd.Stdout, c.cmd.Stderr = out, out
	// When the test is killed its machines end too: the signal goes out when the
	// thread that started them ends, so that thread waits for them.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	started := make(chan error, 1)
	go func() { // ends with the process
		defer close(c.done)
		goruntime.LockOSThread()
		defer goruntime.UnlockOSThread()
		err := f.within(i, c.cmd.Start)
		started <- err
		if err == nil {
			c.err = c.cmd.Wait()
		}
	}()
	return c, <-started
}

func (c *child) running() bool {
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

// kill ends the process at once, as a crash does.
func (c *child) kill() {
	_ = c.cmd.Process.Kill() // it may have ended
	<-c.done
}

// stop ends the process in order.
func (c *child) stop(limit time.Duration) error {
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-c.done:
		return nil
	case <-t.C:
		c.kill()
		return fmt.Errorf("%s did not stop within %v and was killed", c.name, limit)
	}
}
