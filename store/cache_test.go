package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/store/storetest"
)

// runCache starts a cache whose goroutine ends with the test.
func runCache(t *testing.T, s *Store) *Cache {
	t.Helper()
	c, err := s.NewCache(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
	})
	return c
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func mustPut(t *testing.T, s *Store, f Function) int64 {
	t.Helper()
	v, err := s.PutFunction(t.Context(), f, AnyVersion)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestCacheFollowsWrites(t *testing.T) {
	s := testStore(t)
	mustPut(t, s, fn("old", 1))
	c := runCache(t, s)
	if c.Get(fn("old", 0).Name) == nil {
		t.Fatal("what was there before is missing")
	}
	before := c.Snapshot()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for seq := uint64(1); seq <= 20; seq++ {
		v := mustPut(t, s, fn("f", seq))
		if err := c.Wait(ctx, v); err != nil {
			t.Fatal(err)
		}
		if f := c.Lookup([]byte("f.openfaas-fn")); f == nil || f.Sequence != seq || f.Version != v {
			t.Fatalf("after Wait: %+v", f)
		}
	}
	v, err := s.DeleteFunction(ctx, fn("f", 0).Name, AnyVersion)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(ctx, v); err != nil || c.Get(fn("f", 0).Name) != nil {
		t.Fatal("deleted function is still served", err)
	}
	if len(before.Functions) != 1 || before.Functions[fn("f", 0).Name] != nil {
		t.Fatal("a snapshot changed under its reader")
	}
	select {
	case <-before.Replaced():
	default:
		t.Fatal("the first snapshot does not know that it was replaced")
	}
}

func TestCacheReadsAllocateNothing(t *testing.T) {
	s := testStore(t)
	mustPut(t, s, fn("f", 1))
	c := runCache(t, s)
	name := []byte("f.openfaas-fn")
	if n := testing.AllocsPerRun(100, func() {
		if c.Lookup(name) == nil {
			t.Fatal("missing")
		}
	}); n != 0 {
		t.Fatalf("%v allocations per lookup", n)
	}
}

func TestDamagedRecordTakesNoOtherDown(t *testing.T) {
	s := testStore(t)
	mustPut(t, s, fn("good", 1))
	for key, value := range map[string]string{"bad.ns": "{", "other.ns": `{"name":"good.openfaas-fn"}`} {
		if _, err := s.client.Put(t.Context(), s.functionPrefix()+key, value); err != nil {
			t.Fatal(err)
		}
	}
	c := runCache(t, s)
	if len(c.Snapshot().Functions) != 1 || c.Get(fn("good", 0).Name) == nil {
		t.Fatalf("got %v", c.Snapshot().Functions)
	}
	if _, err := s.ListFunctions(t.Context()); err == nil {
		t.Fatal("an administrator's list hides the damage")
	}
}

func TestManyReadersWhileFunctionsChange(t *testing.T) {
	s := testStore(t)
	c := runCache(t, s)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			last := int64(0)
			for {
				select {
				case <-stop:
					return
				default:
				}
				snap := c.Snapshot()
				if snap.Version < last {
					t.Error("the cache went backwards")
					return
				}
				last = snap.Version
				for n, f := range snap.Functions {
					if f.Name != n {
						t.Error("mixed records")
					}
				}
			}
		})
	}
	var v int64
	for i := range 200 {
		v = mustPut(t, s, fn(fmt.Sprintf("f%d", i%10), uint64(i)))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := c.Wait(ctx, v); err != nil {
		t.Error(err)
	}
	close(stop)
	wg.Wait()
}

// etcdServer is an etcd of its own behind a relay that can be cut.
type etcdServer struct {
	dir    string
	unix   string
	listen net.Listener
	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	cut    bool
	wg     sync.WaitGroup
}

func startEtcd(t *testing.T) *etcdServer {
	t.Helper()
	e := &etcdServer{dir: t.TempDir(), conns: map[net.Conn]struct{}{}}
	e.unix = filepath.Join(e.dir, "c.sock")
	storetest.Serve(t, url.URL{Scheme: "unix", Path: e.unix}, transport.TLSInfo{})
	var err error
	if e.listen, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	e.wg.Go(e.accept)
	t.Cleanup(func() {
		e.listen.Close()
		e.setCut(true)
		e.wg.Wait()
	})
	return e
}

