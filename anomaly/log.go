package anomaly

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"sync"
	"time"
)

// Log writes a log. It is safe for concurrent use. Its one goroutine, which Open
// starts and Close ends, is alone on the disk.
type Log struct {
	cfg  Config
	lock *os.File // flock: one writer for a directory
	w    *writer  // of the goroutine

	wake chan struct{} // something is queued
	quit chan struct{}
	done chan struct{}
	end  error // of the last flush; set before done is closed

	mu      sync.Mutex
	queue   []byte // records of u32 length and body, numbered, not chained
	seq     uint64 // number of the last event that was queued
	closed  bool
	lost    uint64 // events since the last Lost event
	invalid uint64 // since the last Invalid event
	first   Kind   // of those, with its field
	field   string
	stats   Stats
}

// Stats say how a log is doing.
type Stats struct {
	Appended uint64 // events taken
	Lost     uint64 // events that found the queue full, or came after Close
	Invalid  uint64 // events that did not pass Validate
	Signed   Anchor // the last event that is signed and on the disk: what to remember elsewhere
	Failures uint64 // of writing; each is tried again
	Err      error  // of the last attempt to write, nil when it succeeded
}

// Append notes e: it sets number and times, and the log's node where e names
// none. It waits for no disk. An event that does not pass Validate, or for which
// there is no room, is counted; the log says how many in an event of its own.
func (l *Log) Append(e Event) {
	if field, _ := e.fault(); field != "" {
		l.refuse(e.Kind, field)
		return
	}
	l.mu.Lock()
	if l.closed || len(l.queue)+maxBody+4 > l.cfg.QueueBytes {
		l.lost++
		l.stats.Lost++
		l.mu.Unlock()
		return
	}
	l.stats.Appended++
	before := len(l.queue)
	l.put(&e)
	// The writer is woken by the first event, and once more when it should hurry.
	tell := before == 0 || before < l.cfg.QueueBytes/2 && len(l.queue) >= l.cfg.QueueBytes/2
	l.mu.Unlock()
	if tell {
		l.poke()
	}
}

// put numbers e and queues it; l.mu is held.
func (l *Log) put(e *Event) {
	l.seq++
	e.Seq, e.TimeMs, e.BootMs = l.seq, max(0, l.cfg.Now().UnixMilli()), max(0, l.cfg.Boot())
	start := len(l.queue)
	l.queue = e.append(append(l.queue, 0, 0, 0, 0), l.cfg.Node)
	binary.BigEndian.PutUint32(l.queue[start:], uint32(len(l.queue)-start-4))
}

func (l *Log) refuse(k Kind, field string) {
	l.mu.Lock()
	if l.invalid == 0 {
		l.first, l.field = k, field
	}
	l.invalid++
	l.stats.Invalid++
	l.mu.Unlock()
	l.poke()
}

func (l *Log) poke() {
	select {
	case l.wake <- struct{}{}:
	default: // it is awake already
	}
}

// note queues an event of the log's own, whatever room there is.
func (l *Log) note(k Kind, code string, numbers map[string]int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.put(&Event{Kind: k, Code: code, Numbers: numbers})
}

// take hands the queue over and gives an empty one for it. What was lost or
// refused since is said at the queue's end.
func (l *Log) take(empty []byte) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.invalid > 0 {
		l.put(&Event{Kind: Invalid, Code: l.field, Numbers: map[string]int64{"count": int64(l.invalid), "kind": int64(l.first)}})
		l.invalid = 0
	}
	if l.lost > 0 {
		l.put(&Event{Kind: Lost, Numbers: map[string]int64{"count": int64(l.lost)}})
		l.lost = 0
	}
	full := l.queue
	l.queue = empty[:0]
	return full
}

// queued reports how many bytes wait, and whether lost or invalid events do.
func (l *Log) queued() (bytes int, any bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue), len(l.queue) > 0 || l.invalid > 0 || l.lost > 0
}

// Stats returns the counts so far.
func (l *Log) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stats
}

func (l *Log) outcome(err error, signed Anchor) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stats.Err = err; err != nil {
		l.stats.Failures++
	}
	l.stats.Signed = signed
}

// run is the log's goroutine.
func (l *Log) run() {
	defer close(l.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-l.quit:
			l.end = l.w.flush(true)
			l.outcome(l.end, l.w.signed)
			l.w.close()
			if err := l.lock.Close(); err != nil && l.end == nil {
				l.end = fmt.Errorf("anomaly: close the log: %w", err)
			}
			return
		case <-l.wake:
		case <-timer.C:
		}
		now := time.Now()
		due := l.w.due(now)
		if !due.After(now) {
			err := l.w.flush(false)
			l.outcome(err, l.w.signed)
			l.w.flushed(time.Now(), err)
			due = l.w.due(time.Now())
		}
		timer.Reset(max(time.Millisecond, time.Until(due)))
	}
}

// Close writes what is queued, ends the last segment with its signature and
// gives the directory free. Where ctx ends first the goroutine still finishes
// its write, and the log is found unclosed if the process ends before.
func (l *Log) Close(ctx context.Context) error {
	l.mu.Lock()
	again := l.closed
	l.closed = true
	l.mu.Unlock()
	if !again {
		close(l.quit)
	}
	select {
	case <-l.done:
		return l.end
	case <-ctx.Done():
		return fmt.Errorf("anomaly: close the log: %w", ctx.Err())
	}
}
