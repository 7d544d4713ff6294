package containerd

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/faasd-sec/faasd-sec/runtime"
	"github.com/faasd-sec/faasd-sec/runtime/runtimetest"
)

// counting is a registry of several images. Each is in a repository of its own
// name; what is asked of it is counted, and answers can be held back.
type counting struct {
	host   string
	client *http.Client

	mu    sync.Mutex
	gets  map[string]int      // by path
	busy  map[string]struct{} // repositories with an answer held back
	most  int                 // of them at a time
	hold  chan struct{}       // nil, or closed to let blobs go
	repos map[string]http.Handler
}

func newCounting(t *testing.T) *counting {
	t.Helper()
	c := &counting{gets: map[string]int{}, busy: map[string]struct{}{}, repos: map[string]http.Handler{}}
	srv := httptest.NewServer(c)
	t.Cleanup(srv.Close)
	t.Cleanup(c.open) // before Close, which waits for requests
	c.host, c.client = srv.Listener.Addr().String(), srv.Client()
	return c
}

// add puts an image into repository name and returns its digest.
func (c *counting) add(t *testing.T, name string, layers ...[]runtimetest.File) string {
	t.Helper()
	layers = append(layers, []runtimetest.File{{Path: "name", Body: []byte(name), Mode: 0o644}})
	archive, dgst, err := runtimetest.Archive(ocispec.ImageConfig{Cmd: []string{"/bin/fn"}}, layers...)
	if err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.repos[name] = registry(t, archive, new(atomic.Int64))
	return dgst
}

func (c *counting) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	name, _, _ := strings.Cut(strings.TrimPrefix(req.URL.Path, "/v2/"), "/")
	c.mu.Lock()
	if req.Method == http.MethodGet {
		c.gets[req.URL.Path]++
	}
	repo, hold := c.repos[name], c.hold
	if hold != nil {
		c.busy[name] = struct{}{}
		c.most = max(c.most, len(c.busy))
	}
	c.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-req.Context().Done():
		}
		c.mu.Lock()
		delete(c.busy, name)
		c.mu.Unlock()
	}
	if repo == nil {
		http.NotFound(w, req)
		return
	}
	repo.ServeHTTP(w, req)
}

// shut holds back the answers to all that is asked from now on.
func (c *counting) shut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hold = make(chan struct{})
}

// open lets everything go. It may be called again.
func (c *counting) open() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hold != nil {
		close(c.hold)
		c.hold = nil
	}
}

// held is how many repositories are being asked, and the most there ever were.
func (c *counting) held() (now, most int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.busy), c.most
}

// asked is how often paths below repository name were fetched.
func (c *counting) asked(name string) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for path, k := range c.gets {
		if strings.HasPrefix(path, "/v2/"+name+"/") {
			n += k
		}
	}
	return n
}

// twice lists blobs that were fetched more than once, by whatever name.
func (c *counting) twice() (out []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	sum := map[string]int{}
	for path, k := range c.gets {
		sum[path[strings.LastIndexByte(path, '/')+1:]] += k
	}
	for blob, k := range sum {
		if k > 1 {
			out = append(out, fmt.Sprintf("%s: %d times", blob, k))
		}
	}
	return out
}

func (c *counting) runtime(t *testing.T, b *bench, change ...func(*Config)) *Runtime {
	t.Helper()
	cfg := b.config(t)
	cfg.Registries = map[string]Registry{c.host: {Client: c.client, PlainHTTP: true}}
	for _, f := range change {
		f(&cfg)
	}
	return b.openWith(t, cfg)
}

// pulling starts a pull and gives its outcome.
func (c *counting) pulling(ctx context.Context, r *Runtime, name, dgst string) <-chan error {
	out := make(chan error, 1)
	go func() {
		_, err := r.Pull(ctx, c.host+"/"+name, dgst)
		out <- err
	}()
	return out
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("not in time: %s", what)
}

// waiting is how many callers wait for an image.
func (r *Runtime) waiting(dgst string) int {
	r.pulls.Lock()
	defer r.pulls.Unlock()
	if f := r.flights[dgst]; f != nil {
		return f.waiters
	}
	return 0
}

