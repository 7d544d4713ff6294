package queue

import (
	"context"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// orphanEvery is between two looks for leases under which nobody works.
const orphanEvery = time.Second

// work notes that something is done here about a lease, which rest ends.
func (q *Queue) work(name string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.busy[name]++
}

func (q *Queue) rest(name string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.busy[name]--; q.busy[name] <= 0 {
		delete(q.busy, name)
	}
}

// freeOrphans gives leases of this coordinator back under which it does nothing: that
// of a claim of whose success it was not told, or of an attempt whose outcome could
// not be stored. They would last as long as the coordinator does, and nobody else
// attempts the call meanwhile.
func (q *Queue) freeOrphans(ctx context.Context) {
	seen := map[string]int64{}
	for sleep(ctx, orphanEvery) {
		now := q.orphans()
		for name, fence := range now {
			if seen[name] != fence {
				continue // most likely the news of its end is on its way
			}
			key := q.key(keyLease, name)
			_, err := q.commit(ctx, "give a lease back", []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key), "=", fence)},
				[]clientv3.Op{clientv3.OpDelete(key)}, nil)
			if err != nil {
				if ctx.Err() == nil {
					q.cfg.Log.Warn("lease of a call that nobody attempts not given back; tried again", "lease", name, "err", err)
				}
				break
			}
		}
		seen = now
	}
}

// orphans are the fences of such leases, by name, as far as is known.
func (q *Queue) orphans() map[string]int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := map[string]int64{}
	for name, h := range q.view.leases {
		if h.by == q.cfg.ID && q.running[name] == nil && q.busy[name] == 0 {
			out[name] = h.fence
		}
	}
	return out
}
