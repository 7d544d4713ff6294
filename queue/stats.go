package queue

import "time"

// Stats are counts of this coordinator's picture.
type Stats struct {
	Waiting    int           // calls that nobody runs
	Running    int           // that somebody does
	Deliveries int           // callbacks that are owed
	Oldest     time.Duration // age of the oldest that waits
}

// Stats counts.
func (q *Queue) Stats() Stats {
	now := q.cfg.Now().UnixMilli()
	q.mu.Lock()
	defer q.mu.Unlock()
	s := Stats{Deliveries: len(q.view.deliveries)}
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

// Registered reports whether this coordinator has its lease, without which it
// begins nothing.
func (q *Queue) Registered() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.lease != 0
}
