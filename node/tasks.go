package node

import (
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

const (
	maxTasks   = 1 << 16
	sweepEvery = 10 * time.Second
)

// taskSet remembers the tasks that this node has taken, so that it runs none
// twice: one that came twice by different messages too. Each is forgotten when it
// could not be sealed to run any more. The node's mutex guards it.
type taskSet struct {
	until map[string]time.Time
	swept time.Time
}

// begin notes a task, or refuses one that is known. A full set refuses all: to
// forget one early could run it twice.
func (t *taskSet) begin(id string, until, now time.Time) error {
	if id == "" {
		return nil
	}
	if len(t.until) >= maxTasks || now.Sub(t.swept) >= sweepEvery {
		t.swept = now
		for k, u := range t.until {
			if now.After(u) {
				delete(t.until, k)
			}
		}
	}
	if u, known := t.until[id]; known && !now.After(u) {
		return api.Errorf(api.CodeReplay, "this node has that task already")
	}
	if len(t.until) >= maxTasks {
		return api.Errorf(api.CodeBusy, "this node remembers too many tasks; try again when some have expired")
	}
	t.until[id] = until
	return nil
}

// forget drops a task that was refused before anything of it ran.
func (t *taskSet) forget(id string) { delete(t.until, id) }

// beginTask notes the task of a message that expires at expires, in milliseconds.
func (n *Node) beginTask(t *task, expires uint64) error {
	if t == nil {
		return nil
	}
	now := time.Now()
	until := time.UnixMilli(int64(min(expires, 1<<62)))
	if t.until.After(until) {
		until = t.until
	}
	if most := now.Add(replayAfter); until.After(most) {
		until = most // nothing sealed lives longer
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.tasks.begin(t.id, until.Add(sealed.MaxClockLead), now)
}

// forgetTask drops a task that was refused.
func (n *Node) forgetTask(t *task) {
	if t == nil || t.id == "" {
		return
	}
	n.mu.Lock()
	n.tasks.forget(t.id)
	n.mu.Unlock()
}
