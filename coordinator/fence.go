package coordinator

import (
	"context"
	"sync"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/manifest"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// fence remembers the tasks that were accepted, so that one is not run twice: a
// manifest opens as often as it is shown while it lives, and an initiator may seal
// one task again. Nodes keep such a memory too, for what comes by way of another
// coordinator or late.
type fence struct {
	mu    sync.Mutex
	tasks map[sealed.ID]accepted
	count map[string]int // by owner
	swept time.Time
}

type accepted struct {
	until time.Time
	owner string
}

const (
	maxTasks      = 1 << 16          // remembered at once
	maxTasksEach  = maxTasks / 4     // of these for the functions of one owner
	fenceSlack    = time.Minute      // by which the opener's clock may be behind
	maxFenceLife  = 24 * time.Hour   // for deadlines that are far away
	sweepInterval = 10 * time.Second // between two looks for what expired
	shortestFence = manifest.Life + fenceSlack
)

func newFence() *fence { return &fence{tasks: map[sealed.ID]accepted{}, count: map[string]int{}} }

// fencedUntil is how long a task is remembered: until its deadline, or as long
// as its manifest may open where there is none.
func fencedUntil(deadline, now time.Time) time.Time {
	until := now.Add(shortestFence)
	if last := now.Add(maxFenceLife); deadline.After(last) {
		return last
	}
	if deadline.After(until) {
		return deadline
	}
	return until
}

// Claims are the tasks of all coordinators; *store.Store keeps them.
type Claims interface {
	ClaimTask(ctx context.Context, id string, until time.Time) error
	ReleaseTask(ctx context.Context, id string) error
}

// claimTimeout bounds what a task waits for the other coordinators.
const claimTimeout = 3 * time.Second

// fence makes a task this coordinator's: none has accepted it before. Where
// that cannot be told it is refused.
func (c *Coordinator) fence(t *task, owner string, now time.Time) error {
	if err := c.tasks.begin(t.id, owner, t.deadline, now); err != nil || c.dep.Claims == nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.life, claimTimeout)
	defer cancel()
	err := c.dep.Claims.ClaimTask(ctx, t.id.String(), fencedUntil(t.deadline, now))
	if err != nil && api.CodeOf(err) != api.CodeDuplicateTask {
		c.tasks.release(t.id)
	}
	return err
}

// unfence lets a task come again, of which no byte reached an agent.
func (c *Coordinator) unfence(t *task) {
	c.tasks.release(t.id)
	if c.dep.Claims == nil {
		return
	}
	ctx, cancel := context.WithTimeout(c.life, claimTimeout)
	defer cancel()
	if err := c.dep.Claims.ReleaseTask(ctx, t.id.String()); err != nil {
		c.log.Warn("task not released; it may not come again", "task", t.id, "err", err)
	}
}

// begin accepts a task, or tells that it was accepted before. It is remembered
// until its deadline, or as long as its manifest may open where there is none.
func (f *fence) begin(id sealed.ID, owner string, deadline, now time.Time) error {
	until := fencedUntil(deadline, now)
	f.mu.Lock()
	defer f.mu.Unlock()
	if a, ok := f.tasks[id]; ok && now.Before(a.until) {
		e := api.Errorf(api.CodeDuplicateTask, "task %s was accepted before: it is not run twice", id)
		e.Field, e.Remedy = "task", "the first call has its result; seal a new task to run it again"
		return e
	}
	if now.Sub(f.swept) > sweepInterval || len(f.tasks) >= maxTasks || f.count[owner] >= maxTasksEach {
		f.sweep(now)
	}
	if len(f.tasks) >= maxTasks || f.count[owner] >= maxTasksEach {
		e := api.Errorf(api.CodeBusy, "too many tasks are remembered to accept another")
		e.Remedy = "retry later, or give tasks nearer deadlines"
		return e
	}
	if _, old := f.tasks[id]; old {
		f.drop(id)
	}
	f.tasks[id] = accepted{until, owner}
	f.count[owner]++
	return nil
}

// release forgets a task of which no byte reached an agent: it may come again.
func (f *fence) release(id sealed.ID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.drop(id)
}

// size is how many tasks are remembered.
func (f *fence) size() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.tasks)
}

// expire forgets those whose time is over, also where no other comes.
func (f *fence) expire(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sweep(now)
}

func (f *fence) drop(id sealed.ID) {
	a, ok := f.tasks[id]
	if !ok {
		return
	}
	delete(f.tasks, id)
	if f.count[a.owner]--; f.count[a.owner] <= 0 {
		delete(f.count, a.owner)
	}
}

func (f *fence) sweep(now time.Time) {
	f.swept = now
	for id, a := range f.tasks {
		if !now.Before(a.until) {
			f.drop(id)
		}
	}
}
