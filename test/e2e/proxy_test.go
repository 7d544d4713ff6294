package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// configDir is a directory of the command line with the cluster's owner as its
// default identity.
func (c *cluster) configDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	store, err := unseal.OpenKeystore(filepath.Join(dir, "identities"))
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Save("default", c.id, []byte("passphrase"), unseal.KeyFileOptions{}); err != nil {
		t.Fatal(err)
	}
	return dir
}

// startProxy runs the real command, and returns its URL and process.
func (c *cluster) startProxy(t testing.TB, args ...string) (string, *os.Process) {
	t.Helper()
	cmd := exec.Command(bin(t, "faasd-sec"), append([]string{"proxy", "--gateway", c.Gateway(), "--config-dir", c.configDir(t), "--listen", "127.0.0.1:0", "-v"}, args...)...)
	cmd.Env = []string{"FAASD_SEC_PASSPHRASE=passphrase", "PATH=" + os.Getenv("PATH")}
	cmd.Stderr = &testWriter{t: t}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("the proxy: %v", err)
		}
	})
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if f := strings.Fields(lines.Text()); len(f) == 2 && f[0] == "ready" {
			return f[1], cmd.Process
		}
	}
	t.Fatal("the proxy ended before it was ready")
	return "", nil
}

func curl(ctx context.Context, args ...string) (string, error) {
	b, err := exec.CommandContext(ctx, "curl", append([]string{"-sS", "--fail-with-body", "--max-time", "30"}, args...)...).CombinedOutput()
	return string(b), err
}

// TestCurlThroughTheProxyLeavesNoPlaintext plays the operator again, with a caller
// that knows nothing of sealing: curl, and the proxy beside it.
func TestCurlThroughTheProxyLeavesNoPlaintext(t *testing.T) {
	needTools(t, "tcpdump", "curl")
	began := time.Now()
	c := up(t, 2)
	can := newCanaries(t)
	h := &hunt{t: t, c: c, can: can, began: began, dial: (&net.Dialer{}).DialContext}
	h.marks()
	capture := startCapture(t, "", "lo", h.ports())
	fn := h.deploy()
	url, proc := c.startProxy(t)
	url += api.GatewayPathInvoke + fn.Short()

	large := filepath.Join(t.TempDir(), "large")
	if err := os.WriteFile(large, []byte(strings.Repeat(can.large+"\n", 1<<20/33)), 0o600); err != nil {
		t.Fatal(err)
	}
	call := func(ctx context.Context) error {
		out, err := curl(ctx, "-i", "-H", "X-Test: "+can.header, "--data", can.body, url+"/"+can.path+"?q="+can.query)
		for _, want := range []string{"X-Echo-Header: " + can.header, "X-Echo-Path: /" + can.path, "X-Echo-Query: q=" + can.query, "\r\n\r\n" + can.body} {
			if err == nil && !strings.Contains(out, want) {
				err = fmt.Errorf("no %q", want)
			}
		}
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		if out, err = curl(ctx, "-X", "POST", url+"/derive?secret=/var/openfaas/secrets/token&code=/srv/code/code.txt"); err != nil || out != can.reply {
			return fmt.Errorf("%w: the function's own result: %s", err, out)
		}
		if out, err = curl(ctx, "--data-binary", "@"+large, url); err != nil || len(out) < 1<<20-64 || !strings.HasPrefix(out, can.large) {
			return fmt.Errorf("%w: the large echo has %d bytes", err, len(out))
		}
		return nil
	}
	for range 3 {
		if err := call(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := curl(t.Context(), "-X", "POST", strings.ReplaceAll(url, "canary", "nobody")); err == nil || !strings.Contains(out, `"code":"not_found"`) {
		t.Errorf("a function that is not there: %v %s", err, out)
	}

	h.search(fn)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 3 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for ctx.Err() == nil {
				if err := call(ctx); err != nil && ctx.Err() == nil {
					t.Errorf("a call during the search: %v", err)
					return
				}
			}
		}()
	}
	working := h.searchProcesses("working")
	own := sightings{}
	// Short ones are soon written over: it is looked until each has been seen.
	passing := []string{"large body", "header", "path", "query", "reply"}
	for tries := 0; tries < 10 && slices.ContainsFunc(passing, func(secret string) bool { return len(own[secret]) == 0 }); tries++ {
		if _, err := h.find.memory(proc.Pid, func(n needle, where string) { own.note(n, where) }); err != nil {
			t.Error(err)
		}
	}
	cancel()
	wg.Wait()
	seen := sightings{}
	for _, r := range working {
		if strings.HasPrefix(r.who, "function") {
			for secret, where := range r.seen {
				seen[secret] = append(seen[secret], where...)
			}
		}
	}
	for _, secret := range passing {
		if len(seen[secret]) == 0 {
			t.Errorf("the search does not find the %s in the function, where it is", secret)
		}
		if len(own[secret]) == 0 {
			t.Errorf("the search does not find the %s in the proxy, where it passes", secret)
		}
	}
	h.searchFiles("working")
	h.searchTraffic(capture)
	h.plantedProcess()
	h.report()
}
