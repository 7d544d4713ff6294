package store

import (
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// Three that restart need no order: the first opens without a majority, knows the
// functions, and takes writes once there is another.
func TestAMemberOpensWithoutAMajorityAndKnowsItsFunctions(t *testing.T) {
	p := newPeerCluster(t)
	cfgs := []Config{p.config("a"), p.config("b"), p.config("c")}
	a := openStore(t, cfgs[0])
	b := p.join(a, cfgs[1])
	c := p.join(a, cfgs[2])
	version := mustPut(t, c, fn("known", 1))
	for _, s := range []*Store{a, b, c} {
		within(t, 20*time.Second, "all have it", func() error {
			_, err := s.GetFunction(t.Context(), fn("known", 1).Name)
			return err
		})
	}
	for _, s := range []*Store{a, b, c} {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for i := range cfgs {
		cfgs[i].Peers.Patience = 500 * time.Millisecond
	}
	began := time.Now()
	c = openStore(t, cfgs[2])
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	wantCode(t, c.Majority(), api.CodeUnavailable)
	cache := runCache(t, c)
	if cache.Get(fn("known", 1).Name) == nil || cache.Snapshot().Version < version {
		t.Fatalf("%+v", cache.Snapshot())
	}
	_, err := c.PutFunction(t.Context(), fn("never", 1), AnyVersion)
	wantCode(t, err, api.CodeUnavailable)

	a = openStore(t, cfgs[0])
	within(t, 20*time.Second, "two are a majority", func() error {
		_, err := a.PutFunction(t.Context(), fn("new", 1), AnyVersion)
		return err
	})
	waitFor(t, "the first's cache sees it", func() bool { return cache.Get(fn("new", 1).Name) != nil })
	if err := c.Majority(); err != nil {
		t.Error(err)
	}
}
