package node

import (
	"encoding/hex"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

const (
	maxTasks   = 1 << 16
	sweepEvery = 10 * time.Second
	taskFile   = "tasks" // in the state directory
)

// taskSet remembers the tasks that this node has taken, so that it runs none
// twice: one that came twice by different messages too. Each is forgotten when it
// could not be sealed to run any more. The node's mutex guards it.
type taskSet struct {
	taken map[string]taken // by id
	swept time.Time
}

// taken is a task of the set.
type taken struct {
	until time.Time
	kept  bool // it is in the taskLog, or on its way there
}

// begin notes a task, or refuses one that is known. A full set refuses all: to
// forget one early could run it twice.
func (t *taskSet) begin(id string, until, now time.Time) error {
	if id == "" {
		return nil
	}
	if len(t.taken) >= maxTasks || now.Sub(t.swept) >= sweepEvery {
		t.swept = now
		for k, u := range t.taken {
			if now.After(u.until) {
				delete(t.taken, k)
			}
		}
	}
	if u, known := t.taken[id]; known && !now.After(u.until) {
		return api.Errorf(api.CodeReplay, "this node has that task already")
	}
	if len(t.taken) >= maxTasks {
		return api.Errorf(api.CodeBusy, "this node remembers too many tasks; try again when some have expired")
	}
	t.taken[id] = taken{until: until}
	return nil
}

// openTasks finds the tasks that earlier lives of the daemon took.
func (n *Node) openTasks() error {
	until, damaged, err := readTasks(n.taskLog.path, time.Now())
	if err != nil {
		return err
	}
	if damaged > 0 {
		n.log.Warn("records of tasks were not written whole: what they were of had not begun, unless the disk is failing", "file", n.taskLog.path, "records", damaged)
	}
	n.mu.Lock()
	n.tasks.taken = make(map[string]taken, len(until))
	for id, u := range until {
		n.tasks.taken[id] = taken{u, true}
	}
	n.mu.Unlock()
	return n.taskLog.open()
}

// keptTasks are the tasks that are to be found again after a crash.
func (n *Node) keptTasks() []taskRecord {
	n.mu.Lock()
	defer n.mu.Unlock()
	now, out := time.Now(), make([]taskRecord, 0, len(n.tasks.taken))
	for id, t := range n.tasks.taken {
		if t.kept && !now.After(t.until) {
			r := taskRecord{until: t.until.UnixMilli()}
			_, _ = hex.Decode(r.id[:], []byte(id)) // it was checked when the needs were settled
			out = append(out, r)
		}
	}
	return out
}

// beginTask notes the task of a message that expires at expires, in milliseconds.
func (n *Node) beginTask(t *task, expires uint64) error {
	if t == nil {
		return nil
	}
	now := time.Now()
	until := time.UnixMilli(int64(min(expires, 1<<62)))
	// Its manifest may be shown again, with another message, while that opens.
	for _, u := range []time.Time{t.until, now.Add(sealed.MaxLife + sealed.MaxClockLead)} {
		if u.After(until) {
			until = u
		}
	}
	if most := now.Add(replayAfter); until.After(most) {
		until = most // nothing sealed lives longer
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.tasks.begin(t.id, until.Add(sealed.MaxClockLead), now)
}

// keepTask has a task that began remembered over the daemon's end. It comes
// before the first byte of it goes to an agent, and refuses where the disk does
// not take it: such a task could run twice.
func (n *Node) keepTask(t *task) error {
	if t == nil || t.id == "" {
		return nil
	}
	n.mu.Lock()
	k := n.tasks.taken[t.id]
	k.kept = true
	n.tasks.taken[t.id] = k
	n.mu.Unlock()
	r := taskRecord{until: k.until.UnixMilli() + 1} // not less for being rounded
	_, _ = hex.Decode(r.id[:], []byte(t.id))
	if err := n.taskLog.keep(r); err != nil {
		return api.Wrap(api.CodeUnavailable, err, "the node cannot write down that it runs the task")
	}
	return nil
}

// forgetTask drops a task of which nothing ran.
func (n *Node) forgetTask(t *task) {
	if t == nil || t.id == "" {
		return
	}
	n.mu.Lock()
	kept := n.tasks.taken[t.id].kept
	delete(n.tasks.taken, t.id)
	n.mu.Unlock()
	if !kept {
		return
	}
	var id [16]byte
	_, _ = hex.Decode(id[:], []byte(t.id))
	if err := n.taskLog.forget(id); err != nil {
		n.log.Warn("a task that did not run stays remembered after a restart", "err", err)
	}
}
