package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/faasd-sec/faasd-sec/api"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(writerDirEnv); dir != "" {
		writeUntilKilled(dir)
	}
	if os.Getenv(leaderDirEnv)+os.Getenv(leaderEtcdEnv) != "" {
		leadUntilKilled()
	}
	goleak.VerifyTestMain(m,
		// lumberjack, linked by etcd, starts one per process on first use.
		goleak.IgnoreAnyFunction("gopkg.in/natefinch/lumberjack%2ev2.(*Logger).millRun"))
}

func testConfig(t *testing.T, dir string) Config {
	t.Helper()
	return DefaultConfig(dir, slog.New(slog.NewTextHandler(t.Output(), nil)))
}

func openStore(t *testing.T, cfg Config) *Store {
	t.Helper()
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func testStore(t *testing.T) *Store { t.Helper(); return openStore(t, testConfig(t, t.TempDir())) }

func wantCode(t *testing.T, err error, code api.Code) {
	t.Helper()
	if api.CodeOf(err) != code {
		t.Fatalf("got error %v, want code %q", err, code)
	}
}

func fn(name string, seq uint64) Function {
	return Function{Name: api.FunctionName(name + "." + api.DefaultNamespace), Revision: "ab", Owner: "cd",
		Sequence: seq, Descriptor: []byte{1, 2}, ImageRef: "r", ImageDigest: "sha256:1", UpdatedAt: 7,
		Resources: api.Resources{CPU: 100, Memory: 1 << 20, PIDs: 128}}
}

func TestFunctionRoundTrip(t *testing.T) {
	s, ctx := testStore(t), t.Context()
	f := fn("hello", 1)
	_, err := s.GetFunction(ctx, f.Name)
	wantCode(t, err, api.CodeNotFound)
	v, err := s.PutFunction(ctx, f, Absent)
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.GetFunction(ctx, f.Name)
	if err != nil {
		t.Fatal(err)
	}
	f.Version = v
	if got.Name != f.Name || got.Version != v || string(got.Descriptor) != string(f.Descriptor) || got.Resources != f.Resources {
		t.Fatalf("got %+v, want %+v", got, f)
	}
	_, err = s.PutFunction(ctx, f, Absent)
	wantCode(t, err, api.CodeConflict)
	_, err = s.DeleteFunction(ctx, f.Name, v+1)
	wantCode(t, err, api.CodeConflict)
	if _, err := s.DeleteFunction(ctx, f.Name, v); err != nil {
		t.Fatal(err)
	}
	_, err = s.DeleteFunction(ctx, f.Name, AnyVersion)
	wantCode(t, err, api.CodeNotFound)
	// Deleted is absent again, and its old version is no key to anything.
	_, err = s.PutFunction(ctx, f, v)
	wantCode(t, err, api.CodeConflict)
	if _, err := s.PutFunction(ctx, f, AnyVersion); err != nil {
		t.Fatal(err)
	}
}

func TestOfManyWritersOfOneVersionOneWins(t *testing.T) {
	s := testStore(t)
	v, err := s.PutFunction(t.Context(), fn("f", 0), Absent)
	if err != nil {
		t.Fatal(err)
	}
	for round := range 5 {
		var won atomic.Int64
		var newVersion atomic.Int64
		var wg sync.WaitGroup
		for w := range 16 {
			wg.Go(func() {
				nv, err := s.PutFunction(t.Context(), fn("f", uint64(w)), v)
				switch {
				case err == nil:
					won.Add(1)
					newVersion.Store(nv)
				case api.CodeOf(err) != api.CodeConflict:
					t.Errorf("loser got %v", err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Fatalf("round %d: %d writers won", round, won.Load())
		}
		v = newVersion.Load()
	}
}

func TestListsAreWholeAcrossPages(t *testing.T) {
	s, ctx := testStore(t), t.Context()
	const n = pageSize + 20
	var wg sync.WaitGroup
	for w := range 20 {
		wg.Go(func() {
			for i := w; i < n; i += 20 {
				if _, err := s.PutFunction(ctx, fn(fmt.Sprintf("f%04d", i), uint64(i)), Absent); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	all, err := s.ListFunctions(ctx)
	if err != nil || len(all) != n {
		t.Fatalf("%d functions, want %d: %v", len(all), n, err)
	}
	for i := 1; i < n; i++ {
		if all[i-1].Name >= all[i].Name {
			t.Fatal("not in order")
		}
	}
}

func TestBadInputIsRefusedBeforeItIsWritten(t *testing.T) {
	s, ctx := testStore(t), t.Context()
	for _, name := range []api.FunctionName{"", "f", "f.ns/../x", "F.ns", "a.b.c", "../x.ns"} {
		_, err := s.PutFunction(ctx, Function{Name: name}, AnyVersion)
		wantCode(t, err, api.CodeInvalid)
		_, err = s.GetFunction(ctx, name)
		wantCode(t, err, api.CodeInvalid)
	}
	for _, name := range []string{"", "/", "a//b", "a/", "A", "a b", "a\x00", strings.Repeat("a", 201)} {
		_, err := s.PutSetting(ctx, name, nil, AnyVersion)
		wantCode(t, err, api.CodeInvalid)
	}
	big := fn("big", 1)
	big.Descriptor = make([]byte, maxValueBytes)
	_, err := s.PutFunction(ctx, big, Absent)
	wantCode(t, err, api.CodeTooLarge)
	_, err = s.PutSetting(ctx, "just-fits", make([]byte, maxValueBytes), Absent)
	if err != nil {
		t.Fatal(err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	good := testConfig(t, "/nowhere")
	for name, spoil := range map[string]func(*Config){
		"neither":      func(c *Config) { c.Dir = "" },
		"both":         func(c *Config) { c.Endpoints = []string{"https://h:1"} },
		"prefix":       func(c *Config) { c.Prefix = "x" },
		"quota":        func(c *Config) { c.QuotaBytes = 1 },
		"clear text":   func(c *Config) { c.Dir, c.Endpoints = "", []string{"http://10.0.0.1:2379"} },
		"lookalike":    func(c *Config) { c.Dir, c.Endpoints = "", []string{"http://127.0.0.1.evil:2379"} },
		"no TLS":       func(c *Config) { c.Dir, c.Endpoints = "", []string{"https://h:2379"} },
		"no scheme":    func(c *Config) { c.Dir, c.Endpoints = "", []string{"h:2379"} },
		"other scheme": func(c *Config) { c.Dir, c.Endpoints = "", []string{"ftp://h:2379"} },
		"no timeout":   func(c *Config) { c.Timeout = 0 },
		"no logger":    func(c *Config) { c.Log = nil },
	} {
		c := good
		spoil(&c)
		if _, err := Open(t.Context(), c); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSettings(t *testing.T) {
	s, ctx := testStore(t), t.Context()
	v, err := s.PutSetting(ctx, "nodes/n1", []byte("a"), Absent)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutSetting(ctx, "nodes/n2", []byte("b"), Absent); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutSetting(ctx, "nodesX/n3", []byte("c"), Absent); api.CodeOf(err) != api.CodeInvalid {
		t.Fatal(err)
	}
	if _, err := s.PutSetting(ctx, "nodes-x/n3", []byte("c"), Absent); err != nil {
		t.Fatal(err)
	}
	all, err := s.ListSettings(ctx, "nodes")
	if err != nil || len(all) != 2 || all[0].Name != "nodes/n1" || string(all[1].Value) != "b" {
		t.Fatalf("%+v, %v", all, err)
	}
	got, err := s.GetSetting(ctx, "nodes/n1")
	if err != nil || got.Version != v || string(got.Value) != "a" {
		t.Fatal(got, err)
	}
	_, err = s.PutSetting(ctx, "nodes/n1", []byte("z"), v+100)
	wantCode(t, err, api.CodeConflict)
	if err := s.DeleteSetting(ctx, "nodes/n1", v); err != nil {
		t.Fatal(err)
	}
	_, err = s.GetSetting(ctx, "nodes/n1")
	wantCode(t, err, api.CodeNotFound)
}

func TestSecondProcessIsKeptOutAtOnce(t *testing.T) {
	dir := t.TempDir()
	openStore(t, testConfig(t, dir))
	began := time.Now()
	_, err := Open(t.Context(), testConfig(t, dir))
	wantCode(t, err, api.CodeConflict)
	if time.Since(began) > startTimeout/2 {
		t.Fatal("it waited for the other one")
	}
}

func TestStartingAndStoppingSaysNothing(t *testing.T) {
	var said strings.Builder // read once the member has ended
	cfg := DefaultConfig(t.TempDir(), slog.New(slog.NewTextHandler(&said, nil)))
	for range 3 {
		s, err := Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.PutFunction(t.Context(), fn("f", 1), AnyVersion); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if said.Len() != 0 {
		t.Fatalf("an operator would read: %s", said.String())
	}
}

func TestEmbeddedMemberOpensNoSocket(t *testing.T) {
	before := sockets(t)
	testStore(t)
	if after := sockets(t); after > before { // those of other tests may close
		t.Fatalf("open sockets: %d before, %d after", before, after)
	}
}

// sockets counts this process's sockets of any kind.
func sockets(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range fds {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && strings.HasPrefix(target, "socket:") {
			n++
		}
	}
	return n
}

func TestSilentEtcdIsReportedInTime(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := testConfig(t, "")
	cfg.Endpoints, cfg.Timeout = []string{"http://" + l.Addr().String()}, 300*time.Millisecond
	_, err = Open(t.Context(), cfg)
	wantCode(t, err, api.CodeUnavailable)
}

func TestCancelledCallSaysSo(t *testing.T) {
	s := testStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.GetFunction(ctx, "f.ns")
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if err := s.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkOpenExisting(b *testing.B) {
	dir := b.TempDir()
	for b.Loop() {
		s, err := Open(b.Context(), DefaultConfig(dir, slog.New(slog.DiscardHandler)))
		if err != nil {
			b.Fatal(err)
		}
		s.Close()
	}
}

func BenchmarkPut(b *testing.B) {
	s, err := Open(b.Context(), DefaultConfig(b.TempDir(), slog.New(slog.DiscardHandler)))
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	f := fn("f", 1)
	f.Descriptor = make([]byte, 1024)
	for b.Loop() {
		if _, err := s.PutFunction(b.Context(), f, AnyVersion); err != nil {
			b.Fatal(err)
		}
	}
}
