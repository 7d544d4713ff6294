package agent

import "sync/atomic"

// budget is an amount of bytes that many share. Nobody waits for it: who finds
// it spent is refused, so that load beyond the memory that was reserved for the
// agent ends in an error and not in the kernel killing it.
type budget struct{ left atomic.Int64 }

func newBudget(n int64) *budget {
	b := &budget{}
	b.left.Store(n)
	return b
}

// take reserves n bytes, all or none.
func (b *budget) take(n int64) bool {
	if b.left.Add(-n) >= 0 {
		return true
	}
	b.left.Add(n)
	return false
}

func (b *budget) give(n int64) { b.left.Add(n) }
