package queue

import (
	"context"
	"time"
)

// Stats are counts of this coordinator's picture.
type Stats struct {
	Waiting    int           // calls that nobody runs
	Running    int           // that somebody does
	Deliveries int           // callbacks that are owed
	Oldest     time.Duration // age of the oldest that waits
	Dead       int64         // dead letters, as counted some seconds ago; -1 where they were not yet
}

// Stats counts.
func (q *Queue) Stats() Stats {
	now := q.cfg.Now().UnixMilli()
	q.mu.Lock()
	defer q.mu.Unlock()
	s := Stats{Deliveries: len(q.view.deliveries), Dead: q.dead}
	for _, c := range q.view.calls {
		if c.leased != 0 {
			s.Running++
			continue
		}
		s.Waiting++
		s.Oldest = max(s.Oldest, time.Duration(now-c.Arrived)*time.Millisecond)
	}
	return s
}

// countEvery is how often dead letters are counted.
const countEvery = 15 * time.Second

// keepCount counts dead letters now and then until ctx ends.
func (q *Queue) keepCount(ctx context.Context) {
	for {
		n, err := q.CountDead(ctx)
		if err == nil {
			q.mu.Lock()
			q.dead = n
			q.mu.Unlock()
		} else if ctx.Err() == nil {
			q.cfg.Log.Warn("dead letters not counted; tried again", "err", err)
		}
		if !sleep(ctx, countEvery) {
			return
		}
	}
}

// Registered reports whether this coordinator has its lease, without which it
// begins nothing.
func (q *Queue) Registered() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.lease != 0
}
