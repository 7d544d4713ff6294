package launcher

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

var testBinary string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "launcher":
			if err := Main(false); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
			return 0
		case "blank-launcher":
			if err := Main(true, os.Args[2:]...); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
			return 0
		case "probe":
			probe()
			return 0
		}
	}
	if os.Geteuid() == 0 {
		dir, err := os.MkdirTemp("", "launcher-test-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		if err := copySelf(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}

func copySelf(dir string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	b, err := os.ReadFile(self)
	if err != nil {
		return err
	}
	testBinary = filepath.Join(dir, "launcher")
	return errors.Join(os.Chmod(dir, 0o755), os.WriteFile(testBinary, b, 0o755))
}

func start(t *testing.T) *Launcher {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	l, err := Start(ctx, Command{Path: testBinary, Args: []string{"launcher"}, UID: 10001, GID: 10001})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.Close()
		_, _ = syscall.Wait4(l.PID, nil, 0, nil)
	})
	return l
}

// run starts a process and returns its output once it has ended.
func run(t *testing.T, l *Launcher, argv ...string) (string, Exit) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	p, err := l.StartProcess(t.Context(), Spec{Argv: argv, Env: []string{"A=1"}, Dir: "/", Stdin: null, Stdout: w, Stderr: w})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	return string(b), p.Exit()
}

func TestProcessRunsAsTheFunctionAndIsReported(t *testing.T) {
	l := start(t)
	out, exit := run(t, l, "sh", "-c", "id -u; id -g; id -G; echo $A; pwd; ls /proc/self/fd | wc -l; exit 9")
	if out != "10001\n10001\n10001\n1\n/\n4\n" || exit != (Exit{Code: 9}) { // three and ls's own
		t.Errorf("%q %+v", out, exit)
	}
	if _, exit := run(t, l, "sh", "-c", "kill -TERM $$"); exit.Signal != syscall.SIGTERM {
		t.Errorf("%+v", exit)
	}
}

func TestStartErrorsCarryTheKernelsReason(t *testing.T) {
	l := start(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	spec := Spec{Dir: "/", Stdin: null, Stdout: null, Stderr: null}
	for name, tc := range map[string]struct {
		argv []string
		dir  string
		want error
	}{
		"not in PATH":    {[]string{"no-such-program"}, "/", syscall.ENOENT},
		"not there":      {[]string{"/no/such"}, "/", syscall.ENOENT},
		"not executable": {[]string{"/etc/passwd"}, "/", syscall.EACCES},
		"no directory":   {[]string{"/bin/true"}, "/no/such", syscall.ENOENT},
		"too much":       {[]string{"/bin/true", strings.Repeat("x", maxMessage)}, "/", errTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			s := spec
			s.Argv, s.Dir = tc.argv, tc.dir
			if _, err := l.StartProcess(t.Context(), s); !errors.Is(err, tc.want) {
				t.Errorf("%v, want %v", err, tc.want)
			}
			s.Listen = null
			if _, err := l.StartProcess(t.Context(), s); !errors.Is(err, tc.want) {
				t.Errorf("through the shim: %v, want %v", err, tc.want)
			}
		})
	}
}

// The node sees why a function did not start, and a bundle's PATH is sealed.
func TestStartErrorsDoNotTellThePath(t *testing.T) {
	l := start(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	hidden := t.TempDir()
	if err := os.Chmod(hidden, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(hidden, "broken"), []byte("\x7fELF"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, argv := range []string{"broken", "absent"} {
		s := Spec{Argv: []string{argv}, Env: []string{"PATH=" + hidden}, Dir: "/", Stdin: null, Stdout: null, Stderr: null}
		for _, listen := range []*os.File{nil, null} {
			s.Listen = listen
			if _, err := l.StartProcess(t.Context(), s); err == nil || strings.Contains(err.Error(), filepath.Base(hidden)) {
				t.Errorf("%s: %v", argv, err)
			}
		}
	}
}

func TestEverythingEndsWithTheAgent(t *testing.T) {
	l := start(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	p, err := l.StartProcess(t.Context(), Spec{Argv: []string{"sh", "-c", "sleep 100 & sleep 100"}, Dir: "/", Stdin: null, Stdout: null, Stderr: null})
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	<-p.Done()
	if !p.Exit().Lost {
		t.Errorf("%+v", p.Exit())
	}
	for end := time.Now().Add(20 * time.Second); syscall.Kill(-p.PID, 0) != syscall.ESRCH; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the group lives on")
		}
	}
	if _, err := l.StartProcess(context.Background(), Spec{Argv: []string{"true"}}); !errors.Is(err, ErrGone) {
		t.Errorf("after the end: %v", err)
	}
}

func TestLauncherRefusesPower(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatal("needs root to have power, and REQUIRE_ALL=1")
		}
		t.Skip("needs root to have power")
	}
	out, err := exec.Command(testBinary, "launcher").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "capabilities") {
		t.Errorf("%s %v", out, err)
	}
	if _, err := Start(t.Context(), Command{Path: testBinary, Args: []string{"launcher"}}); err == nil {
		t.Error("started as root")
	}
}

