package queue

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/faasd-sec/faasd-sec/api"
)

// Plan is a row of calls that their maker sealed ahead, one for each tick of a
// schedule. Its Cursor says how far it is: each tick is taken from the plan in one
// transaction with the move of the cursor, so that it becomes one call or is counted
// as none, whichever coordinators look at it and whatever becomes of them.
type Plan struct {
	ID       string           `json:"id"`
	Function api.FunctionName `json:"function"`
	Owner    string           `json:"owner"` // fingerprint of the function's owner, hex
	Maker    string           `json:"maker"` // fingerprint of who sealed the calls, hex
	Deliver  Deliver          `json:"deliver"`
	Stored   int64            `json:"stored"` // unix milliseconds of the last upload
	Parts    []Part           `json:"parts"`  // the earliest first

	Cursor  Cursor `json:"-"`
	version int64
}

// Part is what came with one upload.
type Part struct {
	ID       string `json:"id"`
	Revision string `json:"revision"` // of the function that it was sealed for, hex
	First    int64  `json:"first"`    // unix milliseconds of its first tick
	Last     int64  `json:"last"`
	Ticks    int    `json:"ticks"` // as it came
	Size     int64  `json:"size"`  // bytes, as it came
}

// Cursor is how far a plan is.
type Cursor struct {
	Next    int64    `json:"next,omitempty"` // unix milliseconds of the next tick; 0 for none
	Last    int64    `json:"last,omitempty"` // of the last one that was looked at
	Left    int      `json:"left"`           // ticks that are there
	Made    int64    `json:"made"`           // that became calls
	Missed  int64    `json:"missed"`         // that nobody made in time
	Refused int64    `json:"refused"`        // that could not be calls, for Why
	Why     *Failure `json:"why,omitempty"`  // of the last tick, if it was refused
	version int64
}

// Until is the plan's last tick, in unix milliseconds.
func (p *Plan) Until() int64 { return p.Parts[len(p.Parts)-1].Last }

// Held are the ticks that a plan may have in the store, and their bytes: parts count
// whole until they are over.
func (p *Plan) Held() (ticks int, size int64) {
	for _, part := range p.live() {
		ticks, size = ticks+part.Ticks, size+part.Size
	}
	return ticks, size
}

// live are the parts of which ticks are left.
func (p *Plan) live() []Part {
	i := slices.IndexFunc(p.Parts, func(part Part) bool { return p.Cursor.Next != 0 && part.Last >= p.Cursor.Next })
	if i < 0 {
		return nil
	}
	return p.Parts[i:]
}

// LeftFor counts the ticks left that were sealed for revisions that ok takes.
func (p *Plan) LeftFor(ok func(revision string) bool) (n int) {
	left := p.Cursor.Left
	for _, part := range slices.Backward(p.live()) {
		here := min(part.Ticks, left)
		if left -= here; ok(part.Revision) {
			n += here
		}
	}
	return n
}

// plan joins a plan with its cursor. q.mu is held.
func (v *view) plan(id string) (Plan, bool) {
	p, ok := v.plans[id]
	p.Cursor = v.cursors[id]
	return p, ok && len(p.Parts) > 0
}

// applyPlan takes a change of a plan or its cursor over. q.mu is held.
func (q *Queue) applyPlan(name string, value []byte, kv *mvccpb.KeyValue) {
	var err error
	v := &q.view
	if id, ok := strings.CutPrefix(name, keyCursor); ok {
		delete(v.cursors, id)
		var c Cursor
		if kv != nil {
			if err = json.Unmarshal(value, &c); err == nil {
				c.version = kv.ModRevision
				v.cursors[id] = c
			}
		}
	} else {
		id := strings.TrimPrefix(name, keyPlan)
		delete(v.plans, id)
		var p Plan
		if kv != nil {
			if err = json.Unmarshal(value, &p); err == nil && p.ID == id {
				p.version = kv.ModRevision
				v.plans[id] = p
			}
		}
	}
	if err != nil {
		q.cfg.Log.Error("schedule left out: its record is damaged", "record", name, "err", err)
	}
}

// Plan gives one plan as this coordinator's picture has it.
func (q *Queue) Plan(id string) (Plan, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.ready(); err != nil {
		return Plan{}, err
	}
	p, ok := q.view.plan(id)
	if !ok {
		return Plan{}, noPlan(id)
	}
	return p, nil
}

func noPlan(id string) error {
	e := api.Errorf(api.CodeNotFound, "no schedule %q is known", id)
	e.Field, e.Remedy = "id", "faasd-sec schedule list shows what is there"
	return e
}

// Plans lists plans by function and id: all, or those that ok takes.
func (q *Queue) Plans(ok func(*Plan) bool) []Plan {
	q.mu.Lock()
	defer q.mu.Unlock()
	var out []Plan
	for id := range q.view.plans {
		if p, there := q.view.plan(id); there && (ok == nil || ok(&p)) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b Plan) int {
		return strings.Compare(string(a.Function)+"/"+a.ID, string(b.Function)+"/"+b.ID)
	})
	return out
}

// Due lists plans with a tick whose time has come. Of a plan one coordinator is told
// at once, on whom all agree; the others only once the tick is late.
func (q *Queue) Due(now time.Time, late time.Duration) []Plan {
	ms, overdue := now.UnixMilli(), now.Add(-late).UnixMilli()
	return q.Plans(func(p *Plan) bool {
		return p.Cursor.Next != 0 && p.Cursor.Next <= ms && (p.Cursor.Next <= overdue || q.view.mine("", p.ID))
	})
}

// Mine reports whether a plan is this coordinator's to look after.
func (q *Queue) Mine(id string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.view.mine("", id)
}

func (q *Queue) tickKey(part string, at int64) string {
	return q.key(keyTick, fmt.Sprintf("%s/%014x", part, max(at, 0)))
}
