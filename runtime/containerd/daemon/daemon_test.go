package daemon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs a daemon in its own short directory: the names that t.TempDir
// gives are too long for sockets.
func start(t *testing.T) (*Daemon, Config) {
	t.Helper()
	dir, err := os.MkdirTemp("", "fsd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	cfg := Default(filepath.Join(dir, "c"))
	d, err := Start(t.Context(), cfg)
	if errors.Is(err, ErrNotInstalled) || os.Getuid() != 0 {
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatalf("REQUIRE_ALL=1: %v", err)
		}
		t.Skip("needs root and containerd")
	}
	if err != nil {
		t.Fatal(err)
	}
	return d, cfg
}

func stop(t *testing.T, d *Daemon) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := d.Stop(ctx); err != nil {
		t.Error(err)
	}
}

func TestADaemonServesUntilItIsStopped(t *testing.T) {
	d, cfg := start(t)
	c, err := client.New(d.Address())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Version(t.Context()); err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	stop(t, d)
	for _, left := range []string{d.Address(), d.Address() + ".ttrpc", d.pidFile()} {
		if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", left, err)
		}
	}
	if d.alive(d.PID()) {
		t.Error("the daemon still runs")
	}
	if _, err := os.Stat(filepath.Join(cfg.Dir, "containerd.log")); err != nil {
		t.Error(err)
	}
	again, err := Start(t.Context(), cfg) // the same directory serves again
	if err != nil {
		t.Fatal(err)
	}
	stop(t, again)
}

func TestARunningDaemonIsFoundAgain(t *testing.T) {
	d, cfg := start(t)
	other, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if other.PID() != d.PID() {
		t.Errorf("a second daemon %d beside %d", other.PID(), d.PID())
	}
	stop(t, other)
}

// A parent may be killed between the start and the writing of the file.
func TestADaemonWhosePIDWasNeverWrittenIsFoundAgain(t *testing.T) {
	d, cfg := start(t)
	for name, spoil := range map[string]func() error{
		"none":      func() error { return os.Remove(d.pidFile()) },
		"empty":     func() error { return os.WriteFile(d.pidFile(), nil, 0o600) },
		"another's": func() error { return writePID(d.pidFile(), os.Getpid()) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		other, err := Start(t.Context(), cfg)
		if err != nil {
			stop(t, d)
			t.Fatalf("%s: %v", name, err)
		}
		if other.PID() != d.PID() {
			t.Errorf("%s: a second daemon %d beside %d", name, other.PID(), d.PID())
			_ = other.kill()
		}
	}
	stop(t, d)
	if _, err := os.Stat(d.pidFile()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the pid file is left: %v", err)
	}
}

func TestAStalePIDFileIsNoDaemon(t *testing.T) {
	d, cfg := start(t)
	stop(t, d)
	// Another process may have got the number meanwhile: this one, say.
	if err := writePID(d.pidFile(), os.Getpid()); err != nil {
		t.Fatal(err)
	}
	again, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if again.PID() == os.Getpid() {
		t.Fatal("this process was taken for a daemon")
	}
	stop(t, again)
}

func TestWhatIsMissingIsSaid(t *testing.T) {
	cfg := Default(t.TempDir())
	cfg.Program = "containerd-that-is-not-there"
	_, err := Start(t.Context(), cfg)
	if !errors.Is(err, ErrNotInstalled) && !strings.Contains(err.Error(), "unix socket") {
		t.Errorf("no containerd: %v", err)
	}
	cfg.Socket = "/tmp/x.sock"
	if _, err := Start(t.Context(), cfg); !errors.Is(err, ErrNotInstalled) || !strings.Contains(err.Error(), "scripts/setup.sh") {
		t.Errorf("no containerd: %v", err)
	}
	cfg.Socket = "/tmp/" + strings.Repeat("x", 110)
	if _, err := Start(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "too long for a unix socket") {
		t.Errorf("a long path: %v", err)
	}
}

func TestADaemonThatDiesAtOnceIsReported(t *testing.T) {
	_, cfg := start(t)
	other := Default(filepath.Join(cfg.Dir, "broken"))
	other.Socket = filepath.Join(cfg.Dir, "b.sock")
	if err := os.MkdirAll(filepath.Join(other.Dir, "root"), 0o700); err != nil {
		t.Fatal(err)
	}
	// A file where containerd wants a directory.
	if err := os.WriteFile(filepath.Join(other.Dir, "root", "io.containerd.metadata.v1.bolt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	other.Start = 3 * time.Second
	begin := time.Now()
	if d, err := Start(t.Context(), other); err == nil {
		stop(t, d)
		t.Error("it started")
	} else if !strings.Contains(err.Error(), "containerd.log") {
		t.Errorf("%v", err)
	}
	t.Log(time.Since(begin))
	d, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	stop(t, d)
}
