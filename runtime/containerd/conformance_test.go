package containerd

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/runtime"
	"github.com/faasd-sec/faasd-sec/runtime/runtimetest"
)

func TestContainerdKeepsTheContract(t *testing.T) { eachShim(t, containerdKeepsTheContract) }

func containerdKeepsTheContract(t *testing.T, b *bench) {
	runtimetest.Run(t, func(t *testing.T) runtimetest.Env { return b.env(t) })
}

// The same contract for sandboxes that were made before their function.
func TestBoundSandboxesKeepTheContract(t *testing.T) { eachBind(t, boundSandboxesKeepTheContract) }

func boundSandboxesKeepTheContract(t *testing.T, b *bench) {
	runtimetest.Run(t, func(t *testing.T) runtimetest.Env {
		e := b.env(t)
		needBind(t, e.Runtime)
		e.Create = func(ctx context.Context, spec runtime.Spec) (runtime.Sandbox, error) {
			return b.tryBind(ctx, t, e.Runtime, spec)
		}
		return e
	})
}

// env is a runtime of its own for one test of the suite.
func (b *bench) env(t *testing.T) runtimetest.Env {
	r := b.open(t)
	cfg := r.cfg
	img := b.basic(t, r)
	launched := make(map[string]*runtimetest.Agent)
	run := func(t *testing.T, s runtime.Sandbox, args ...string) runtimetest.Answer {
		t.Helper()
		ans, err := launched[s.ID()].Wait(args...)
		if err != nil {
			t.Fatal(err)
		}
		return ans
	}
	return runtimetest.Env{
		Runtime: r, Image: img, Foreign: os.Getpid(),
		Spec: func(t *testing.T) runtime.Spec { return b.spec(t, r, img) },
		Reopen: func(t *testing.T) runtime.Runtime {
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			r = b.openWith(t, cfg)
			return r
		},
		Exit: func(t *testing.T, s runtime.Sandbox, code uint32) {
			// The agent has no time to answer.
			_, _ = dial(t, s.Info().SocketDir).Do(runtimetest.Command{Do: "exit", Code: int(code)})
		},
		Deafen: func(t *testing.T, s runtime.Sandbox) {
			if _, err := dial(t, s.Info().SocketDir).Do(runtimetest.Command{Do: "deaf"}); err != nil {
				t.Fatal(err)
			}
		},
		Alive: func(t *testing.T, s runtime.Sandbox) bool {
			a := dial(t, s.Info().SocketDir)
			return a.Ping(300*time.Millisecond) == nil
		},
		Launcher: func(t *testing.T, s runtime.Sandbox) int {
			pid, err := dial(t, s.Info().SocketDir).Launcher()
			if err != nil {
				t.Fatal(err)
			}
			return pid
		},
		Launch: func(t *testing.T, s runtime.Sandbox) int {
			t.Helper()
			a := dial(t, s.Info().SocketDir)
			launched[s.ID()] = a
			if s.Info().Start == api.StartPooled {
				if err := a.Launch("/bin/fn", "as told"); err != nil {
					t.Fatal(err)
				}
				pids, err := s.(*Sandbox).functionGroup().Processes()
				if err != nil || len(pids) < 2 {
					t.Fatalf("processes of the function: %v, %v", pids, err)
				}
				return slices.Max(pids)
			}
			pid, err := a.Start(false, "/bin/fn", "as told")
			if err != nil {
				t.Fatal(err)
			}
			return pid
		},
		Hog: func(t *testing.T, s runtime.Sandbox) {
			if ans := run(t, s, "hog", "256"); ans.Status != "signal: killed" {
				t.Fatalf("a function that took four times its memory: %+v", ans)
			}
		},
		Fork: func(t *testing.T, s runtime.Sandbox) {
			if ans := run(t, s, "threads", "256"); !strings.Contains(ans.Output, "resource temporarily unavailable") {
				t.Fatalf("a function that forked four times its limit: %+v", ans)
			}
		},
	}
}
