package agent

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// startBinary runs the real agent binary as PID 1 of a pid and mount namespace,
// with the test's directory where the node's would be.
func (w *world) startBinary() (pid int) {
	w.t.Helper()
	for _, tool := range []string{"unshare", "go"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("REQUIRE_ALL") == "1" {
				w.t.Fatal(err)
			}
			w.t.Skip(err)
		}
	}
	bin := filepath.Join(filepath.Dir(testBinary), "real-agent")
	if _, err := os.Stat(bin); err != nil {
		build := exec.Command("go", "build", "-trimpath", "-o", bin, "../cmd/agent")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			w.t.Fatalf("build: %v\n%s", err, out)
		}
	}
	w.node = newTestNode(w)
	const script = `mount -t tmpfs none /run && mkdir /run/faasd-sec && mount --bind "$1" /run/faasd-sec && exec "$2"`
	cmd := exec.Command("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script, "sh", w.dir, bin)
	cmd.Env = RequiredEnv(testUID, testGID)[:2] // it sets the third by itself
	cmd.Env = append(cmd.Env, "PATH="+os.Getenv("PATH"))
	stderr := must[*os.File](w.t)(os.CreateTemp(w.t.TempDir(), "stderr"))
	defer stderr.Close()
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.done, w.cancel = make(chan error, 1), func() { w.node.send(api.Control{Stop: &api.Stop{GraceMs: 1000}}) }
	go func() { w.done <- cmd.Wait() }()
	w.t.Cleanup(func() {
		if w.t.Failed() {
			b, err := os.ReadFile(stderr.Name())
			w.t.Logf("agent: %s %v", b, err)
		}
		w.stop()
		w.node.close()
	})
	w.node.wait("ready", func(n *testNode) bool { return n.ready })
	eventually(w.t, "the agent's pid", func() bool {
		b, err := os.ReadFile(procPath(cmd.Process.Pid, "task", fmt.Sprint(cmd.Process.Pid), "children"))
		if err == nil {
			_, err = fmt.Sscan(string(b), &pid)
		}
		return err == nil
	})
	return pid
}

func TestAgentAsPID1(t *testing.T) {
	w := newWorld(t, nil)
	pid := w.startBinary()
	if _, body := w.get("/echo", "through the real binary"); body != "through the real binary" {
		t.Fatal(body)
	}
	status := procStatus(t, pid)
	for k, want := range map[string]string{"CapEff": "0000000000000000", "CapPrm": "0000000000000000", "CapInh": "0000000000000000",
		"CapBnd": "0000000000000000", "CapAmb": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2"} {
		if status[k] != want {
			t.Errorf("agent: %s is %s, want %s", k, status[k], want)
		}
	}
	tasks, err := os.ReadDir(procPath(pid, "task"))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks { // a filter or a capability is a thread's own
		b, err := os.ReadFile(procPath(pid, "task", task.Name(), "status"))
		if err != nil {
			continue
		}
		if s := string(b); !strings.Contains(s, "Seccomp:\t2") || !strings.Contains(s, "CapEff:\t0000000000000000") {
			t.Errorf("thread %s is not confined", task.Name())
		}
	}
	if _, body := w.invoke(call{head: sealed.RequestHead{Method: "GET", Path: "/file", Query: "/proc/1/environ"}}); !strings.Contains(body, "permission denied") {
		t.Errorf("the function read the agent's environment: %s", body)
	}
	if _, body := w.invoke(call{head: sealed.RequestHead{Method: "GET", Path: "/file", Query: "/proc/self/status"}}); !strings.Contains(body, "CapBnd:\t0000000000000000") {
		t.Errorf("the function's bounding set: %s", body)
	}
	t.Logf("agent: %s resident, launcher: %s", status["VmRSS"], procStatus(t, w.node.pids[0])["VmRSS"])
	if err := w.stop(); err != nil {
		t.Errorf("the agent's exit: %v", err)
	}
}

func TestPID1ReapsOrphans(t *testing.T) {
	w := newWorld(t, shell(sealed.ModeSerializing, `setsid sh -c 'sleep 0.05' >/dev/null 2>&1 & true`))
	pid := w.startBinary()
	for range 10 {
		if a, _ := w.get("/", ""); a.head.Status != 200 {
			t.Fatalf("%+v", a)
		}
	}
	eventually(t, "PID 1 has no child but the launcher", func() bool {
		n := 0
		tasks, err := os.ReadDir(procPath(pid, "task"))
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			b, err := os.ReadFile(procPath(pid, "task", task.Name(), "children"))
			if err == nil {
				n += len(strings.Fields(string(b)))
			}
		}
		return n == 1
	})
	// SIGTERM from outside is a stop too.
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	w.cancel = func() {}
	if err := w.stop(); err != nil {
		t.Errorf("the agent's exit: %v", err)
	}
}

func procStatus(t *testing.T, pid int) map[string]string {
	t.Helper()
	f := must[*os.File](t)(os.Open(procPath(pid, "status")))
	defer f.Close()
	out := map[string]string{}
	for sc := bufio.NewScanner(f); sc.Scan(); {
		k, v, _ := strings.Cut(sc.Text(), ":")
		out[k] = strings.TrimSpace(v)
	}
	return out
}
