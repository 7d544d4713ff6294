package node

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// orders gives one order, and returns what the node made of it.
func (w *world) orders(f function, o api.ReplicaOrder) api.ReplicaReply {
	w.t.Helper()
	b, err := json.Marshal(o)
	if err != nil {
		w.t.Fatal(err)
	}
	status, _, body := w.do("PUT", api.NodePathReplicas+"/"+f.target(), b)
	var r api.ReplicaReply
	if err := json.Unmarshal([]byte(body), &r); status != 200 || err != nil {
		w.t.Fatalf("order: %d %s", status, body)
	}
	return r
}

func (w *world) replicas(f function) api.ReplicaStatus {
	w.t.Helper()
	status, _, body := w.do("GET", api.NodePathReplicas+"?cpu=1", nil)
	var all []api.ReplicaStatus
	if err := json.Unmarshal([]byte(body), &all); status != 200 || err != nil {
		w.t.Fatalf("replicas: %d %s", status, body)
	}
	for _, r := range all {
		if string(r.Function) == f.name {
			return r
		}
	}
	return api.ReplicaStatus{}
}

func TestReplicasAreMadeKeptReplacedAndLetGo(t *testing.T) {
	w := newWorld(t, func(w *world) {
		w.cfg.IdleAfter, w.cfg.KeepaliveMin, w.cfg.KeepaliveMax = 50*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond
	})
	f := w.known("f")
	ready := func(n int) func() bool { return func() bool { return w.replicas(f).Ready == n } }
	long := time.Minute.Milliseconds()
	if r := w.orders(f, api.ReplicaOrder{Hold: 3, HoldMs: long}); r.Held != 3 || r.Refused != "" {
		t.Fatalf("%+v", r)
	}
	w.eventually("three are ready", ready(3))
	time.Sleep(1200 * time.Millisecond) // two looks for idle sandboxes
	if r := w.replicas(f); r.Ready != 3 {
		t.Errorf("held replicas were stopped for idleness: %+v", r)
	}
	if r := w.orders(f, api.ReplicaOrder{Hold: 3, HoldMs: long}); r.Held != 3 || w.replicas(f).Ready != 3 {
		t.Errorf("the same order again: %+v, %+v", r, w.replicas(f))
	}
	w.fake.Kill(w.listed(f)[0].ID)
	w.eventually("one is gone", ready(2))
	w.orders(f, api.ReplicaOrder{Hold: 3, HoldMs: long})
	w.eventually("it was replaced", ready(3))
	w.orders(f, api.ReplicaOrder{Hold: 1, Stop: 1, HoldMs: long})
	w.eventually("one is stopped as ordered, and one for idleness", ready(1))
	w.orders(f, api.ReplicaOrder{Hold: 1, HoldMs: 1})
	w.eventually("who hears no more orders goes by its habits", ready(0))
}

func TestOrdersAreAdmittedLikeAnyStart(t *testing.T) {
	w := newWorld(t)
	f := w.known("f")
	r := w.orders(f, api.ReplicaOrder{Hold: 9, Firm: 9, HoldMs: time.Minute.Milliseconds()}) // 400 of 2000 millicores each
	if r.Refused != api.CodeNoRoom || r.Held < 1 || r.Held > 5 {
		t.Fatalf("%+v", r)
	}
	held := r.Held
	w.eventually("they are ready", func() bool { return w.replicas(f).Ready == held })
	// What is firm makes no room for others, and is no room that others are told of.
	g := w.known("g")
	if status, h, _ := w.invoke(g); status != 503 || h.Get(api.HeaderRefused) != string(api.CodeNoRoom) {
		t.Errorf("an invocation of another function, where all is firm: %d %v", status, h)
	}
	// What is held and not firm makes room for an invocation, and for nothing else.
	w.orders(f, api.ReplicaOrder{Hold: held, Firm: held - 1, HoldMs: time.Minute.Milliseconds()})
	if r := w.orders(g, api.ReplicaOrder{Hold: 1, HoldMs: time.Minute.Milliseconds()}); r.Refused != api.CodeNoRoom {
		t.Errorf("a held replica was stopped for another function: %+v", r)
	}
	if status, h, _ := w.invoke(g); status != 200 || w.replicas(f).Ready != held-1 {
		t.Errorf("an invocation of another function: %d %v, and there are %+v", status, h, w.replicas(f))
	}
	if r := w.orders(f, api.ReplicaOrder{Hold: held, Firm: held - 1, HoldMs: time.Minute.Milliseconds()}); r.Refused != "" {
		t.Errorf("what nobody holds did not make room for what is to be held: %+v", r)
	}
	w.eventually("it is back", func() bool { return w.replicas(f).Ready == held })
	w.orders(f, api.ReplicaOrder{HoldMs: 0})
	if r := w.orders(g, api.ReplicaOrder{Hold: 1, HoldMs: time.Minute.Milliseconds()}); r.Held != 1 {
		t.Errorf("one that is held no more was not stopped for another function: %+v", r)
	}
}

func TestInvocationThatMayStartNothingFindsAReplicaOrIsRefused(t *testing.T) {
	w := newWorld(t)
	f := w.known("f")
	ask := func() (int, string) {
		status, h, _ := w.do("POST", api.NodePathInvoke+f.target(), w.message(f, 10), api.HeaderExisting, "1")
		return status, h.Get(api.HeaderRefused)
	}
	if status, refused := ask(); status != 429 || refused != string(api.CodeBusy) || len(w.listed(f)) != 0 {
		t.Fatalf("%d %s, %v", status, refused, w.listed(f))
	}
	w.orders(f, api.ReplicaOrder{Hold: 1, HoldMs: time.Minute.Milliseconds()})
	if status, refused := ask(); status != 200 {
		t.Errorf("%d %s with a replica that starts", status, refused)
	}
	if r := w.replicas(f); r.Served != 1 || r.Ready != 1 {
		t.Errorf("%+v", r)
	}
}

func TestStartsThatFailAreCountedUntilOneDoesNot(t *testing.T) {
	w := newWorld(t)
	f := w.known("f")
	bad := errors.New("no")
	w.hello = func(api.FunctionName) error { return bad }
	hold := api.ReplicaOrder{Hold: 1, HoldMs: time.Minute.Milliseconds()}
	for want := 1; want <= 2; want++ {
		w.orders(f, hold)
		w.eventually("the start failed", func() bool { return w.replicas(f).Failed == want && w.replicas(f).Starting == 0 })
	}
	if r := w.replicas(f); r.Code == "" || r.Reason == "" {
		t.Errorf("no reason: %+v", r)
	}
}
