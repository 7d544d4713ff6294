package opener_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/manifest"
	"github.com/faasd-sec/faasd-sec/manifest/ask"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// program is the real one, built as the Makefile builds it.
var program string

func TestMain(m *testing.M) { os.Exit(build(m)) }

func build(m *testing.M) int {
	dir, err := os.MkdirTemp("", "manifest-opener")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "manifest-opener")
	cmd := exec.Command("go", "build", "-trimpath", "-o", program, "github.com/faasd-sec/faasd-sec/cmd/manifest-opener")
	cmd.Env = append(os.Environ(), "GOEXPERIMENT=runtimesecret", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the opener: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// world is an owner, a caller, and an opener as a process.
type world struct {
	tb     testing.TB
	dir    string
	owner  *unseal.Identity
	caller *unseal.Identity
	s      ask.Subject
	cmd    *exec.Cmd
	log    *lines
	client *ask.Client
	key    sealed.PublicKey
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	w := &world{tb: tb, dir: tb.TempDir(), owner: identity(tb), caller: identity(tb)}
	w.s = ask.Subject{Function: "echo.demo", Revision: sealed.Digest{1, 2, 3}, Owner: w.owner.SigningKey().Fingerprint()}
	if err := os.WriteFile(filepath.Join(w.dir, "pass"), []byte("correct horse\n"), 0o600); err != nil {
		tb.Fatal(err)
	}
	w.start()
	tb.Cleanup(func() {
		w.kill()
		if err := w.client.Close(); err != nil {
			tb.Error(err)
		}
	})
	return w
}

func identity(tb testing.TB) *unseal.Identity {
	tb.Helper()
	id, err := unseal.NewIdentity(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return id
}

// lines keeps a process's log and tells when it listens.
type lines struct {
	mu     sync.Mutex
	b      bytes.Buffer
	listen chan struct{}
	once   sync.Once
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if bytes.Contains(p, []byte("manifest opener listens")) {
		l.once.Do(func() { close(l.listen) })
	}
	return l.b.Write(p)
}

func (l *lines) String() string { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }

func (w *world) socket() string { return filepath.Join(w.dir, "run", "socket") }

// start is also a restart: nothing but the directory survives.
func (w *world) start() {
	w.tb.Helper()
	w.log = &lines{listen: make(chan struct{})}
	w.cmd = exec.Command(program, "-socket", w.socket(), "-state-dir", filepath.Join(w.dir, "state"),
		"-passphrase-file", filepath.Join(w.dir, "pass"))
	w.cmd.Stderr = w.log
	if err := w.cmd.Start(); err != nil {
		w.tb.Fatal(err)
	}
	select {
	case <-w.log.listen:
	case <-time.After(20 * time.Second):
		w.tb.Fatalf("it does not listen: %s", w.log)
	}
	if w.client == nil {
		cfg := ask.DefaultConfig(w.socket())
		cfg.Timeout = 20 * time.Second
		var err error
		if w.client, err = ask.New(cfg); err != nil {
			w.tb.Fatal(err)
		}
	}
	keys, err := w.client.Info(context.Background())
	if err != nil {
		w.tb.Fatal(err)
	}
	w.key = keys[0].Public
}

func (w *world) kill() {
	_ = w.cmd.Process.Kill()
	_ = w.cmd.Wait()
}

func (w *world) bounds() *manifest.Bounds {
	return &manifest.Bounds{Suite: 1, Revision: w.s.Revision, Default: manifest.Needs{CPUMillis: 500, MemoryBytes: 1 << 28},
		Max: manifest.Max{CPUMillis: 2000, MemoryBytes: manifest.MaxBytes}, Overridable: []manifest.Field{manifest.FieldCPU, manifest.FieldMemory, manifest.FieldConstraints},
		Initiators: []sealed.Fingerprint{w.caller.SigningKey().Fingerprint()}}
}

func (w *world) wish() *manifest.Manifest {
	return &manifest.Manifest{Task: sealed.ID{7}, Suite: 1, Revision: w.s.Revision, Needs: manifest.Needs{CPUMillis: 1500}}
}

func (w *world) deposit() []byte {
	w.tb.Helper()
	b, err := manifest.SealBounds(w.bounds(), w.key, w.owner.Signer(), w.s.Function, time.Now(), nil)
	if err != nil {
		w.tb.Fatal(err)
	}
	blob, err := w.client.Deposit(context.Background(), w.s, b)
	if err != nil {
		w.tb.Fatal(err)
	}
	return blob
}

func (w *world) seal(m *manifest.Manifest, from *unseal.Identity, random io.Reader) []byte {
	w.tb.Helper()
	b, err := manifest.Seal(m, w.key, from.Signer(), w.s.Function, time.Now(), random)
	if err != nil {
		w.tb.Fatal(err)
	}
	return b
}

func TestManifestsAreOpenedAndMerged(t *testing.T) {
	w := newWorld(t)
	blob := w.deposit()
	ctx := t.Context()
	got, err := w.client.Open(ctx, w.s, blob, nil)
	if err != nil || got.Manifest.Needs.CPUMillis != 500 || !got.Manifest.Task.IsZero() || got.Sender != (sealed.Fingerprint{}) {
		t.Errorf("the default: %+v, %v", got, err)
	}
	message := w.seal(w.wish(), w.caller, nil)
	for range 2 { // a manifest may be repeated while it lives
		got, err = w.client.Open(ctx, w.s, blob, message)
		if err != nil || got.Manifest.Needs.CPUMillis != 1500 || got.Manifest.Needs.MemoryBytes != 1<<28 ||
			got.Manifest.Task != (sealed.ID{7}) || got.Sender != w.caller.SigningKey().Fingerprint() {
			t.Errorf("merged: %+v, %v", got, err)
		}
	}
	got, err = w.client.Open(ctx, w.s, nil, w.seal(w.wish(), w.owner, nil))
	if err != nil || got.Manifest.Needs.MemoryBytes != 0 {
		t.Errorf("the owner's, without bounds: %+v, %v", got, err)
	}
	greedy := w.wish()
	greedy.Needs.CPUMillis = 2001
	_, err = w.client.Open(ctx, w.s, blob, w.seal(greedy, w.caller, nil))
	if api.CodeOf(err) != manifest.CodeExceedsBounds || !strings.Contains(err.Error(), "cpu") {
		t.Errorf("beyond the bounds: %v", err)
	}
	if strings.Contains(w.log.String(), "1500") {
		t.Error("the log tells of a manifest")
	}
}

func TestRefusalsBearTheEnvelopesCodes(t *testing.T) {
	w := newWorld(t)
	blob := w.deposit()
	other, stranger := identity(t), identity(t)
	now := time.Now()
	raw := func(p sealed.GrantParams, issued time.Time, body []byte) []byte {
		p.Name = "echo.demo"
		if p.NotBefore.IsZero() {
			p.NotBefore, p.NotAfter = now, now.Add(time.Minute)
		}
		g, err := sealed.NewGrant(p)
		if err != nil {
			t.Fatal(err)
		}
		defer g.Release()
		b, err := g.Append(nil, sealed.MessageParams{Issued: issued}, body)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	body, err := w.wish().Encode()
	if err != nil {
		t.Fatal(err)
	}
	role4 := sealed.GrantParams{Role: sealed.RoleManifest, Recipient: w.key, Sender: w.caller.Signer()}
	good := w.seal(w.wish(), w.caller, nil)
	flipped := bytes.Clone(good)
	flipped[len(flipped)-1] ^= 1
	wrongKey, bundle, expired, future := role4, role4, role4, role4
	wrongKey.Recipient = other.DecryptionKey()
	bundle.Role, bundle.Context = sealed.RoleBundle, w.s.Revision
	expired.NotBefore, expired.NotAfter = now.Add(-10*time.Minute), now.Add(-5*time.Minute)
	future.NotBefore, future.NotAfter = now.Add(5*time.Minute), now.Add(10*time.Minute)
	elsewhere, _ := manifest.Seal(w.wish(), w.key, w.caller.Signer(), "other.demo", now, nil)
	older := w.wish()
	older.Revision = sealed.Digest{9}
	asBounds, _ := manifest.SealBounds(w.bounds(), w.key, w.owner.Signer(), w.s.Function, now, nil)
	for _, c := range []struct {
		name    string
		message []byte
		blob    []byte
		code    api.Code
	}{
		{"another key", raw(wrongKey, now, body), blob, "unknown_key"},
		{"another role", raw(bundle, now, body), blob, "format"},
		{"no envelope", []byte("hello"), blob, "format"},
		{"expired", raw(expired, now.Add(-10*time.Minute), body), blob, "window"},
		{"not yet", raw(future, now.Add(5*time.Minute), body), blob, "window"},
		{"another function", elsewhere, blob, "wrong_function"},
		{"another revision in the body", w.seal(older, w.caller, nil), blob, "stale_revision"},
		{"a stranger", w.seal(w.wish(), stranger, nil), blob, "sender"},
		{"an initiator without bounds", good, nil, "sender"},
		{"a flipped bit", flipped, blob, "record"},
		{"cut", good[:len(good)-1], blob, "truncated"},
		{"bounds for a manifest", asBounds, nil, api.CodeInvalid},
		{"no CBOR", raw(role4, now, []byte("hello")), blob, api.CodeInvalid},
		{"a long body", raw(role4, now, make([]byte, manifest.MaxEncoded+1)), blob, api.CodeTooLarge},
		{"neither", nil, nil, api.CodeInvalid},
		{"a blob that was changed", nil, append(bytes.Clone(blob[:len(blob)-1]), blob[len(blob)-1]^1), api.CodeInvalid},
	} {
		if _, err := w.client.Open(t.Context(), w.s, c.blob, c.message); api.CodeOf(err) != c.code {
			t.Errorf("%s: %v, want %s", c.name, err, c.code)
		}
	}
	for name, s := range map[string]ask.Subject{
		"function": {Function: "other.demo", Revision: w.s.Revision, Owner: w.s.Owner},
		"revision": {Function: w.s.Function, Revision: sealed.Digest{9}, Owner: w.s.Owner},
		"owner":    {Function: w.s.Function, Revision: w.s.Revision, Owner: stranger.SigningKey().Fingerprint()},
	} {
		if _, err := w.client.Open(t.Context(), s, blob, nil); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("a blob of another %s: %v", name, err)
		}
	}
	byCaller, _ := manifest.SealBounds(w.bounds(), w.key, w.caller.Signer(), w.s.Function, now, nil)
	if _, err := w.client.Deposit(t.Context(), w.s, byCaller); api.CodeOf(err) != "sender" {
		t.Errorf("bounds that are not the owner's: %v", err)
	}
	if _, err := w.client.Deposit(t.Context(), w.s, w.seal(w.wish(), w.owner, nil)); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("a manifest for bounds: %v", err)
	}
	moved := w.s
	moved.Revision = sealed.Digest{9}
	if _, err := w.client.Deposit(t.Context(), moved, asBounds); api.CodeOf(err) != api.CodeStaleRevision {
		t.Errorf("bounds of another revision: %v", err)
	}
	if _, err := w.client.Open(t.Context(), w.s, blob, good); err != nil {
		t.Errorf("after all refusals: %v", err)
	}
}

func TestKilledOpenerServesStoredBlobsAgain(t *testing.T) {
	w := newWorld(t)
	blob, key := w.deposit(), w.key
	message := w.seal(w.wish(), w.caller, nil)
	for range 2 {
		w.kill() // SIGKILL
		w.start()
		if w.key != key {
			t.Error("the key changed")
		}
		got, err := w.client.Open(t.Context(), w.s, blob, message)
		if err != nil || got.Manifest.Needs.CPUMillis != 1500 {
			w.kill() // and so its log is complete
			t.Fatalf("%+v, %v; log: %s", got, err, w.log)
		}
	}
	// A second process must not touch the keys of a first.
	second := exec.Command(program, "-socket", filepath.Join(w.dir, "run2", "s"), "-state-dir", filepath.Join(w.dir, "state"),
		"-passphrase-file", filepath.Join(w.dir, "pass"))
	if out, err := second.CombinedOutput(); err == nil || !strings.Contains(string(out), "another process") {
		t.Errorf("two openers on one directory: %v, %s", err, out)
	}
}

func TestCallsEndWithTheirContext(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.client.Info(ctx); err == nil {
		t.Error("a cancelled call succeeded")
	}
	w.kill()
	if _, err := w.client.Info(t.Context()); api.CodeOf(err) != api.CodeUnavailable {
		t.Errorf("nobody is there: %v", err)
	}
}

func TestProcessIsHardened(t *testing.T) {
	w := newWorld(t)
	for file, want := range map[string]string{"limits": "Max core file size 0 0 bytes", "status": "VmLck: "} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", w.cmd.Process.Pid, file))
		if err != nil {
			t.Fatal(err)
		}
		text := strings.Join(strings.Fields(string(b)), " ")
		if !strings.Contains(text, want) || strings.Contains(text, "VmLck: 0 kB") {
			t.Errorf("%s: no %q in %s", file, want, text)
		}
	}
}
