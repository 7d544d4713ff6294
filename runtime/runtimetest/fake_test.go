package runtimetest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/runtime"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// controls are how a test steers the agents of a Fake, by sandbox.
type controls struct {
	mu   sync.Mutex
	exit map[string]chan uint32
	deaf map[string]bool
}

func (c *controls) agent(ctx context.Context, task Task) uint32 {
	c.mu.Lock()
	exit := make(chan uint32, 1)
	c.exit[task.Spec.ID] = exit
	c.mu.Unlock()
	term := task.Term
	for {
		select {
		case <-term:
			c.mu.Lock()
			deaf := c.deaf[task.Spec.ID]
			c.mu.Unlock()
			if !deaf {
				return 0
			}
			term = nil
		case code := <-exit:
			return code
		case <-ctx.Done():
			return 137
		}
	}
}

func TestFakeKeepsTheContract(t *testing.T) {
	Run(t, func(t *testing.T) Env {
		c := &controls{exit: make(map[string]chan uint32), deaf: make(map[string]bool)}
		f := NewFake(c.agent)
		t.Cleanup(func() {
			for _, id := range f.Sandboxes() {
				f.Kill(id)
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		})
		img := runtime.Image{Ref: "x", Digest: "sha256:" + fmt.Sprintf("%064d", 7)}
		f.AddImage(img)
		agent := filepath.Join(t.TempDir(), "agent")
		if err := os.WriteFile(agent, nil, 0o755); err != nil {
			t.Fatal(err)
		}
		n := 0
		return Env{
			Runtime: f, Image: img, Foreign: os.Getppid(),
			Spec: func(t *testing.T) runtime.Spec {
				n++
				return runtime.Spec{
					ID: fmt.Sprintf("s%d", n), Image: img, AgentPath: agent, SocketDir: t.TempDir(),
					Resources: api.Resources{CPU: 100, Memory: 1 << 20, PIDs: 8},
				}
			},
			Reopen: func(*testing.T) runtime.Runtime { f = f.Reopen(); return f },
			Exit: func(_ *testing.T, s runtime.Sandbox, code uint32) {
				// The agent's goroutine may not have begun yet.
				for {
					c.mu.Lock()
					ch := c.exit[s.ID()]
					c.mu.Unlock()
					if ch != nil {
						ch <- code
						return
					}
				}
			},
			Deafen: func(_ *testing.T, s runtime.Sandbox) {
				c.mu.Lock()
				c.deaf[s.ID()] = true
				c.mu.Unlock()
			},
			Alive:    func(_ *testing.T, s runtime.Sandbox) bool { return !f.Frozen(s.ID()) },
			Launcher: func(_ *testing.T, s runtime.Sandbox) int { return s.Info().PID + 1 },
			Launch:   func(_ *testing.T, s runtime.Sandbox) int { return s.Info().PID + 1 },
			Hog:      func(_ *testing.T, s runtime.Sandbox) { f.OOM(s.ID()) },
			Fork:     func(_ *testing.T, s runtime.Sandbox) { f.RefuseFork(s.ID()) },
		}
	})
}
