package e2e

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/local"
)

// TestBackup loses all that a coordinator, a key broker and a manifest opener
// kept, and has it back from an archive.
func TestBackup(t *testing.T) {
	need(t)
	state := t.TempDir()
	cfg := local.Config{Nodes: 1, State: state, Listen: "127.0.0.1:0", Bin: filepath.Dir(bin(t, "node")),
		Log: slog.New(slog.NewTextHandler(&testWriter{t: t}, nil))}
	lc, stop := startLocal(t, cfg)
	c := newOwner(t, lc)
	fn := c.deploy(t, "kept")
	if got := c.must(t, fn, "/upper", "abc"); got != "ABC" {
		t.Fatalf("before: %q", got)
	}

	cli := func(args ...string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, bin(t, "faasd-sec"), args...)
		cmd.Env = append(os.Environ(), "FAASD_SEC_CONFIG="+filepath.Join(state, "operator"), "FAASD_SEC_PASSPHRASE=correct horse")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		} else {
			t.Logf("%v: %s", args, out)
		}
	}
	parts := map[string]string{"--state": "coordinator", "--keybroker": "keybroker", "--manifest-opener": "manifest-opener"}
	var dirs []string
	for flag, name := range parts {
		dirs = append(dirs, flag, filepath.Join(state, name))
	}
	archive := filepath.Join(state, "cluster.tar")
	cli(append([]string{"backup", archive}, dirs...)...)
	stop()
	for _, name := range parts {
		if err := os.RemoveAll(filepath.Join(state, name)); err != nil {
			t.Fatal(err)
		}
	}
	cli(append([]string{"restore", archive}, dirs...)...)

	c.Cluster, stop = startLocal(t, cfg)
	defer stop()
	e := c.entry(t, client.Config{Gateway: c.Cluster.Gateway()})
	resp, err := e.client.Invoke(t.Context(), fn, client.Request{Path: "/upper", Body: strings.NewReader("abc")})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "ABC" {
		t.Fatalf("after: %q, %v", b, err)
	}
}

// startLocal starts a cluster; stop ends it, once.
func startLocal(t *testing.T, cfg local.Config) (*local.Cluster, func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	lc, err := local.Start(ctx, cfg)
	if err != nil {
		dumpLogs(t, cfg.State)
		t.Fatal(err)
	}
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		if t.Failed() {
			dumpLogs(t, cfg.State)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := lc.Stop(ctx); err != nil {
			t.Errorf("stop: %v", err)
		}
	}
	t.Cleanup(stop)
	return lc, stop
}
