package stage

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func newProgram(t testing.TB) *Program {
	t.Helper()
	p, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func start(t testing.TB, p *Program) *Child {
	t.Helper()
	c, err := p.Start(0, -1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		_ = unix.PidfdSendSignal(c.PIDFD, unix.SIGKILL, nil, 0)
		reap(t, c)
	})
	return c
}

// reap waits for the child and gives its exit code, -1 if it was reaped before.
func reap(t testing.TB, c *Child) int {
	t.Helper()
	if c.PIDFD < 0 {
		return -1
	}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(c.PID, &ws, 0, nil); err != nil {
		t.Errorf("wait for the child: %v", err)
	}
	_ = unix.Close(c.PIDFD)
	c.PIDFD = -1
	return ws.ExitStatus()
}

func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func exec(p *Program, argv ...string) {
	p.Call("execute "+argv[0], unix.SYS_EXECVE, p.Text(argv[0]), p.Texts(argv), p.Texts([]string{"A=1"}))
}

func TestAProgramBecomesAnother(t *testing.T) {
	out, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	p := newProgram(t)
	p.Call("redirect", unix.SYS_DUP3, Num(out.Fd()), Num(1), Num(0))
	p.CloseOthers()
	p.Ready()
	p.Wait("wait for the start")
	exec(p, "/bin/sh", "-c", "echo $A; ls /proc/self/fd | wc -l; exit 7")
	c := start(t, p)
	if err := c.AwaitReady(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if err := c.Proceed(); err != nil {
		t.Fatal(err)
	}
	if err := c.AwaitExec(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if code := reap(t, c); code != 7 {
		t.Errorf("exit code %d, want 7", code)
	}
	b, err := os.ReadFile(out.Name())
	if err != nil || string(b) != "1\n4\n" { // 0 to 2 and ls's own
		t.Errorf("it wrote %q, %v", b, err)
	}
}

func TestAFailureNamesTheCall(t *testing.T) {
	p := newProgram(t)
	p.Call("look around", unix.SYS_GETPID)
	p.Call("enter nowhere", unix.SYS_CHDIR, p.Text("/does/not/exist"))
	exec(p, "/bin/true")
	c := start(t, p)
	err := c.AwaitReady(deadline(t))
	var f *Failure
	if !errors.As(err, &f) || f.What != "enter nowhere" || !errors.Is(err, unix.ENOENT) {
		t.Errorf("got %v", err)
	}
	if code := reap(t, c); code != 127 {
		t.Errorf("exit code %d, want 127", code)
	}
}

func TestRegistersSkipsAndAcceptedErrors(t *testing.T) {
	out, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	p := newProgram(t)
	say := func(s string) { p.Call("say", unix.SYS_WRITE, From(3), p.Text(s), Num(len(s))) }
	p.Call("open", unix.SYS_OPENAT, Num(unix.AT_FDCWD), p.Text(out.Name()), Num(unix.O_WRONLY), Num(0)).Into(3)
	say("a")
	p.Call("succeed", unix.SYS_GETPID).Skip(1)
	say("not this")
	p.Call("fail", unix.SYS_CHDIR, p.Text("/does/not/exist")).Accept(unix.ENOTDIR, 0).Accept(unix.ENOENT, 1)
	say("nor this")
	say("b")
	p.Call("read too little", unix.SYS_READ, From(3), p.Bytes(make([]byte, 1)), Num(1)).Exactly(5)
	c := start(t, p)
	var f *Failure
	if err := c.AwaitReady(deadline(t)); !errors.As(err, &f) || f.What != "read too little" {
		t.Errorf("got %v", err)
	}
	b, err := os.ReadFile(out.Name())
	if err != nil || string(b) != "ab" {
		t.Errorf("it wrote %q, %v", b, err)
	}
}

func TestAChildEndsWithItsParentsConnection(t *testing.T) {
	p := newProgram(t)
	p.CloseOthers()
	p.Ready()
	p.Wait("wait for the start")
	exec(p, "/bin/sleep", "1000")
	c := start(t, p)
	if err := c.AwaitReady(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if code := reap(t, c); code != 127 {
		t.Errorf("exit code %d, want 127", code)
	}
}

// The child must be safe whatever the scheduler and the collector do meanwhile.
func TestManyChildrenOfABusyProcess(t *testing.T) {
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		var keep [64][]byte
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				keep[i%64] = make([]byte, 1<<16)
			}
		}
	}()
	defer func() { close(stop); <-done }()
	results := make(chan error, 4)
	for range 4 {
		go func() {
			for range 40 {
				if err := oneShort(deadline(t)); err != nil {
					results <- err
					return
				}
			}
			results <- nil
		}()
	}
	for range 4 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}

func oneShort(ctx context.Context) error {
	p, err := New()
	if err != nil {
		return err
	}
	defer p.Close()
	for range 100 {
		p.Call("look around", unix.SYS_GETPID)
	}
	p.CloseOthers()
	p.Ready()
	p.Wait("wait for the start")
	exec(p, "/bin/true")
	c, err := p.Start(0, -1)
	if err != nil {
		return err
	}
	defer unix.Close(c.PIDFD)
	defer c.Close()
	if err := c.AwaitReady(ctx); err != nil {
		return err
	}
	if err := c.Proceed(); err != nil {
		return err
	}
	if err := c.AwaitExec(ctx); err != nil {
		return err
	}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(c.PID, &ws, 0, nil); err != nil || ws.ExitStatus() != 0 {
		return errors.Join(err, errors.New("it did not end well"))
	}
	return nil
}

func BenchmarkStartToExec(b *testing.B) {
	for b.Loop() {
		if err := oneShort(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