// probe tries what the filter denies, in a process of its own.
func probe() {
	unshared := unix.Unshare(unix.CLONE_NEWUSER)
	fmt.Println("unshare:", unshared)
	try := func(name string, nr, a, b, c uintptr) {
		_, _, errno := syscall.RawSyscall(nr, a, b, c)
		fmt.Printf("%s: %v\n", name, errno)
	}
	try("ptrace", unix.SYS_PTRACE, unix.PTRACE_ATTACH, 1, 0)
	try("clone-newuser", unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD), 0, 0)
	try("clone3", unix.SYS_CLONE3, 0, 0, 0)
	try("keyctl", unix.SYS_KEYCTL, 0, 0, 0)
	try("bpf", unix.SYS_BPF, 0, 0, 0)
	try("io_uring", unix.SYS_IO_URING_SETUP, 1, 0, 0)
	try("mount", unix.SYS_MOUNT, 0, 0, 0)
	try("netlink", unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW, 0)
	try("vsock", unix.SYS_SOCKET, unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	try("unix", unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM, 0)
	try("inet", unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM, 0)
	try("inet6-high-bits", unix.SYS_SOCKET, unix.AF_INET6|1<<32, unix.SOCK_STREAM, 0)
	var pair [2]int32
	try("socketpair", unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_STREAM, uintptr(unsafe.Pointer(&pair)))
}

func TestFilterOnFunctions(t *testing.T) {
	l := start(t)
	common := []string{"unshare: operation not permitted", "ptrace: operation not permitted",
		"clone-newuser: operation not permitted", "clone3: function not implemented", "keyctl: operation not permitted",
		"bpf: operation not permitted", "io_uring: operation not permitted", "mount: operation not permitted",
		"netlink: address family not supported by protocol", "vsock: address family not supported by protocol", "unix: errno 0"}
	out, _ := run(t, l, testBinary, "probe")
	for _, want := range append(common, "inet: errno 0") {
		if !strings.Contains(out, want+"\n") {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if err := l.Enter(t.Context(), EnterOptions{FilterOptions: FilterOptions{DenyInet: true}})(); err != nil {
		t.Fatal(err)
	}
	out, _ = run(t, l, testBinary, "probe")
	for _, want := range append(common, "inet: address family not supported by protocol", "inet6-high-bits: address family not supported by protocol") {
		if !strings.Contains(out, want+"\n") {
			t.Errorf("without network: no %q in\n%s", want, out)
		}
	}
}

func TestUnpackKeepsToItsLimits(t *testing.T) {
	archive := func(n, size int) io.Reader {
		var b bytes.Buffer
		tw := tar.NewWriter(&b)
		for i := range n {
			if err := tw.WriteHeader(&tar.Header{Name: fmt.Sprintf("code/%d", i), Typeflag: tar.TypeReg, Mode: 0o7755, Size: int64(size)}); err != nil {
				t.Fatal(err)
			}
			if _, err := tw.Write(make([]byte, size)); err != nil {
				t.Fatal(err)
			}
		}
		if err := tw.Close(); err != nil {
			t.Fatal(err)
		}
		return &b
	}
	dir := t.TempDir()
	if err := Unpack(archive(3, 10), UnpackOptions{CodeDir: dir, MaxBytes: 30, MaxFiles: 3}); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(filepath.Join(dir, "0"))
	if err != nil || st.Mode() != 0o755 {
		t.Errorf("%v %v", st.Mode(), err)
	}
	var many bytes.Buffer
	tw := tar.NewWriter(&many)
	for range DefaultMaxFiles + 1 {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "code/"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := Unpack(&many, UnpackOptions{CodeDir: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "over 20000 entries") {
		t.Errorf("more entries than the default allows: %v", err)
	}
	if err := Unpack(archive(4, 1), UnpackOptions{CodeDir: t.TempDir(), MaxFiles: 3}); err == nil {
		t.Error("too many files were taken")
	}
	if err := Unpack(archive(2, 20), UnpackOptions{CodeDir: t.TempDir(), MaxBytes: 30}); err == nil {
		t.Error("too many bytes were taken")
	}
	if err := Unpack(archive(1, 1), UnpackOptions{}); err == nil || !strings.Contains(err.Error(), "bundle_path") {
		t.Errorf("code without a place: %v", err)
	}
}

func FuzzUnpack(f *testing.F) {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, h := range []*tar.Header{{Name: "code/a", Typeflag: tar.TypeReg}, {Name: "code/l", Typeflag: tar.TypeSymlink, Linkname: ".."}} {
		if err := tw.WriteHeader(h); err != nil {
			f.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, archive []byte) {
		top := t.TempDir()
		dir := filepath.Join(top, "in")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		_ = Unpack(bytes.NewReader(archive), UnpackOptions{CodeDir: dir, SecretsDir: dir, MaxBytes: 1 << 16, MaxFiles: 16})
		left, err := os.ReadDir(top)
		if err != nil || len(left) != 1 {
			t.Errorf("something was written outside: %v %v", left, err)
		}
	})
}
