package openfaas

import (
	"context"
	"sync/atomic"
	"testing"
	"time"
)

// counted is a context that knows how many others are to end with it.
type counted struct {
	context.Context
	held atomic.Int64
}

// Value keeps the context package from looking behind it.
func (c *counted) Value(any) any { return nil }

// AfterFunc is what the context package calls for each that depends on c.
func (c *counted) AfterFunc(f func()) func() bool {
	c.held.Add(1)
	stop := context.AfterFunc(c.Context, f)
	return func() bool { c.held.Add(-1); return stop() }
}

// Requests for logs leave nothing behind for as long as the gateway lives.
func TestALogThatWasReadLeavesNothing(t *testing.T) {
	d := newDomain()
	d.functions["f.openfaas-fn"] = Function{}
	g := serve(t, d)
	life := &counted{Context: t.Context()}
	g.h.life = life
	for _, follow := range []string{"false", "true"} {
		if status, body := g.do("GET", "/system/logs?name=f&follow="+follow, nil); status != 200 {
			t.Fatalf("%d %s", status, body)
		}
	}
	for end := time.Now().Add(30 * time.Second); life.held.Load() != 0; time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d are left", life.held.Load())
		}
	}
}
