package queue

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/pki"
	"github.com/faasd-sec/faasd-sec/store"
	"github.com/faasd-sec/faasd-sec/store/storetest"
)

// threeStores are the embedded members of three coordinators, which start together.
func threeStores(t *testing.T) [3]*store.Store {
	t.Helper()
	_, stores := threeMembers(t)
	return stores
}

func threeMembers(t *testing.T) ([3]store.Config, [3]*store.Store) {
	t.Helper()
	caDir := filepath.Join(t.TempDir(), "ca")
	ca, err := pki.NewCluster(caDir)
	if err != nil {
		t.Fatal(err)
	}
	initial := map[string]string{}
	var cfgs [3]store.Config
	for i := range cfgs {
		addr, dir := storetest.FreeAddr(t), t.TempDir()
		m, err := ca.EnsureMember(filepath.Join(dir, "member.pem"), caDir)
		if err != nil {
			t.Fatal(err)
		}
		cfgs[i] = store.DefaultConfig(filepath.Join(dir, "etcd"), slog.New(slog.DiscardHandler))
		cfgs[i].Name = fmt.Sprintf("co-%d", i+1)
		cfgs[i].Peers = &store.Peers{Listen: addr, Advertise: addr, CertFile: m.File, CAFile: m.CAFile, CertName: m.Name, Initial: initial, Patience: time.Second}
		initial[cfgs[i].Name] = addr
	}
	type opened struct {
		s   *store.Store
		err error
	}
	var stores [3]*store.Store
	var opening [3]chan opened
	for i, cfg := range cfgs {
		opening[i] = make(chan opened, 1)
		go func() {
			s, err := store.Open(t.Context(), cfg)
			opening[i] <- opened{s, err}
		}()
	}
	for i := range opening {
		o := <-opening[i]
		if o.err != nil {
			t.Fatal(o.err)
		}
		closeStore(t, o.s)
		stores[i] = o.s
	}
	return cfgs, stores
}

// closeStore closes a store with the test; some have ended before.
func closeStore(t *testing.T, s *store.Store) { t.Cleanup(func() { _ = s.Close() }) }

func large(seed byte) []byte { return bytes.Repeat([]byte{seed, 1, 2, 3, 4, 5, 6}, 200_000) }

func bodyAt(t *testing.T, c *Chunks, name string) ([]byte, error) {
	t.Helper()
	r, err := c.Get(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// What a coordinator accepted, with a large body, another runs once that one is gone
// with its store; the large result is at the third, too. Without a majority nothing
// is accepted, and that is said in time.
func TestLargeBodiesOutliveTheCoordinatorThatTookThem(t *testing.T) {
	stores := threeStores(t)
	var members [3]*member
	var bodies [3]*Chunks
	for i, s := range stores {
		etcd, prefix := s.Etcd()
		members[i] = open(t, etcd, prefix, fmt.Sprintf("co-%d", i+1))
		bodies[i] = members[i].NewChunks(context.WithoutCancel(t.Context()), 4<<20, 64<<20)
	}
	request, reply := large('q'), large('r')
	name, size, release, err := bodies[0].Put(bytes.NewReader(request))
	if err != nil || size != int64(len(request)) {
		t.Fatalf("%d, %v", size, err)
	}
	c := call("large", func(c *Call) { c.Body = Body{Blob: name, Size: size} })
	if _, _, err := members[0].Accept(t.Context(), c, nil, Key{}); err != nil {
		t.Fatal(err)
	}
	release()
	members[0].kill()
	if err := stores[0].Close(); err != nil {
		t.Fatal(err)
	}

	var l *Lease
	eventually(t, "another claims it", func() bool {
		turn, _ := members[1].Next()
		if turn == nil {
			return false
		}
		l, err = turn.Claim(t.Context())
		return err == nil
	})
	if got, err := bodyAt(t, bodies[1], l.Call.Body.Blob); err != nil || !bytes.Equal(got, request) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	rname, rsize, rrelease, err := bodies[1].Put(bytes.NewReader(reply))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Finish(t.Context(), Result{Status: 200, Body: Body{Blob: rname, Size: rsize}}, nil); err != nil {
		t.Fatal(err)
	}
	rrelease()
	s, err := members[2].State(t.Context(), "large")
	if err != nil || s.Result == nil {
		t.Fatalf("%+v, %v", s, err)
	}
	if got, err := bodyAt(t, bodies[2], s.Result.Body.Blob); err != nil || !bytes.Equal(got, reply) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}

	members[1].kill()
	if err := stores[1].Close(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	_, _, _, err = bodies[2].Put(bytes.NewReader(request))
	if api.CodeOf(err) != api.CodeUnavailable || time.Since(began) > 3*members[2].cfg.Timeout {
		t.Fatalf("one of three took a body: %v after %s", err, time.Since(began))
	}
}

// A coordinator that was away from the store while it took a body may find that the
// pieces were collected: it must not accept a call without them.
func TestACallIsNotAcceptedWhenItsBodyWasCollected(t *testing.T) {
	etcd, prefix := etcdOf(t, t.TempDir())
	m := open(t, etcd, prefix, "co-1")
	bodies := m.NewChunks(t.Context(), 4<<20, 64<<20)
	name, size, release, err := bodies.Put(bytes.NewReader(large('q')))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := bodies.Collect(t.Context(), 0, nil); err != nil || n != 0 {
		t.Fatalf("a body that is held was collected: %d, %v", n, err)
	}
	release() // as a lease that ends does
	if n, err := bodies.Collect(t.Context(), 0, nil); err != nil || n != 1 {
		t.Fatalf("%d, %v", n, err)
	}
	c := call("late", func(c *Call) { c.Body = Body{Blob: name, Size: size} })
	if _, _, err := m.Accept(t.Context(), c, nil, Key{}); api.CodeOf(err) != api.CodeUnavailable {
		t.Fatalf("accepted without its body: %v", err)
	}
	if _, err := bodies.Get(name); api.CodeOf(err) != api.CodeNotFound {
		t.Fatalf("%v", err)
	}
}

// Bodies that come and go fill the store until old versions are forgotten. They are
// refused before it takes nothing any more.
func TestLargeBodiesLeaveTheStoreRoom(t *testing.T) {
	cfg := store.DefaultConfig(t.TempDir(), slog.New(slog.DiscardHandler))
	cfg.QuotaBytes = 128 << 20 // a quarter of it is more than etcd writes before it counts
	s, err := store.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	etcd, prefix := s.Etcd()
	m := open(t, etcd, prefix, "co-1")
	bodies := m.NewChunks(t.Context(), 4<<20, 64<<20)
	for i := 0; err == nil; i++ {
		if i == 96 {
			t.Fatal("the store has taken more than its quota")
		}
		var release func()
		if _, _, release, err = bodies.Put(bytes.NewReader(large(byte(i)))); err == nil {
			release()
			if _, err := bodies.Collect(t.Context(), 0, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	if api.CodeOf(err) != api.CodeBusy {
		t.Fatal(err)
	}
	m.accept(t, call("small"))
}
