package coordinator

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/reqauth"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// snapshot is what waits, in the order in which it is served: by priority, then by
// arrival. It tells nothing of needs.
func (w *waiting) snapshot() []api.WaitingTask {
	w.mu.Lock()
	turns := make([]*turn, 0, len(w.all))
	for t := range w.all {
		if t.waits() {
			turns = append(turns, t)
		}
	}
	w.mu.Unlock()
	slices.SortFunc(turns, func(a, b *turn) int {
		return cmp.Or(cmp.Compare(b.priority, a.priority), cmp.Compare(a.arrived, b.arrived))
	})
	out := make([]api.WaitingTask, len(turns))
	for i, t := range turns {
		out[i] = api.WaitingTask{ID: t.id, Function: t.name, Priority: t.priority, Since: t.since.UnixMilli(), Deadline: t.deadline.UnixMilli()}
	}
	return out
}

// wanted is a function's revision.
type wanted struct {
	name     api.FunctionName
	revision string // by digest
}

// waits counts what waits for a replica, by the revision that was wanted when it
// came.
func (w *waiting) waits() map[wanted]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := map[wanted]int{}
	for t := range w.all {
		if t.revision != "" && t.waits() {
			n[wanted{t.name, t.revision}]++
		}
	}
	return n
}

// backlog is what waits of one function.
type backlog struct {
	calls int
	since time.Time // of the oldest
}

// byFunction counts all that waits, tasks in sandboxes of their own included.
func (w *waiting) byFunction() map[api.FunctionName]backlog {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := map[api.FunctionName]backlog{}
	for t := range w.all {
		if !t.waits() {
			continue
		}
		b := all[t.name]
		if b.calls++; b.calls == 1 || t.since.Before(b.since) {
			b.since = t.since
		}
		all[t.name] = b
	}
	return all
}

// waits reports whether t stands in its line or tries to find room. Else its
// attempt has settled: most likely it runs.
func (t *turn) waits() bool { return t.stands != nil || t.trying }

// cancel ends the wait of the tasks of that id which who may cancel: its
// initiator, or the owner of its function. One whose attempt is under way ends
// with the attempt, if that finds no room. With try nothing ends: it tells
// whether anything would.
func (w *waiting) cancel(id string, who sealed.Fingerprint, try bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	found, done := false, false
	for t := range w.all {
		if t.id != id || !t.waits() {
			continue
		}
		found = true
		if t.sender != who && t.owner != who.String() {
			continue
		}
		done = true
		if try || t.err != nil {
			continue
		}
		t.err = errCancelled
		if t.stands != nil {
			w.take(t)
			close(t.out)
		}
	}
	switch {
	case done:
		return nil
	case found:
		return api.Errorf(api.CodeForbidden, "only who sent the task or owns its function cancels it")
	}
	e := api.Errorf(api.CodeNotFound, "no task %q waits", id)
	e.Field, e.Remedy = "id", "faasd-sec tasks waiting shows those that do"
	return e
}

// abandon ends the wait of an asynchronous call whose lease is gone.
func (w *waiting) abandon(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for t := range w.all {
		if t.id != id || !t.waits() || t.err != nil {
			continue
		}
		t.err = errCancelled
		if t.stands != nil {
			w.take(t)
			close(t.out)
		}
	}
}

// cancelWaiting serves DELETE /v1/waiting/ID.
func (c *Coordinator) cancelWaiting(ctx *fasthttp.RequestCtx, id string) error {
	if known, err := c.cancelWaitingCall(ctx, id); known {
		return err
	}
	who, err := c.concerned(ctx, func(f sealed.Fingerprint) error { return c.queue.cancel(id, f, true) })
	if err != nil {
		return err
	}
	return c.queue.cancel(id, who, false)
}

// concerned verifies who signed a request without a body. Initiators need not be
// among those who may deploy: may decides, by the claimed key and so before
// anything is verified, since keys are made for nothing and the memory of nonces
// is one for all.
func (c *Coordinator) concerned(ctx *fasthttp.RequestCtx, may func(sealed.Fingerprint) error) (sealed.Fingerprint, error) {
	authorization := string(ctx.Request.Header.Peek(fasthttp.HeaderAuthorization))
	claimed, err := reqauth.Claimed(authorization)
	if err == nil {
		err = may(claimed)
	}
	if err != nil {
		return sealed.Fingerprint{}, err
	}
	who, err := c.dep.Auth.Verify(reqauth.Request{Method: string(ctx.Method()), Target: string(ctx.RequestURI()), Authorization: authorization})
	return who.Fingerprint, err
}

// placementOf splits /v1/tasks/ID/placement.
func placementOf(path string) (id string, ok bool) {
	rest, ok := strings.CutPrefix(path, api.GatewayPathTasks+"/")
	if !ok {
		return "", false
	}
	id, ok = strings.CutSuffix(rest, "/placement")
	return id, ok && id != "" && !strings.Contains(id, "/")
}
