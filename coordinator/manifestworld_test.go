package coordinator

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm2"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/manifest"
	"github.com/faasd-sec/faasd-sec/manifest/ask"
	"github.com/faasd-sec/faasd-sec/manifest/opener"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// counted is the opener's client, and how often it was asked to open.
type counted struct {
	*ask.Client
	opens atomic.Int64
}

func (c *counted) Open(ctx context.Context, s ask.Subject, blob, message []byte) (ask.Opened, error) {
	c.opens.Add(1)
	return c.Client.Open(ctx, s, blob, message)
}

// withOpener gives a world the real opener, on a socket.
func withOpener(t testing.TB, to **counted) func(*world) {
	t.Helper()
	dir := t.TempDir()
	op, err := opener.New(opener.Config{StateDir: filepath.Join(dir, "state"), Passphrase: []byte("correct horse"), KeyLife: opener.DefaultKeyLife,
		Random: rand.Reader, Clock: time.Now, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := opener.Listen(filepath.Join(dir, "run", "s"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- op.Serve(ctx, ln, opener.DefaultServerConfig(2)) }()
	client, err := ask.New(ask.DefaultConfig(filepath.Join(dir, "run", "s")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := op.Close(); err != nil {
			t.Error(err)
		}
	})
	*to = &counted{Client: client}
	return func(w *world) { w.manifests = *to }
}

// bounded deploys f.ns with bounds.
func (w *world) bounded(b manifest.Bounds) {
	w.t.Helper()
	seq := w.fn.Sequence + 1
	desc, rev := w.describe(w.owner, seq)
	b.Suite, b.Revision = sealed.SuiteSM, rev
	msg, err := manifest.SealBounds(&b, w.manifestKey(), w.owner, "f.ns", time.Now(), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	if a := w.put(w.owner, api.Revision{Descriptor: desc, ImageRef: "img", Bounds: msg}); a.status != 200 {
		w.t.Fatalf("deploy: %d %s", a.status, a.body)
	}
	w.rev, w.fn = rev, *w.state.Get("f.ns")
}

func (w *world) manifestKey() sealed.PublicKey {
	w.t.Helper()
	a := w.do("GET", api.GatewayPathManifestKey, "", nil)
	var keys api.ManifestKeys
	if err := json.Unmarshal(a.body, &keys); a.status != 200 || err != nil || len(keys.Keys) == 0 {
		w.t.Fatalf("manifest keys: %d %s", a.status, a.body)
	}
	pub, err := sealed.ParsePublicKeyText(keys.Keys[0].Public)
	if err != nil {
		w.t.Fatal(err)
	}
	return pub
}

// wish seals a manifest by who.
func (w *world) wish(who *sm2.PrivateKey, change func(*manifest.Manifest)) (header, task string) {
	w.t.Helper()
	id, err := sealed.NewID(rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	m := &manifest.Manifest{Task: id, Suite: sealed.SuiteSM, Revision: w.rev}
	change(m)
	b, err := manifest.Seal(m, w.manifestKey(), who, "f.ns", time.Now(), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(b), m.Task.String()
}

func (w *world) task(header string) answer {
	w.t.Helper()
	return w.do("POST", "/function/f.ns", api.ContentTypeSealed, w.message(10, time.Minute), api.HeaderManifest, header)
}

// told notes the needs that a node is told.
type told struct {
	mu   sync.Mutex
	list []string
}

func (x *told) last(t testing.TB) api.Needs {
	t.Helper()
	x.mu.Lock()
	defer x.mu.Unlock()
	var n api.Needs
	if len(x.list) == 0 || x.list[len(x.list)-1] == "" {
		return n
	}
	d := json.NewDecoder(strings.NewReader(x.list[len(x.list)-1]))
	d.DisallowUnknownFields()
	if err := d.Decode(&n); err != nil {
		t.Fatalf("%s: %v", x.list[len(x.list)-1], err)
	}
	return n
}

func (n *fakeNode) tells(x *told) {
	next := *n.invoke.Load()
	n.on(&n.invoke, func(rw http.ResponseWriter, r *http.Request) {
		x.mu.Lock()
		x.list = append(x.list, r.Header.Get(api.HeaderNeeds))
		x.mu.Unlock()
		next(rw, r)
	})
}

func someBounds() manifest.Bounds {
	return manifest.Bounds{
		Default:     manifest.Needs{MemoryBytes: 96 << 20, PIDs: 77},
		Max:         manifest.Max{MemoryBytes: 256 << 20, Priority: 9, Attempts: 5},
		Overridable: []manifest.Field{manifest.FieldMemory, manifest.FieldPorts, manifest.FieldConstraints, manifest.FieldDeadline, manifest.FieldPriority, manifest.FieldRetry},
	}
}

// attemptsTakeTime has no attempt of a call that waits be taken for one that found
// room because it takes its time: on a machine that is busy with other things the
// call would be in no list meanwhile, and be overtaken.
func (w *world) attemptsTakeTime() {
	w.c.queue.mu.Lock()
	defer w.c.queue.mu.Unlock()
	w.c.queue.settle = time.Minute
}

func (w *world) fnRoute() *route {
	w.t.Helper()
	r, err := w.c.routeOf("f.ns")
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}
