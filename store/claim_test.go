package store

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

func TestOfManyWhoClaimATaskOneHasIt(t *testing.T) {
	e := startEtcd(t)
	stores, ctx := []*Store{e.direct(t), e.direct(t)}, t.Context()
	until := time.Now().Add(time.Hour)
	var won atomic.Int64
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			switch err := stores[i%2].ClaimTask(ctx, "task-1", until); {
			case err == nil:
				won.Add(1)
			case api.CodeOf(err) != api.CodeDuplicateTask:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Fatalf("%d have it", won.Load())
	}
	if err := stores[0].ReleaseTask(ctx, "task-1"); err != nil {
		t.Fatal(err)
	}
	if err := stores[1].ClaimTask(ctx, "task-1", until); err != nil {
		t.Fatalf("after it was given back: %v", err)
	}
	wantCode(t, stores[0].ClaimTask(ctx, "A B", until), api.CodeInvalid)
}

func TestClaimsOfOneTimeShareALease(t *testing.T) {
	s, ctx := testStore(t), t.Context()
	until := time.Now().Add(time.Hour)
	for _, id := range []string{"a", "b"} {
		if err := s.ClaimTask(ctx, id, until); err != nil {
			t.Fatal(err)
		}
	}
	leases, err := s.client.Leases(ctx)
	if err != nil || len(leases.Leases) != 1 {
		t.Fatalf("%v, %v", leases, err)
	}
	left, err := s.client.TimeToLive(ctx, leases.Leases[0].ID)
	if err != nil || left.TTL < 3500 {
		t.Fatalf("a claim ends in %v s, %v", left, err)
	}
	// One that ended early is made anew.
	if _, err := s.client.Revoke(ctx, leases.Leases[0].ID); err != nil {
		t.Fatal(err)
	}
	if err := s.ClaimTask(ctx, "c", until); err != nil {
		t.Fatal(err)
	}
}
