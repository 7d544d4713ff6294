package seccomp

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"context"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/shim/stage"
)

// under has a process of its own make one call under a filter, and gives what
// came of the call, or of the process.
func under(t *testing.T, p *specs.LinuxSeccomp, number uintptr, args ...uint64) error {
	t.Helper()
	raw, err := Compile(p)
	if err != nil {
		t.Fatal(err)
	}
	var b []byte
	for _, i := range raw {
		b = binary.NativeEndian.AppendUint16(b, i.Op)
		b = append(b, i.Jt, i.Jf)
		b = binary.NativeEndian.AppendUint32(b, i.K)
	}
	prog, err := stage.New()
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	var list []stage.Arg
	for _, a := range args {
		list = append(list, stage.Num(a))
	}
	prog.Call("forbid privileges", unix.SYS_PRCTL, stage.Num(unix.PR_SET_NO_NEW_PRIVS), stage.Num(1), stage.Num(0), stage.Num(0), stage.Num(0))
	prog.Call("install", unix.SYS_SECCOMP, stage.Num(unix.SECCOMP_SET_MODE_FILTER), stage.Num(0), prog.Struct(uint64(len(raw)), prog.Bytes(b)))
	prog.Call("try", number, list...)
	prog.Ready()
	c, err := prog.Start(0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(c.PIDFD)
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err = c.AwaitReady(ctx)
	var ws unix.WaitStatus
	if _, werr := unix.Wait4(c.PID, &ws, 0, nil); werr != nil {
		t.Error(werr)
	}
	if ws.Signaled() {
		return errors.New(ws.Signal().String())
	}
	var f *stage.Failure
	if errors.As(err, &f) {
		return f.Errno
	}
	return err
}

func TestTheKernelDecidesAsTheFilterSays(t *testing.T) {
	clone := allow("socket")
	clone.Args = []specs.LinuxSeccompArg{{Index: 0, Value: unix.AF_UNIX, Op: specs.OpEqualTo}}
	p := base(allow("write", "exit_group", "getpid"), clone,
		specs.LinuxSyscall{Names: []string{"uname"}, Action: specs.ActErrno, ErrnoRet: ptr(uint(unix.EBUSY))},
		specs.LinuxSyscall{Names: []string{"sync"}, Action: specs.ActKillProcess})
	for _, c := range []struct {
		number uintptr
		args   []uint64
		want   string
	}{
		{unix.SYS_GETPID, nil, ""},
		{unix.SYS_SOCKET, []uint64{unix.AF_UNIX, unix.SOCK_STREAM, 0}, ""},
		{unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_STREAM, 0}, unix.EPERM.Error()},
		{unix.SYS_UNAME, nil, unix.EBUSY.Error()},
		{unix.SYS_GETTID, nil, unix.EPERM.Error()},
		{unix.SYS_SYNC, nil, "bad system call"},
		{5000, nil, unix.ENOSYS.Error()},
	} {
		got := ""
		if err := under(t, p, c.number, c.args...); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("call %d%v: %q, want %q", c.number, c.args, got, c.want)
		}
	}
}
