package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/local"
	"github.com/faasd-sec/faasd-sec/sealed"
)

const (
	burstFunctions = 20
	burstCallers   = 10 // of each
	burstPool      = 2  // sandboxes that each node keeps ready
)

// TestBurst sends the first calls of many functions all at once. Each is
// answered; each image is fetched once by each node; each sandbox gets its keys
// once; no function waits until another's callers are through; and once all is
// idle again nothing is left of it.
func TestBurst(t *testing.T) {
	for _, c := range []struct {
		name   string
		nodes  int
		cpu    string // lent by each node; a function takes a quarter of a core and the agent's share
		starts int    // sandboxes for one burst, at most
		slack  int    // connections more after the second burst: chance decides which node gets how many
	}{
		{"one node with room for all", 1, "16", burstFunctions, 32},
		{"two nodes with room for a third of them", 2, "1", 4 * burstFunctions, burstFunctions * burstCallers},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := up(t, c.nodes, func(cfg *local.Config) {
				cfg.CPU, cfg.IdleAfter = c.cpu, time.Second
				// Of one size, so that it can be told from what a burst leaves behind.
				pool := strconv.Itoa(burstPool)
				cfg.NodeArgs = []string{"-pool-min", pool, "-pool-max", pool}
			})
			(&burst{cluster: cl, nodes: c.nodes, starts: c.starts, slack: c.slack}).run(t)
		})
	}
}

type burst struct {
	*cluster
	nodes, starts, slack int
	functions            []api.FunctionName
}

func (b *burst) run(t *testing.T) {
	began, before := time.Now(), b.fetches(t)
	b.deployAll(t)
	t.Logf("%d functions deployed after %v", burstFunctions, time.Since(began).Round(time.Millisecond))
	released := b.releases(t)
	var floor footprint
	for round := range 2 {
		sandboxes := b.ids(t)
		b.everybody(t)
		started := b.ids(t)
		for id := range sandboxes {
			delete(started, id)
		}
		if n := len(started); n < burstFunctions || n > b.starts {
			t.Errorf("round %d: %d sandboxes for %d functions, want at most %d", round, n, burstFunctions, b.starts)
		}
		keys := b.releases(t)
		if keys-released != len(started) {
			t.Errorf("round %d: keys were released %d times to %d sandboxes", round, keys-released, len(started))
		}
		// Nodes may fetch an image as soon as they hear of it.
		fetched := b.fetches(t) - before
		if fetched < burstFunctions || fetched > b.nodes*burstFunctions {
			t.Errorf("round %d: %d nodes have fetched %d images %d times", round, b.nodes, burstFunctions, fetched)
		}
		t.Logf("round %d: %d sandboxes, %d releases, %d fetches of images so far", round, len(started), keys-released, fetched)
		released = keys
		b.settle(t)
		t.Logf("round %d: all idle after %v", round, time.Since(began).Round(time.Millisecond))
		// What the first round left behind, kept images and connections, is the
		// floor that the second one comes back to.
		if round == 0 {
			floor = b.footprint(t)
			continue
		}
		var now footprint
		within(t, time.Minute, "everything is as it was before the burst", func() bool { now = b.footprint(t); return now.fits(floor, b.slack) },
			func() string { return fmt.Sprintf("before %v\nafter  %v", floor, now) })
		t.Logf("floor: %v", floor)
		t.Logf("back at the floor after %v: %v", time.Since(began).Round(time.Millisecond), now)
	}
}

// deployAll deploys the functions, each with an image of its own. They have
// their largest layer in common.
func (b *burst) deployAll(t *testing.T) {
	t.Helper()
	program, err := os.ReadFile(bin(t, "testfn"))
	if err != nil {
		t.Fatal(err)
	}
	common := layerOf(t, "fn", program)
	for i := range burstFunctions {
		fn := fmt.Sprintf("burst%02d", i)
		digest := b.pushImage(t, "test/"+fn, common, layerOf(t, "name", []byte(fn)))
		full, err := api.ParseFunctionName(fn)
		if err != nil {
			t.Fatal(err)
		}
		_, err = b.client.Deploy(t.Context(), client.Deployment{
			Name: full, ImageRef: "test/" + fn, ImageDigest: digest, Mode: "http", Upstream: "unix",
			Resources: api.Resources{CPU: 200, Memory: 32 << 20, PIDs: 64, Tmp: 4 << 20},
			Exec:      20 * time.Second, Idle: time.Second, Attestation: []string{"node-key"},
			Callers: []sealed.Fingerprint{b.fingerprint()}, Keys: b.keyring, PushBundle: b.pushBundle,
		})
		if err != nil {
			t.Fatal(err)
		}
		b.functions = append(b.functions, full)
	}
}

// everybody calls, all at the same moment.
func (b *burst) everybody(t *testing.T) {
	t.Helper()
	type outcome struct {
		took  time.Duration
		start string
	}
	var mu sync.Mutex
	got := map[api.FunctionName][]outcome{}
	var all sync.WaitGroup
	gate := make(chan struct{})
	for _, fn := range b.functions {
		for i := range burstCallers {
			all.Go(func() {
				want := fmt.Sprintf("caller %d of %s", i, fn)
				<-gate
				began := time.Now()
				resp, body, err := b.call(t, fn, want)
				switch {
				case err != nil:
					t.Errorf("%s after %v: %v", want, time.Since(began), err)
				case resp.Status != http.StatusOK || string(body) != want:
					t.Errorf("%s: status %d: %q", want, resp.Status, body)
				default:
					mu.Lock()
					got[fn] = append(got[fn], outcome{time.Since(began), resp.Meta.Start})
					mu.Unlock()
				}
			})
		}
	}
	began := time.Now()
	close(gate)
	all.Wait()
	took, answers, cold := time.Since(began), 0, 0
	var first time.Duration // of the function that waited longest for its first answer
	for _, o := range got {
		least := time.Hour
		for _, x := range o {
			answers++
			least = min(least, x.took)
			if x.start == "cold" {
				cold++
			}
		}
		first = max(first, least)
	}
	t.Logf("%d answers in %v, %d of them cold; each function had its first within %v", answers, took.Round(time.Millisecond), cold, first.Round(time.Millisecond))
	if answers != burstFunctions*burstCallers {
		t.Fatalf("%d answers, want %d", answers, burstFunctions*burstCallers)
	}
}

