package e2e

import (
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/local"
)

// TestASplitHoldsWhicheverCoordinatorIsAsked divides the calls of a sealed function
// by a statement that its owner gave to one of three coordinators, and makes them
// through all three in turn, through two when one is killed, and after the owner
// said something else to another.
func TestASplitHoldsWhicheverCoordinatorIsAsked(t *testing.T) {
	c := up(t, 2, func(cfg *local.Config) { cfg.Coordinators = 3 })
	entries := c.through(t, c.Gateways())
	name := api.FunctionName("which.openfaas-fn")
	s := &splitCalls{name: name, colors: map[string]string{}, known: map[string]string{}}
	for _, color := range []string{"blue", "green"} {
		c.deploy(t, "which", tiny(nil), func(d *client.Deployment) { d.Bundle.Env = map[string]string{"COLOR": color} })
		within(t, 30*time.Second, color+" answers", func() bool { return strings.Contains(c.must(t, name, "/env?name=COLOR", ""), color) })
		s.known[c.status(t, name).Revision] = color
	}
	blue, green := s.revision("blue"), s.revision("green")
	if len(s.known) != 2 {
		t.Fatalf("%v", s.known)
	}
	within(t, 30*time.Second, "blue has ended", func() bool { return len(c.status(t, name).Serving) == 0 })
	if _, err := c.client.Divide(t.Context(), name, map[string]int{blue: 30, green: 70}, time.Hour, c.keyring); err != nil {
		t.Fatal(err)
	}
	s.told(t, entries, 2)
	const calls = 1500
	seen := s.inTurn(t, entries, 0, calls)
	if off := math.Abs(float64(seen["blue"])*100/calls - 30); off > 4 {
		t.Errorf("%v of %d calls through three coordinators, want 30 %% blue", seen, calls)
	}
	t.Logf("%v", seen)
	// The same ids again, each through the next coordinator and the one after.
	s.inTurn(t, entries[1:], 0, 100)
	s.inTurn(t, []*entry{entries[2], entries[0], entries[1]}, 0, 100)

	// One dies: the others go on as before, for who calls already and for who comes.
	if err := c.Signal("coordinator", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	rest := append(entries[1:3:3], c.through(t, c.Gateways()[1:])...)
	s.inTurn(t, rest, 0, 200)
	seen = s.inTurn(t, rest, calls, calls+600)
	if off := math.Abs(float64(seen["blue"])*100/600 - 30); off > 6 {
		t.Errorf("%v of 600 calls through two coordinators, want 30 %% blue", seen)
	}
	waitFor(t, 40*time.Second, "all coordinators to be back", func() error { return allReady(t.Context(), c.Gateways()) })
	s.inTurn(t, entries, 0, 60)

	// What the owner says to another coordinator counts at all of them, soon.
	err := entries[2].as(c, func() error {
		_, err := c.client.Divide(t.Context(), name, map[string]int{green: 100}, time.Hour, c.keyring)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	s.told(t, entries, 0)
	for i := range 60 {
		id := fmt.Sprintf("call-%d", i)
		if color, err := s.call(t.Context(), entries[i%3], id); err != nil || color != "green" {
			t.Errorf("%s after blue has no share: %q, %v", id, color, err)
		}
	}
}

// splitCalls are calls of a function whose revisions each have a color.
type splitCalls struct {
	name  api.FunctionName
	known map[string]string // color by revision

	mu     sync.Mutex
	colors map[string]string // by id of the call
}

func (s *splitCalls) revision(color string) string {
	for rev, c := range s.known {
		if c == color {
			return rev
		}
	}
	return ""
}

// told waits until all coordinators tell of so many revisions that serve beside
// each other.
func (s *splitCalls) told(t *testing.T, entries []*entry, serving int) {
	t.Helper()
	for i, e := range entries {
		waitFor(t, 30*time.Second, fmt.Sprintf("coordinator %d to tell of the division", i+1), func() error {
			st, err := e.client.Describe(t.Context(), s.name)
			if err == nil && len(st.Serving) != serving {
				err = fmt.Errorf("%d revisions serve", len(st.Serving))
			}
			return err
		})
	}
}

// inTurn makes the calls from first to last through one entry after the other, and
// counts them by color. One id has one color, whenever and wherever it calls.
func (s *splitCalls) inTurn(t *testing.T, entries []*entry, first, last int) map[string]int {
	t.Helper()
	seen, ids := map[string]int{}, make(chan int, last-first)
	for i := first; i < last; i++ {
		ids <- i
	}
	close(ids)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range ids {
				id := fmt.Sprintf("call-%d", i)
				color, err := s.call(t.Context(), entries[i%len(entries)], id)
				if err != nil {
					t.Errorf("%s: %v", id, err)
					continue
				}
				s.mu.Lock()
				if before := s.colors[id]; before != "" && before != color {
					t.Errorf("%s came to %s, and through %s to %s", id, before, entries[i%len(entries)].gateway, color)
				}
				s.colors[id] = color
				seen[color]++
				s.mu.Unlock()
			}
		})
	}
	wg.Wait()
	return seen
}

// call makes one call, and holds what answered against what it was sealed for.
func (s *splitCalls) call(ctx context.Context, e *entry, id string) (color string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	res, err := e.client.Invoke(ctx, s.name, client.Request{Path: "/env", Query: "name=COLOR", CallID: id})
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.Status != http.StatusOK {
		return "", fmt.Errorf("%d %s %w", res.Status, b, err)
	}
	color = s.known[res.Meta.Revision.String()]
	if color == "" || !strings.Contains(string(b), color) {
		return "", fmt.Errorf("%q answered for revision %s", b, res.Meta.Revision)
	}
	return color, nil
}
