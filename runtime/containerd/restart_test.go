package containerd

import (
	"context"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/runtime"
	"github.com/faasd-sec/faasd-sec/runtime/containerd/daemon"
	"github.com/faasd-sec/faasd-sec/runtime/runtimetest"
)

// containerd may be upgraded or die under running sandboxes: they, their
// events and their removal must not care.
func TestSandboxesSurviveARestartOfContainerd(t *testing.T) {
	shared := need(t)
	dcfg := daemon.Default(filepath.Join(shared.dir, "d2"))
	d, err := daemon.Start(t.Context(), dcfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // after the runtime's own, which needs the daemon
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := d.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	own := &bench{dir: shared.dir, daemon: d, agent: shared.agent, serial: new(atomic.Int64)}
	own.serial.Store(1000)
	r := own.open(t)
	img := own.basic(t, r)
	first, a := own.start(t, r, own.spec(t, r, img))
	second, _ := own.start(t, r, own.spec(t, r, img))
	third, _ := own.start(t, r, own.spec(t, r, img))

	if err := syscall.Kill(d.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Do(runtimetest.Command{Do: "ping"}); err != nil {
		t.Errorf("a sandbox without containerd: %v", err)
	}
	if _, err := second.Usage(t.Context()); err != nil {
		t.Error(err)
	}
	if err := third.Remove(t.Context(), 0); err == nil {
		t.Error("a sandbox was removed without containerd")
	}
	if d, err = daemon.Start(t.Context(), dcfg); err != nil {
		t.Fatal(err)
	}
	// Who asked meanwhile asks again after a pause only, of seconds.
	eventually(t, "it is removed", func() bool { return third.Remove(t.Context(), 0) == nil })
	if _, err := a.Do(runtimetest.Command{Do: "ping"}); err != nil {
		t.Errorf("a sandbox after containerd's restart: %v", err)
	}
	// The agent may be gone before it can answer.
	_, _ = a.Do(runtimetest.Command{Do: "exit", Code: 9})
	timer := time.After(20 * time.Second)
	for seen := false; !seen; {
		select {
		case e := <-r.Events():
			if e.Kind == runtime.EventExit && e.ID == first.ID() {
				seen = true
				if e.ExitCode != 9 {
					t.Errorf("exit code %d, want 9", e.ExitCode)
				}
			}
		case <-timer:
			t.Fatal("no exit was reported")
		}
	}
	for _, s := range []runtime.Sandbox{first, second} {
		if err := s.Remove(t.Context(), 0); err != nil {
			t.Error(err)
		}
	}
	own.start(t, r, own.spec(t, r, img))
}
