package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// user is a person at a shell, with the real command and a home of his own.
type user struct {
	t       *testing.T
	dir     string
	gateway string
}

// run executes faasd-sec and returns its output; it must succeed.
func (u *user) run(stdin string, args ...string) string {
	u.t.Helper()
	out, err := u.try(stdin, args...)
	if err != nil {
		u.t.Fatalf("faasd-sec %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (u *user) try(stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(u.t.Context(), 3*time.Minute) // base images come from the distribution
	defer cancel()
	cmd := exec.CommandContext(ctx, bin(u.t, "faasd-sec"), args...)
	cmd.Env = append(os.Environ(), "FAASD_SEC_CONFIG="+u.dir, "FAASD_SEC_GATEWAY="+u.gateway, "FAASD_SEC_PASSPHRASE=correct horse")
	cmd.Stdin = strings.NewReader(stdin)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if err != nil {
		return out.String() + errOut.String(), err
	}
	return out.String(), nil
}

// startUp runs `faasd-sec up` until the test ends, and checks then that it ends
// well.
func startUp(t *testing.T, config, state string, args ...string) (gateway string) {
	t.Helper()
	cmd := exec.Command(bin(t, "faasd-sec"), append([]string{"up", "--listen", "127.0.0.1:0", "--state", state}, args...)...)
	cmd.Env = append(os.Environ(), "FAASD_SEC_CONFIG="+config)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	lines := make(chan string, 16)
	go func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			lines <- s.Text()
		}
		ended <- cmd.Wait()
	}()
	t.Cleanup(func() {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Error(err)
		}
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("up ended with %v\n%s", err, errOut.String())
			}
		case <-time.After(time.Minute):
			cmd.Process.Kill()
			t.Error("up does not end")
		}
	})
	for deadline := time.After(time.Minute); ; {
		select {
		case l := <-lines:
			if url, ok := strings.CutPrefix(l, "ready"); ok {
				return strings.TrimSpace(url)
			}
		case err := <-ended:
			ended <- err
			t.Fatalf("up ended: %v\n%s", err, errOut.String())
		case <-deadline:
			t.Fatalf("up is not ready\n%s", errOut.String())
		}
	}
}

// TestDemoPath is what a newcomer does, with the real binaries: a cluster, keys,
// each of the examples built, deployed and invoked.
func TestDemoPath(t *testing.T) {
	need(t)
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatal("needs dpkg-deb, for base images")
		}
		t.Skip("needs dpkg-deb, for base images")
	}
	state, err := os.MkdirTemp("", "fs-demo-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { noTrace(t, state); os.RemoveAll(state) })
	u := &user{t: t, dir: t.TempDir()}
	u.gateway = startUp(t, u.dir, state, "--nodes", "2")
	u.run("", "key", "new")
	if list := u.run("", "key", "list"); !strings.Contains(list, "default") {
		t.Errorf("key list: %q", list)
	}

	examples := t.TempDir()
	if err := os.CopyFS(examples, os.DirFS("../../examples/functions")); err != nil {
		t.Fatal(err)
	}
	// Go functions are compiled inside this module, the others anywhere.
	script, err := filepath.Abs("../../scripts/base-image.sh")
	if err != nil {
		t.Fatal(err)
	}
	dirs := map[string]string{
		"hello": "../../examples/functions/hello", "stream": "../../examples/functions/stream",
		"wordcount": filepath.Join(examples, "wordcount"), "risk-score": filepath.Join(examples, "risk-score"),
	}
	for name, dir := range dirs {
		u.run("", "build", dir, "--base-script", script)
		u.run("", "deploy", "-f", filepath.Join(dir, "function.yml"))
		if d := u.run("", "describe", name); !strings.Contains(d, "node-key (dev-untrusted)") {
			t.Errorf("describe %s hides what its evidence is worth:\n%s", name, d)
		}
	}
	if out := u.run("", "invoke", "hello", "--data", "newcomer"); !strings.Contains(out, "Hello, newcomer!") {
		t.Errorf("hello: %q", out)
	}
	if out := u.run("one two two\n", "invoke", "wordcount"); !strings.Contains(out, `"words":3`) {
		t.Errorf("wordcount: %q", out)
	}
	applicant := `{"debt_to_income":0.5,"late_payments":2,"years_employed":1,"account_age_years":2,"credit_used":0.9}`
	if out := u.run("", "invoke", "risk-score", "--data", applicant); !strings.Contains(out, `"decline": true`) {
		t.Errorf("risk-score: %q", out)
	}
	big := strings.Repeat("abcdefghijklmnopqrstuvwxyz012345\n", 1<<20)
	if out := u.run(big, "invoke", "stream", "--stream"); digest(out) != digest(strings.ToUpper(big)) {
		t.Errorf("stream: %d bytes came back of %d", len(out), len(big))
	}
	if out := u.run("", "logs", "hello"); !strings.Contains(out, "serving on unix") {
		t.Errorf("logs: %q", out)
	}
	if out := u.run("", "list"); strings.Count(out, "sealed") < 4 {
		t.Errorf("list: %q", out)
	}
	if out := u.run("", "nodes"); !strings.Contains(out, "node-2") || !strings.Contains(out, "dev-untrusted") {
		t.Errorf("nodes: %q", out)
	}
	u.run("", "remove", "hello")
	if out, err := u.try("", "invoke", "hello", "--data", "x"); err == nil || !strings.Contains(out, "no function") {
		t.Errorf("removed, and yet: %v %q", err, out)
	}
}

func digest(s string) string {
	d := sha256.Sum256([]byte(s))
	return hex.EncodeToString(d[:])
}

// noTrace reports processes and mounts that name the state directory.
func noTrace(t *testing.T, state string) {
	t.Helper()
	if procs, err := procsOf(state); err != nil || len(procs) > 0 {
		t.Errorf("left running: %v %v", procs, err)
	}
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(b)) {
		if strings.Contains(l, state) {
			t.Errorf("left mounted: %s", l)
		}
	}
}
