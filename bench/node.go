package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// nodeState is what a node tells of itself by its metrics.
type nodeState struct {
	sandboxes int // of functions
	frozen    int // of these
	depth     int // sandboxes without a function that are ready
	target    int // how many there should be
	creating  int // being made
	made      int // since the node started
}

// metrics says which metric each part of the state is.
func (s *nodeState) metrics() map[string]*int {
	return map[string]*int{
		"faasd_sec_node_sandboxes": &s.sandboxes, "faasd_sec_node_sandboxes_frozen": &s.frozen,
		"faasd_sec_node_pool_depth": &s.depth, "faasd_sec_node_pool_target": &s.target, "faasd_sec_node_pool_creating": &s.creating,
		"faasd_sec_node_pool_fill_seconds_count": &s.made,
	}
}

// atRest reports whether no function has a sandbox and the pool makes nothing.
// Its target may be higher than its depth for as long as the machine is busy.
func (s nodeState) atRest() bool {
	return s.sandboxes == 0 && s.creating == 0 && s.depth >= min(s.target, poolMin)
}

// poolMin is what a node keeps ready at the least, unless it is told otherwise.
const poolMin = 2

// nodeWatch reads the node's metrics.
type nodeWatch struct{ url string }

func (w *world) watch() (nodeWatch, error) {
	p, err := w.find("node")
	if err != nil {
		return nodeWatch{}, err
	}
	addr := p.flag("-ops-listen")
	if addr == "" {
		return nodeWatch{}, errors.New("the node serves no metrics")
	}
	return nodeWatch{"http://" + addr + "/metrics"}, nil
}

// state reads the metrics that make a nodeState.
func (w nodeWatch) state(ctx context.Context) (nodeState, error) {
	text, err := w.text(ctx)
	if err != nil {
		return nodeState{}, err
	}
	var s nodeState
	for metric, into := range s.metrics() {
		v, err := sample(text, metric)
		if err != nil {
			return nodeState{}, err
		}
		*into = int(v)
	}
	return s, nil
}

// direct counts the invocations that the node's own gateway served.
func (w nodeWatch) direct(ctx context.Context) (int, error) {
	text, err := w.text(ctx)
	if err != nil {
		return 0, err
	}
	v, err := sample(text, `faasd_sec_invocations_total{code="ok"}`)
	return int(v), err
}

func (w nodeWatch) text(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.url, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", fmt.Errorf("read the node's metrics: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err != nil {
		return "", fmt.Errorf("read the node's metrics: %w", err)
	}
	return string(b), nil
}

// sample finds a metric without labels. One that is not there is an error: the
// node and this program must mean the same.
func sample(text, name string) (float64, error) {
	for line := range strings.SplitSeq(text, "\n") {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			if err != nil {
				return 0, fmt.Errorf("metric %s: %w", name, err)
			}
			return v, nil
		}
	}
	return 0, fmt.Errorf("the node exports no %s", name)
}

// until polls the node's state until ok accepts it.
func (w nodeWatch) until(ctx context.Context, what string, every, patience time.Duration, ok func(nodeState) bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		s, err := w.state(ctx)
		if err == nil && ok(s) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the node did not come to have %s within %v (it has %+v): %w", what, patience, s, errors.Join(err, ctx.Err()))
		case <-tick.C:
		}
	}
}

// quiet waits until the node is at rest, and a moment more for what the kernel
// still takes down.
func (w nodeWatch) quiet(ctx context.Context) error {
	if err := w.until(ctx, "no sandboxes and a pool at rest", 10*time.Millisecond, time.Minute, twice(nodeState.atRest)); err != nil {
		return err
	}
	return wall{}.Sleep(ctx, time.Now().Add(15*time.Millisecond))
}

// twice accepts what ok accepts two times in turn: between two creations a pool
// is at rest for a moment.
func twice(ok func(nodeState) bool) func(nodeState) bool {
	times := 0
	return func(s nodeState) bool {
		times++
		if !ok(s) {
			times = 0
		}
		return times >= 2
	}
}
