package containerd

import (
	"os"
	"strings"
	"testing"

	"github.com/faasd-sec/faasd-sec/runtime"
	"github.com/faasd-sec/faasd-sec/runtime/runtimetest"
)

func TestContainerdKeepsTheContract(t *testing.T) {
	b := need(t)
	runtimetest.Run(t, func(t *testing.T) runtimetest.Env {
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
			Launch: func(t *testing.T, s runtime.Sandbox) int {
				t.Helper()
				a := dial(t, s.Info().SocketDir)
				pid, err := a.Start(false, "/bin/fn", "as told")
				if err != nil {
					t.Fatal(err)
				}
				launched[s.ID()] = a
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
	})
}
