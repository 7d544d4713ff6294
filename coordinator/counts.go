package coordinator

import (
	"sync"
	"sync/atomic"

	"github.com/faasd-sec/faasd-sec/api"
)

// counts are how many invocations of each function this coordinator has placed
// since it started.
type counts struct{ of sync.Map } // api.FunctionName -> *atomic.Int64

func (c *counts) add(name api.FunctionName) {
	v, ok := c.of.Load(name)
	if !ok {
		v, _ = c.of.LoadOrStore(name, new(atomic.Int64))
	}
	v.(*atomic.Int64).Add(1)
}

// Invocations is how many invocations of a function this coordinator has taken
// since it started, whatever came of them.
func (c *Coordinator) Invocations(name api.FunctionName) int64 {
	if v, ok := c.counts.of.Load(name); ok {
		return v.(*atomic.Int64).Load()
	}
	return 0
}
