package queue

import (
	"context"
	"log/slog"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/store"
)

// A queue opens while its store does not answer, accepts nothing, and has all that
// waits as soon as the store is back.
func TestQueueOpensBeforeItsStoreAnswers(t *testing.T) {
	cfgs, stores := threeMembers(t)
	etcd, prefix := stores[0].Etcd()
	m := open(t, etcd, prefix, "co-1")
	m.accept(t, call("before"))
	m.kill()
	for _, s := range stores {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	again := func(i int) *store.Store {
		s, err := store.Open(t.Context(), cfgs[i])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	etcd, prefix = again(0).Etcd()
	cfg := DefaultConfig("co-1", prefix, slog.New(slog.DiscardHandler))
	q, err := Open(t.Context(), etcd, cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = q.Run(ctx) }()
	defer func() { cancel(); <-done }()
	for what, err := range map[string]error{"ready": q.Ready(), "accept": second(q.Accept(t.Context(), call("during"), []byte("x"), Key{}))} {
		if api.CodeOf(err) != api.CodeUnavailable {
			t.Errorf("%s: %v", what, err)
		}
	}
	if turn, _ := q.Next(); turn != nil || q.Registered() {
		t.Error("it works on what it does not know")
	}
	again(1)
	eventually(t, "it is ready", func() bool { return q.Ready() == nil && q.Registered() })
	turn, _ := q.Next()
	if turn == nil {
		t.Fatal("what waited is not there")
	}
	l, err := turn.Claim(t.Context())
	if err != nil || l.Call.ID != "before" {
		t.Fatalf("%+v, %v", l, err)
	}
	if _, _, err := q.Accept(t.Context(), call("after"), []byte("x"), Key{}); err != nil {
		t.Error(err)
	}
}

func second(_ string, _ bool, err error) error { return err }