func done(t *testing.T, c <-chan error) error {
	t.Helper()
	select {
	case err := <-c:
		return err
	case <-time.After(30 * time.Second):
		t.Fatal("a pull does not end")
		return nil
	}
}

func TestManyWhoWantAnImageFetchItOnce(t *testing.T) {
	b, c := need(t), newCounting(t)
	r, d := c.runtime(t, b), c.add(t, "one", []runtimetest.File{{Path: "base", Body: []byte("base")}})
	c.shut()
	var all []<-chan error
	for range 50 {
		all = append(all, c.pulling(t.Context(), r, "one", d))
	}
	eventually(t, "all wait", func() bool { return r.waiting(d) == len(all) })
	c.open()
	for _, p := range all {
		if err := done(t, p); err != nil {
			t.Error(err)
		}
	}
	// A manifest, a configuration and two layers.
	if n := c.asked("one"); n != 4 || len(c.twice()) > 0 {
		t.Errorf("%d fetches, %v", n, c.twice())
	}
	if len(r.flights) != 0 {
		t.Errorf("%d pulls are still under way", len(r.flights))
	}
}

func TestWhoGivesUpLeavesTheFetchToTheOthers(t *testing.T) {
	b, c := need(t), newCounting(t)
	r, d := c.runtime(t, b), c.add(t, "one")
	c.shut()
	first, giveUp := context.WithCancel(t.Context())
	leader := c.pulling(first, r, "one", d)
	eventually(t, "the fetch began", func() bool { now, _ := c.held(); return now == 1 })
	other := c.pulling(t.Context(), r, "one", d)
	eventually(t, "both wait", func() bool { return r.waiting(d) == 2 })
	giveUp()
	if err := done(t, leader); !errors.Is(err, context.Canceled) {
		t.Errorf("who gave up got %v", err)
	}
	c.open()
	if err := done(t, other); err != nil {
		t.Error(err)
	}
	if n := c.asked("one"); n != 3 {
		t.Errorf("%d fetches, want a manifest, a configuration and a layer", n)
	}
}

func TestAFetchThatAllGaveUpIsThereForTheNext(t *testing.T) {
	b, c := need(t), newCounting(t)
	r, d := c.runtime(t, b), c.add(t, "one")
	c.shut()
	ctx, giveUp := context.WithCancel(t.Context())
	only := c.pulling(ctx, r, "one", d)
	eventually(t, "the fetch began", func() bool { now, _ := c.held(); return now == 1 })
	giveUp()
	if err := done(t, only); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	c.open()
	if err := done(t, c.pulling(t.Context(), r, "one", d)); err != nil || c.asked("one") != 3 {
		t.Errorf("%v after %d fetches", err, c.asked("one"))
	}
}

func TestDifferentImagesAreFetchedTogetherUpToABound(t *testing.T) {
	b, c := need(t), newCounting(t)
	r := c.runtime(t, b, func(cfg *Config) { cfg.MaxPulls = 2 })
	var all []<-chan error
	c.shut()
	for i := range 6 {
		name := fmt.Sprintf("image%d", i)
		all = append(all, c.pulling(t.Context(), r, name, c.add(t, name, []runtimetest.File{{Path: "base", Body: []byte("shared by all")}})))
	}
	eventually(t, "two are under way", func() bool { now, _ := c.held(); return now == 2 })
	// Let them go one step after the other, held again at each.
	for ended := 0; ended < len(all); {
		c.open()
		c.shut()
		for _, p := range all {
			select {
			case err := <-p:
				ended++
				if err != nil {
					t.Error(err)
				}
			default:
			}
		}
		time.Sleep(time.Millisecond) // requests come in
	}
	if _, most := c.held(); most != 2 {
		t.Errorf("%d at once, want 2", most)
	}
	if again := c.twice(); len(again) > 0 {
		t.Errorf("fetched again: %v", again)
	}
}

