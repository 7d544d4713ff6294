package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// localRun is `faasd-sec run` in the foreground.
type localRun struct {
	t     *testing.T
	cmd   *exec.Cmd
	url   string
	ended chan error

	mu  sync.Mutex
	out bytes.Buffer
}

// startRun runs the real command until it serves.
func startRun(t *testing.T, config, state, dir string, args ...string) *localRun {
	t.Helper()
	r := &localRun{t: t, ended: make(chan error, 1)}
	r.cmd = exec.Command(bin(t, "faasd-sec"), append([]string{"run", dir, "--state", state, "--listen", "127.0.0.1:0"}, args...)...)
	r.cmd.Env = append(os.Environ(), "FAASD_SEC_CONFIG="+config, "FAASD_SEC_PASSPHRASE=of another identity")
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	r.cmd.Stderr = &testWriter{t: t}
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make(chan string, 1)
	go func() { // ends with the command
		for s := bufio.NewScanner(out); s.Scan(); {
			if url, ok := strings.CutPrefix(s.Text(), "ready"); ok {
				ready <- strings.TrimSpace(url)
			}
			r.mu.Lock()
			fmt.Fprintln(&r.out, s.Text())
			r.mu.Unlock()
		}
		r.ended <- r.cmd.Wait()
	}()
	t.Cleanup(func() { _ = r.cmd.Process.Kill() })
	select {
	case r.url = <-ready:
	case err := <-r.ended:
		t.Fatalf("run ended: %v", err)
	case <-time.After(2 * time.Minute):
		t.Fatal("run is not ready")
	}
	return r
}

func (r *localRun) printed() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.out.String()
}

// stop ends it as Ctrl-C does.
func (r *localRun) stop() {
	r.t.Helper()
	if err := r.cmd.Process.Signal(os.Interrupt); err != nil {
		r.t.Fatal(err)
	}
	select {
	case err := <-r.ended:
		if err != nil {
			r.t.Errorf("run ended with %v", err)
		}
	case <-time.After(100 * time.Second):
		r.t.Fatal("run does not end")
	}
}

func (r *localRun) post(body string) (string, error) {
	ctx, cancel := context.WithTimeout(r.t.Context(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url+"/function/greet", strings.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Close = true
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d", res.StatusCode)
	}
	return string(b), err
}

// TestRunServesAFunctionHereAndLeavesNothing is a developer's loop: a new function,
// run in its sandbox, called as plain HTTP, changed, and stopped; once by kill -9.
func TestRunServesAFunctionHereAndLeavesNothing(t *testing.T) {
	need(t)
	u := &user{t: t, dir: t.TempDir()}
	dir := filepath.Join(t.TempDir(), "greet")
	u.run("", "new", "--lang", "go", "--dir", dir, "greet")
	base, err := os.MkdirTemp("", "fs-run-")
	if err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(base, "s")
	t.Cleanup(func() { noTrace(t, base); os.RemoveAll(base) })

	handler := filepath.Join(dir, "handler.go")
	code, err := os.ReadFile(handler)
	if err != nil {
		t.Fatal(err)
	}
	rewrite := func(from, to string) {
		t.Helper()
		code = bytes.ReplaceAll(code, []byte(from), []byte(to))
		if err := os.WriteFile(handler, code, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	rewrite("	name, err := io.ReadAll", "	println(\"asked\")\n	name, err := io.ReadAll")
	r := startRun(t, u.dir, state, dir, "--watch")
	if out, err := r.post("Ada"); err != nil || out != "Hello, Ada!\n" {
		t.Errorf("%q, %v", out, err)
	}
	waitFor(t, 20*time.Second, "the log", func() error {
		if !strings.Contains(r.printed(), "asked") {
			return errors.New("not there")
		}
		return nil
	})
	// Two runs of one function would take each other's things away.
	second := exec.Command(bin(t, "faasd-sec"), "run", dir, "--state", state, "--listen", "127.0.0.1:0")
	second.Env = append(os.Environ(), "FAASD_SEC_CONFIG="+u.dir)
	if out, err := second.CombinedOutput(); err == nil || !strings.Contains(string(out), "run already") {
		t.Errorf("a second run: %v %s", err, out)
	}
	rewrite("%s, %s!", "%s again, %s!")
	waitFor(t, time.Minute, "the changed function", func() error {
		if out, err := r.post("Ada"); err != nil || out != "Hello again, Ada!\n" {
			return fmt.Errorf("%q, %v", out, err)
		}
		return nil
	})
	if err := r.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-r.ended

	r = startRun(t, u.dir, state, dir)
	if out, err := r.post(""); err != nil || out != "Hello again, world!\n" {
		t.Errorf("after a kill: %q, %v", out, err)
	}
	r.stop()
	for _, p := range []string{state, state + ".lock"} {
		if _, err := os.Stat(p); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", p, err)
		}
	}
	if _, err := os.Stat(filepath.Join(u.dir, "identities")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the user's own directory was written to: %v", err)
	}
}
