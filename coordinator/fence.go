package coordinator

import (
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

// begin accepts a task, or tells that it was accepted before. It is remembered
// until its deadline, or as long as its manifest may open where there is none.
func (f *fence) begin(id sealed.ID, owner string, deadline, now time.Time) error {
	until := now.Add(shortestFence)
	if !deadline.IsZero() && deadline.After(until) {
		until = deadline
		if last := now.Add(maxFenceLife); until.After(last) {
			until = last
		}
	}
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