func TestAWaitingPullThatNobodyWantsFreesItsPlace(t *testing.T) {
	b, c := need(t), newCounting(t)
	r := c.runtime(t, b, func(cfg *Config) { cfg.MaxPulls = 1 })
	a, d := c.add(t, "a"), c.add(t, "d")
	c.shut()
	slow := c.pulling(t.Context(), r, "a", a)
	eventually(t, "the first is under way", func() bool { now, _ := c.held(); return now == 1 })
	ctx, giveUp := context.WithCancel(t.Context())
	waits := c.pulling(ctx, r, "d", d)
	eventually(t, "the second waits", func() bool { return r.waiting(d) == 1 })
	giveUp()
	if err := done(t, waits); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if n := r.waiting(d); n != 0 {
		t.Errorf("%d wait", n)
	}
	c.open()
	if err := done(t, slow); err != nil {
		t.Error(err)
	}
	if n := c.asked("d"); n != 0 {
		t.Errorf("%d fetches of an image that nobody waits for", n)
	}
	if err := done(t, c.pulling(t.Context(), r, "d", d)); err != nil {
		t.Error(err)
	}
}

// A function's owner names the registry. One that does not have the image must
// not fail the function of another, who named one that has it.
func TestAnotherRegistrysFailureIsNotShared(t *testing.T) {
	b, c := need(t), newCounting(t)
	r, d := c.runtime(t, b), c.add(t, "good")
	c.shut()
	bad := c.pulling(t.Context(), r, "bad", d)
	eventually(t, "the bad one is asked", func() bool { now, _ := c.held(); return now == 1 })
	good := c.pulling(t.Context(), r, "good", d)
	eventually(t, "both wait", func() bool { return r.waiting(d) == 2 })
	c.open()
	if err := done(t, bad); err == nil {
		t.Error("an image that is not there was pulled")
	}
	if err := done(t, good); err != nil {
		t.Error(err)
	}
}

func TestAPullThatHangsEndsByItsDeadline(t *testing.T) {
	b, c := need(t), newCounting(t)
	r := c.runtime(t, b, func(cfg *Config) { cfg.MaxPulls, cfg.PullTimeout = 1, 2*time.Second })
	d := c.add(t, "one")
	c.shut()
	if err := done(t, c.pulling(t.Context(), r, "one", d)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a registry that says nothing: %v", err)
	}
	c.open()
	r.cfg.PullTimeout = time.Minute // this one may take its time
	if err := done(t, c.pulling(t.Context(), r, "one", d)); err != nil {
		t.Error(err)
	}
}

func TestCloseEndsAPullUnderWay(t *testing.T) {
	b, c := need(t), newCounting(t)
	r, d := c.runtime(t, b), c.add(t, "one")
	c.shut()
	p := c.pulling(t.Context(), r, "one", d)
	eventually(t, "the fetch began", func() bool { now, _ := c.held(); return now == 1 })
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if err := done(t, p); err == nil {
		t.Error("a pull outlived its runtime")
	}
	if err := done(t, c.pulling(t.Context(), r, "one", d)); err == nil {
		t.Error("a closed runtime pulls")
	}
}

func TestABoundOnPullsIsRequired(t *testing.T) {
	cfg := Default("/run/containerd/containerd.sock", "faasd-sec", "/run/faasd-sec")
	cfg.MaxPulls = 0
	if err := cfg.check(); err == nil || !strings.Contains(err.Error(), "MaxPulls") {
		t.Errorf("%v", err)
	}
}

// TestAnImageIsWholeThoughItWasForgottenWhilePulled pulls an image from many sides
// while it is forgotten again and again. Whoever has it last can run it.
func TestAnImageIsWholeThoughItWasForgottenWhilePulled(t *testing.T) {
	b := need(t)
	cfg, host, dgst, _ := b.served(t, ocispec.ImageConfig{Cmd: []string{"/bin/fn"}})
	r := b.openWith(t, cfg)
	pull := func() runtime.Image {
		img, err := r.Pull(t.Context(), host+"/team/fn", dgst)
		if err != nil {
			t.Error(err)
		}
		return img
	}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for range 8 {
				pull()
			}
		})
	}
	wg.Go(func() {
		for range 8 {
			if err := r.Forget(t.Context(), dgst); err != nil {
				t.Error(err)
			}
			if err := r.collect(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	b.start(t, r, b.spec(t, r, pull()))
}