func (e *etcdServer) accept() {
	for {
		a, err := e.listen.Accept()
		if err != nil {
			return
		}
		b, err := net.Dial("unix", e.unix)
		e.mu.Lock()
		if err != nil || e.cut {
			a.Close()
			if err == nil {
				b.Close()
			}
			e.mu.Unlock()
			continue
		}
		e.conns[a], e.conns[b] = struct{}{}, struct{}{}
		e.mu.Unlock()
		for _, p := range [][2]net.Conn{{a, b}, {b, a}} {
			e.wg.Go(func() {
				io.Copy(p[0], p[1])
				p[0].Close()
				p[1].Close()
			})
		}
	}
}

func (e *etcdServer) setCut(cut bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.cut = cut
	if cut {
		for c := range e.conns {
			c.Close()
		}
		clear(e.conns)
	}
}

func (e *etcdServer) open(t *testing.T) *Store {
	t.Helper()
	cfg := testConfig(t, "")
	cfg.Endpoints, cfg.Timeout = []string{"http://" + e.listen.Addr().String()}, 2*time.Second
	return openStore(t, cfg)
}

func (e *etcdServer) direct(t *testing.T) *Store {
	t.Helper()
	cfg := testConfig(t, "")
	cfg.Endpoints = []string{"unix://" + e.unix}
	return openStore(t, cfg)
}

func TestCacheResumesAfterADisconnect(t *testing.T) {
	e := startEtcd(t)
	writer, s := e.direct(t), e.open(t)
	c := runCache(t, s)
	mustPut(t, writer, fn("f", 1))
	waitFor(t, "first write seen", func() bool { f := c.Get(fn("f", 0).Name); return f != nil && f.Sequence == 1 })
	e.setCut(true)
	mustPut(t, writer, fn("f", 2))
	if f := c.Get(fn("f", 0).Name); f == nil || f.Sequence != 1 {
		t.Fatal("a cache that is cut off must serve what it saw last")
	}
	e.setCut(false)
	waitFor(t, "write made meanwhile seen", func() bool { return c.Get(fn("f", 0).Name).Sequence == 2 })
}

func TestCacheResumesAfterACompaction(t *testing.T) {
	e := startEtcd(t)
	writer, s := e.direct(t), e.open(t)
	mustPut(t, writer, fn("gone", 1))
	c := runCache(t, s)
	mustPut(t, writer, fn("f", 1))
	waitFor(t, "first write seen", func() bool { return c.Get(fn("f", 0).Name) != nil })
	e.setCut(true)
	if _, err := writer.DeleteFunction(t.Context(), fn("gone", 0).Name, AnyVersion); err != nil {
		t.Fatal(err)
	}
	v := mustPut(t, writer, fn("f", 2))
	if _, err := writer.client.Compact(t.Context(), v, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	e.setCut(false)
	waitFor(t, "state after the compaction", func() bool {
		return c.Get(fn("f", 0).Name).Sequence == 2 && c.Get(fn("gone", 0).Name) == nil
	})
	mustPut(t, writer, fn("f", 3))
	waitFor(t, "the watch goes on", func() bool { return c.Get(fn("f", 0).Name).Sequence == 3 })
	if !c.BehindSince().IsZero() {
		t.Fatal("a cache that follows says that it does not")
	}
}

func TestPrefixesShareOneEtcd(t *testing.T) {
	e := startEtcd(t)
	a := e.direct(t)
	cfg := testConfig(t, "")
	cfg.Endpoints, cfg.Prefix = []string{"unix://" + e.unix}, "/other/"
	b := openStore(t, cfg)
	mustPut(t, a, fn("f", 1))
	_, err := b.GetFunction(t.Context(), fn("f", 0).Name)
	wantCode(t, err, api.CodeNotFound)
}

func TestEndpointWithoutTLSIsNotSpokenToOverHTTPS(t *testing.T) {
	e := startEtcd(t)
	cfg := testConfig(t, "")
	cfg.Endpoints = []string{"https://" + e.listen.Addr().String()}
	cfg.TLS, cfg.Timeout = &tls.Config{MinVersion: tls.VersionTLS13}, 300*time.Millisecond
	_, err := Open(t.Context(), cfg)
	wantCode(t, err, api.CodeUnavailable)
}

func BenchmarkCacheLookup(b *testing.B) {
	c := &Cache{}
	c.cur.Store(&Snapshot{Functions: map[api.FunctionName]*Function{"f.openfaas-fn": {}}, replaced: make(chan struct{})})
	name := []byte("f.openfaas-fn")
	b.ReportAllocs()
	for b.Loop() {
		if c.Lookup(name) == nil {
			b.Fatal("missing")
		}
	}
}