// call is an invocation with more patience than the cluster has.
func (b *burst) call(t *testing.T, fn api.FunctionName, body string) (*client.Response, []byte, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	resp, err := b.client.Invoke(ctx, fn, client.Request{Body: strings.NewReader(body)})
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	return resp, got, err
}

// settle waits until no sandbox of a function is left, and the nodes have those
// that wait for one.
func (b *burst) settle(t *testing.T) {
	t.Helper()
	within(t, time.Minute, "no function has a sandbox", func() bool {
		for i := range b.nodes {
			if b.metric(t, fmt.Sprintf("node-%d", i+1), "faasd_sec_node_sandboxes") != 0 {
				return false
			}
		}
		nodes, err := b.client.Nodes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range nodes {
			if slices.Contains(n.Meta.Roles, api.RoleNode) && n.Load.Pooled != burstPool {
				return false
			}
		}
		return b.metric(t, "coordinator", "faasd_sec_queue_length") == 0
	})
}

// ids are all sandboxes that ever served one of the functions.
func (b *burst) ids(t *testing.T) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	for _, fn := range b.functions {
		for _, s := range b.sandboxes(t, fn) {
			out[s.ID] = true
		}
	}
	return out
}

// releases is how often the key broker gave keys to a sandbox.
func (b *burst) releases(t *testing.T) int {
	t.Helper()
	p := b.part(t, "keybroker")
	resp, err := quick.Get("http://" + p.flag("metrics-listen") + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	const ok = `faasd_sec_keybroker_decisions_total{operation="release",outcome="ok"} `
	for line := range strings.Lines(string(page)) {
		if v, found := strings.CutPrefix(strings.TrimSpace(line), ok); found {
			n, err := strconv.Atoi(v)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	return 0
}

// fetches is how many manifests of the functions' images the registry sent.
func (b *burst) fetches(t *testing.T) (n int) {
	t.Helper()
	log, err := os.ReadFile(filepath.Join(b.State(), "logs", "coordinator.log"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, "registry sends") && strings.Contains(line, "/v2/test/burst") && strings.Contains(line, "/manifests/") {
			n++
		}
	}
	return n
}

// footprint is what a cluster holds on to.
type footprint struct {
	stock   stock
	files   map[string]int // open, connections aside
	sockets map[string]int
	threads map[string]int // goroutines
}

// fits reports whether f is no more than floor. Kept connections, and what
// serves them, may be more by slack, since they come and go by themselves.
func (f footprint) fits(floor footprint, slack int) bool {
	for _, kind := range []string{"containers", "tasks", "leases", "mounts", "cgroups", "sandbox directories", "processes"} {
		if len(f.stock[kind]) > len(floor.stock[kind]) {
			return false
		}
	}
	// Which node has which image is chance: each has a view of each at most, and
	// a layer of its own besides the common one. The list has a heading.
	if len(f.stock["snapshots"]) > 2*burstFunctions+2 {
		return false
	}
	for part, n := range f.files {
		if n > floor.files[part]+2 || f.sockets[part] > floor.sockets[part]+slack || f.threads[part] > floor.threads[part]+2*slack {
			return false
		}
	}
	return true
}

func (f footprint) String() string {
	amounts := map[string]int{}
	for kind, names := range f.stock {
		amounts[kind] = len(names)
	}
	return fmt.Sprintf("%v, files %v, sockets %v, goroutines %v", amounts, f.files, f.sockets, f.threads)
}

func (b *burst) footprint(t *testing.T) footprint {
	t.Helper()
	f := footprint{stock: takeStock(t, b.runDir(), b.State()), files: map[string]int{}, sockets: map[string]int{}, threads: map[string]int{}}
	parts := []string{"coordinator"}
	for i := range b.nodes {
		parts = append(parts, fmt.Sprintf("node-%d", i+1))
	}
	for _, name := range parts {
		dir := fmt.Sprintf("/proc/%d/fd", b.part(t, name).pid)
		fds, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range fds {
			to, err := os.Readlink(filepath.Join(dir, fd.Name()))
			switch {
			case err != nil: // closed meanwhile
			case strings.HasPrefix(to, "socket:"), to == "anon_inode:[eventpoll]": // connections have both
				f.sockets[name]++
			default:
				f.files[name]++
			}
		}
		f.threads[name] = int(b.metric(t, name, "go_goroutines"))
	}
	return f
}

// layerOf is a layer with one program in it.
func layerOf(t *testing.T, path string, body []byte) v1.Layer {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := w.WriteHeader(&tar.Header{Name: path, Mode: 0o755, Size: int64(len(body))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil },
		tarball.WithCompressedCaching)
	if err != nil {
		t.Fatal(err)
	}
	return layer
}

// pushImage pushes an image whose program is /fn, and returns its digest.
func (b *burst) pushImage(t *testing.T, repo string, layers ...v1.Layer) string {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.Config(img, v1.Config{Entrypoint: []string{"/fn"}}); err != nil {
		t.Fatal(err)
	}
	ref, err := name.NewTag(strings.TrimPrefix(b.Gateway(), "http://")+"/"+repo+":latest", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img, remote.WithTransport(b.signed()), remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}
