package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
)

// Group owns a daemon's servers: when one fails, the daemon is told; Stop ends
// them all and Wait returns when they have ended.
type Group struct {
	ctx    context.Context
	cancel context.CancelFunc
	log    *slog.Logger
	wg     sync.WaitGroup

	mu     sync.Mutex
	err    error
	once   sync.Once
	failed chan struct{}
}

// NewGroup makes a Group whose members end with ctx at the latest.
func NewGroup(ctx context.Context, log *slog.Logger) *Group {
	g := &Group{log: log, failed: make(chan struct{})}
	g.ctx, g.cancel = context.WithCancel(ctx)
	return g
}

// Go runs f. Its return before Stop counts as a failure.
func (g *Group) Go(name string, f func(context.Context) error) {
	g.wg.Add(1)
	go func() {
		defer g.wg.Done()
		err := f(g.ctx)
		if g.ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
			return
		}
		if err == nil {
			err = errors.New("ended by itself")
		}
		g.mu.Lock()
		g.err = errors.Join(g.err, fmt.Errorf("%s: %w", name, err))
		g.mu.Unlock()
		g.log.Error("part of the daemon failed", "part", name, "err", err)
		g.once.Do(func() { close(g.failed) })
	}()
}

// Failed is closed when a member failed.
func (g *Group) Failed() <-chan struct{} { return g.failed }

// Stop ends all members.
func (g *Group) Stop() { g.cancel() }

// Wait returns the members' failures once all have ended.
func (g *Group) Wait() error {
	g.wg.Wait()
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}
