package launcher

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// startBlank starts a blank launcher.
func startBlank(t testing.TB) *Launcher {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	l, err := Start(ctx, Command{Path: testBinary, Args: []string{"blank-launcher"}, Blank: true, Env: []string{"GOMAXPROCS=1", "GOGC=50"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		select {
		case <-l.Done(): // ended and reaped by who asked for it
		default:
			l.Close()
			_, _ = syscall.Wait4(l.PID, nil, 0, nil)
		}
	})
	return l
}

// threadsOf reads the status of every thread of a process.
func threadsOf(t *testing.T, pid int) []map[string]string {
	t.Helper()
	dirs, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(dirs) < 1+spareThreads {
		t.Fatalf("threads: %q, %v", dirs, err)
	}
	var all []map[string]string
	for _, name := range dirs {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		status := map[string]string{}
		for line := range strings.Lines(string(b)) {
			key, value, _ := strings.Cut(line, ":")
			status[key] = strings.Join(strings.Fields(value), " ")
		}
		all = append(all, status)
	}
	return all
}

// powerful counts the threads that have any capability, all of which must be
// blankCapabilities, and checks what all threads must be.
func powerful(t *testing.T, pid int) int {
	t.Helper()
	const none = "0000000000000000"
	n := 0
	for _, s := range threadsOf(t, pid) {
		if s["Seccomp"] != "2" || s["NoNewPrivs"] != "1" || s["CapInh"] != none || s["CapAmb"] != none || s["Groups"] != "" ||
			strings.HasPrefix(s["Uid"], "0") || strings.HasPrefix(s["Gid"], "0") {
			t.Errorf("thread %s: %v", s["Pid"], s)
		}
		if s["CapPrm"] == none && s["CapEff"] == none {
			continue
		}
		n++
		if want := fmt.Sprintf("%016x", blankCapabilities); s["CapPrm"] != want || s["CapEff"] != want || s["CapBnd"] != want {
			t.Errorf("thread %s has %s, effective %s, bounded by %s, want %s", s["Pid"], s["CapPrm"], s["CapEff"], s["CapBnd"], want)
		}
	}
	return n
}

func TestOneThreadOfABlankLauncherMayEnter(t *testing.T) {
	for _, id := range []int{api.FunctionID, 1234} {
		t.Run(fmt.Sprint(id), func(t *testing.T) {
			l := startBlank(t)
			if n := powerful(t, l.PID); n != 1 {
				t.Errorf("%d threads have capabilities, want 1", n)
			}
			null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer null.Close()
			spec := Spec{Argv: []string{"/bin/true"}, Dir: "/", Stdin: null, Stdout: null, Stderr: null}
			if _, err := l.StartProcess(t.Context(), spec); err == nil {
				t.Error("a blank launcher started a process")
			}
			err = l.Enter(t.Context(), EnterOptions{Root: "/", UID: id, GID: id, FilterOptions: FilterOptions{DenyInet: true}})()
			if err != nil {
				t.Fatal(err)
			}
			if n := powerful(t, l.PID); n != 0 {
				t.Errorf("%d threads have capabilities after all", n)
			}
			// What it starts, and the threads it makes meanwhile, are no more.
			for range 8 {
				out, exit := run(t, l, "sh", "-c", "id -u; id -g; id -G; grep -c ^Cap[PEIA].*:.0000000000000000 /proc/self/status")
				if want := fmt.Sprintf("%d\n%d\n%d\n4\n", id, id, id); out != want || exit.Code != 0 {
					t.Fatalf("%q %+v, want %q", out, exit, want)
				}
			}
			if n := powerful(t, l.PID); n != 0 {
				t.Errorf("%d threads have capabilities after processes ran", n)
			}
			// A group is killed whatever the ids: the rest of it ends with the first.
			out, _ := run(t, l, "sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!")
			pid := strings.TrimSpace(out)
			if out, _ := run(t, l, "sh", "-c", "for i in $(seq 200); do kill -0 "+pid+" 2>/dev/null || exit 0; sleep 0.02; done; echo alive"); out != "" {
				t.Errorf("the rest of the group: %q", out)
			}
			if err := l.Enter(t.Context(), EnterOptions{Root: "/", UID: id, GID: id})(); err == nil {
				t.Error("it entered twice")
			}
		})
	}
}

func TestABlankLauncherThatCannotEnterIsOfNoUse(t *testing.T) {
	l := startBlank(t)
	for _, o := range []EnterOptions{{Root: "/", UID: 0, GID: 7}, {Root: "/", UID: 7, GID: 0}, {Root: "/does/not/exist", UID: 7, GID: 7}} {
		if err := l.Enter(t.Context(), o)(); err == nil {
			t.Fatalf("%+v went well", o)
		}
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	spec := Spec{Argv: []string{"/bin/true"}, Dir: "/", Stdin: null, Stdout: null, Stderr: null}
	if _, err := l.StartProcess(t.Context(), spec); err == nil {
		t.Error("it started a process")
	}
}

func TestAListenerComesWithTheProcessesID(t *testing.T) {
	l := start(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	const script = `test "$LISTEN_PID" = $$ && test -e /proc/$$/fd/3 && ! test -e /proc/$$/fd/4 && echo $A; exec grep ^Sig[BI] /proc/self/status`
	p, err := l.StartProcess(t.Context(), Spec{Argv: []string{"sh", "-c", script}, Env: []string{"A=mine"}, Dir: "/",
		Stdin: null, Stdout: w, Stderr: w, Listen: null})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	buf := make([]byte, 4096)
	n, _ := r.Read(buf)
	// No signal is blocked or, but for what the shell catches, caught, and none is
	// ignored that was not when these tests began.
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	i := bytes.Index(status, []byte("SigIgn:\t"))
	ignored, _, _ := strings.Cut(string(status[i:]), "\n")
	out := string(buf[:n])
	if !strings.HasPrefix(out, "mine\n") || !strings.Contains(out, "SigBlk:\t0000000000000000") || !strings.Contains(out, ignored) {
		t.Errorf("%q, want %q", out, ignored)
	}
}

func TestTheKernelPrefersAFunctionsProcessOverTheLauncher(t *testing.T) {
	l := startBlank(t)
	own, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", l.PID))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Enter(t.Context(), EnterOptions{Root: "/", UID: api.FunctionID, GID: api.FunctionID})(); err != nil {
		t.Fatal(err)
	}
	if out, _ := run(t, l, "cat", "/proc/self/oom_score_adj"); out != "500\n" {
		t.Errorf("a process has %q", out)
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", l.PID)); err != nil || string(b) != string(own) {
		t.Errorf("the launcher has %q, %v; it had %q", b, err, own)
	}
}
