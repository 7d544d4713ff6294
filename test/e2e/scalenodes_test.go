package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/enrol"
)

// TestReplicasOutliveTheirMachines has a function with a policy on three machines,
// drains one under load, takes another's power away under load, and has both back.
func TestReplicasOutliveTheirMachines(t *testing.T) {
	needTools(t, "ctr", "ip", "iptables", "nft", "nsenter", "tc")
	m := newMachines(t, 3)
	p := api.Pinned(3)
	fn := m.deploy(t, "lasting", tiny(&p))
	m.available(t, fn, 3)
	if by := m.replicas(t, fn); len(by) != 3 {
		t.Fatalf("not one on each machine: %v", by)
	}
	drained, off := m.nodes[1], m.nodes[2]

	l := m.steadily(t, fn, 4)
	l.more(t, 50)
	if err := enrol.RequestDrain(t.Context(), filepath.Join(m.state, "coordinator"), drained.id, true); err != nil {
		t.Fatal(err)
	}
	least := 3
	within(t, 20*time.Second, "its replica was made elsewhere", func() bool {
		st := m.status(t, fn)
		least = min(least, st.Available)
		by := m.replicas(t, fn)
		return st.Available == 3 && by[drained.id] == 0 && by[m.nodes[2].id]+by[m.nodes[3].id] == 3
	}, func() string { return fmt.Sprint(m.replicas(t, fn)) })
	l.more(t, 50)
	if again, failed := l.counts(); again > 0 || failed > 0 {
		t.Errorf("the drain cost %d repeated calls and %d failed ones", again, failed)
	}
	if err := enrol.RequestDrain(t.Context(), filepath.Join(m.state, "coordinator"), drained.id, false); err != nil {
		t.Fatal(err)
	}
	within(t, 20*time.Second, "the drained machine works again", func() bool {
		have, err := m.members(t.Context())
		return err == nil && !have[drained.id].Load.Draining
	})

	m.powerCut(t, off)
	cut := time.Now()
	within(t, 40*time.Second, "what was lost is made on the others", func() bool {
		by := m.replicas(t, fn)
		return m.status(t, fn).Available == 3 && by[off.id] == 0 && by[m.nodes[1].id]+by[m.nodes[3].id] == 3
	}, func() string { return fmt.Sprint(m.replicas(t, fn), m.status(t, fn)) })
	t.Logf("three replicas again %v after the power cut; %d at the least during the drain", time.Since(cut), least)
	l.more(t, 50)
	m.powerOn(t, off)
	m.waitNodes(t, 40*time.Second, 3)
	l.more(t, 50)
	m.available(t, fn, 3)
	again, failed := l.stop()
	t.Logf("%d calls, %d repeated, %d failed", l.calls.Load(), again, failed)
	if failed > 0 {
		t.Errorf("%d calls were not answered: %v", failed, l.errs)
	}
	for until := time.Now().Add(2 * time.Second); time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
		if st := m.status(t, fn); st.Replicas != 3 {
			t.Fatalf("%d replicas after all are back, 3 are to be", st.Replicas)
		}
	}
	have, err := m.members(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range have {
		if free := n.Load.Free; free.CPU < 0 || free.Memory < 0 {
			t.Errorf("%s has promised more than it has: %+v", n.Meta.ID, free)
		}
	}
	if err := m.client.Remove(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

// replicas counts the sandboxes of fn that can serve, by their node.
func (c *cluster) replicas(t testing.TB, fn api.FunctionName) map[string]int {
	t.Helper()
	by := map[string]int{}
	for _, s := range c.sandboxes(t, fn) {
		if s.State == "ready" || s.State == "frozen" {
			by[s.Node]++
		}
	}
	return by
}

// steady is a load whose callers repeat, as callers should, what ended because a
// part of the cluster did.
type steady struct {
	end   chan struct{}
	wg    sync.WaitGroup
	calls atomic.Int64
	again atomic.Int64

	mu   sync.Mutex
	errs []error
}

// steadily calls fn from n callers until stop.
func (c *cluster) steadily(t *testing.T, fn api.FunctionName, n int) *steady {
	s := &steady{end: make(chan struct{})}
	once := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		resp, err := c.client.Invoke(ctx, fn, client.Request{Path: "/sleep", Query: "ms=20", Body: strings.NewReader("x")})
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if _, err = io.Copy(io.Discard, resp.Body); err == nil && resp.Status != http.StatusOK {
			err = fmt.Errorf("status %d", resp.Status)
		}
		return err
	}
	for range n {
		s.wg.Go(func() {
			for {
				select {
				case <-s.end:
					return
				default:
				}
				err := once()
				for try := 0; err != nil && slices.Contains(honestCodes, api.CodeOf(err)) && try < 3; try++ {
					s.again.Add(1)
					err = once()
				}
				s.calls.Add(1)
				if err != nil {
					s.mu.Lock()
					s.errs = append(s.errs, err)
					s.mu.Unlock()
				}
			}
		})
	}
	return s
}

// more waits until n more calls have ended.
func (s *steady) more(t *testing.T, n int64) {
	t.Helper()
	want := s.calls.Load() + n
	waitFor(t, 30*time.Second, "calls to be answered", func() error {
		if s.calls.Load() < want {
			return errors.New("not yet")
		}
		return nil
	})
}

func (s *steady) counts() (again int64, failed int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.again.Load(), len(s.errs)
}

func (s *steady) stop() (again int64, failed int) {
	close(s.end)
	s.wg.Wait()
	return s.counts()
}
