package client_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"go.uber.org/goleak"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/client/clienttest"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const fn = api.FunctionName("echo.openfaas-fn")

type cluster struct {
	*clienttest.Cluster
	t testing.TB
}

func newCluster(t testing.TB) *cluster {
	t.Helper()
	return &cluster{Cluster: clienttest.New(t), t: t}
}

func identity(t testing.TB) *unseal.Identity {
	t.Helper()
	id, err := unseal.NewIdentity(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func (c *cluster) client(id *unseal.Identity, edit ...func(*client.Config)) *client.Client {
	c.t.Helper()
	cfg := client.Config{Gateway: c.URL, Identity: id, Pins: new(client.Pins), Transport: client.NewTransport()}
	for _, e := range edit {
		e(&cfg)
	}
	cl, err := client.New(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(cl.Close)
	return cl
}

func firstUse(cfg *client.Config) { cfg.TrustOnFirstUse = true }

func (c *cluster) deployment(ring *client.Keyring, edit ...func(*client.Deployment)) client.Deployment {
	d := client.Deployment{Name: fn, ImageRef: "echo", ImageDigest: "sha256:" + strings.Repeat("0a", 32), Mode: "http", Upstream: "unix",
		Resources: api.Resources{CPU: 500, Memory: 128 << 20, PIDs: 64}, AnyCaller: true, Attestation: []string{"node-key"}, Keys: ring,
		PushBundle: func(_ context.Context, repo string, f *os.File, _ int64) (string, error) {
			b, err := io.ReadAll(f)
			c.Blobs[repo] = b
			return "sha256:" + strings.Repeat("0b", 32), err
		}}
	for _, e := range edit {
		e(&d)
	}
	return d
}

func newRing(t testing.TB) *client.Keyring {
	return client.NewKeyring(filepath.Join(t.TempDir(), "functions"), []byte("passphrase"), rand.Reader)
}

// deployed is a cluster with the echo function, its owner's client and keys.
func deployed(t testing.TB) (*cluster, *client.Client, *client.Keyring) {
	t.Helper()
	c := newCluster(t)
	owner, ring := c.client(identity(t), firstUse), newRing(t)
	if _, err := owner.Deploy(t.Context(), c.deployment(ring)); err != nil {
		t.Fatal(err)
	}
	return c, owner, ring
}

func wantCode(t *testing.T, err error, want api.Code) {
	t.Helper()
	if api.CodeOf(err) != want {
		t.Errorf("error %v, want code %q", err, want)
	}
}

func TestInvokeSealsEverythingAndOpensTheReply(t *testing.T) {
	c, owner, _ := deployed(t)
	var seen bytes.Buffer
	c.Intercept = func(_ http.ResponseWriter, r *http.Request) bool {
		b, _ := io.ReadAll(r.Body)
		seen.Write(b)
		r.Body = io.NopCloser(bytes.NewReader(b))
		return false
	}
	res, err := owner.Invoke(t.Context(), fn, client.Request{Method: "PUT", Path: "/a/b", Query: "q=1",
		Header: http.Header{"X-Key": {"confidential-header"}}, Body: strings.NewReader("confidential-body")})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || string(b) != "confidential-body" {
		t.Fatalf("%q, %v", b, err)
	}
	if res.Status != 201 || res.Header.Get("X-Line") != "PUT /a/b?q=1" || res.Header.Get("Echo-X-Key") != "confidential-header" {
		t.Errorf("status %d, header %v", res.Status, res.Header)
	}
	if res.Meta.Node != "n1" || res.Meta.Start != "warm" || res.Meta.InServer != time.Millisecond || res.Meta.Revision != c.Revision {
		t.Errorf("meta %+v", res.Meta)
	}
	if bytes.Contains(seen.Bytes(), []byte("confidential")) || bytes.Contains(seen.Bytes(), []byte("/a/b")) {
		t.Error("the gateway saw plaintext")
	}
}

func TestBodiesOfEverySizeComeBack(t *testing.T) {
	_, owner, _ := deployed(t)
	for _, n := range []int{0, 1, 64<<10 - 1, 64 << 10, 64<<10 + 1, 3 << 20} {
		for _, stream := range []bool{false, true} {
			want := make([]byte, n)
			rand.Read(want)
			res, err := owner.Invoke(t.Context(), fn, client.Request{Body: struct{ io.Reader }{bytes.NewReader(want)}, Stream: stream})
			if err != nil {
				t.Fatalf("%d bytes, stream %v: %v", n, stream, err)
			}
			got, err := io.ReadAll(res.Body)
			res.Body.Close()
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes, stream %v: %d came back, %v", n, stream, len(got), err)
			}
		}
	}
}

// With Stream the reply to the first piece arrives before the second is written.
func TestStreamingIsFullDuplex(t *testing.T) {
	_, owner, _ := deployed(t)
	pr, pw := io.Pipe()
	go pw.Write([]byte("one"))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	res, err := owner.Invoke(ctx, fn, client.Request{Body: pr, Stream: true})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	for _, word := range []string{"one", "two", "three"} {
		if word != "one" {
			if _, err := pw.Write([]byte(word)); err != nil {
				t.Fatal(err)
			}
		}
		got := make([]byte, len(word))
		if _, err := io.ReadFull(res.Body, got); err != nil || string(got) != word {
			t.Fatalf("%q, %v", got, err)
		}
	}
	pw.Close()
	if rest, err := io.ReadAll(res.Body); err != nil || len(rest) != 0 {
		t.Fatalf("%q, %v", rest, err)
	}
}

func TestLargeBodiesPassInFlatMemory(t *testing.T) {
	_, owner, _ := deployed(t)
	const size = 64 << 20
	res, err := owner.Invoke(t.Context(), fn, client.Request{Body: io.LimitReader(zeros{}, size), Stream: true})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var before, peak uint64
	buf := make([]byte, 1<<20)
	var total int64
	for {
		n, err := res.Body.Read(buf)
		total += int64(n)
		if total%(8<<20) < int64(n) {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			if before == 0 {
				before = m.HeapAlloc
			}
			peak = max(peak, m.HeapAlloc)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if total != size {
		t.Errorf("%d bytes came back", total)
	}
	if peak > before+24<<20 {
		t.Errorf("heap grew from %d to %d MiB", before>>20, peak>>20)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestOnlyAPinnedOwnersDescriptorIsUsed(t *testing.T) {
	c, owner, _ := deployed(t)
	caller := identity(t)
	invoke := func(cl *client.Client) error {
		res, err := cl.Invoke(t.Context(), fn, client.Request{})
		if err == nil {
			res.Body.Close()
		}
		return err
	}
	wantCode(t, invoke(c.client(caller)), api.CodeForbidden)
	pins := new(client.Pins)
	pinned := func(cfg *client.Config) { cfg.Pins = pins }
	if err := pins.SetOwner(c.URL, "openfaas-fn", c.Owner); err != nil {
		t.Fatal(err)
	}
	wantCode(t, invoke(c.client(caller, pinned)), "")
	if err := pins.SetOwner(c.URL, string(fn), sealed.Fingerprint{1}); err != nil {
		t.Fatal(err)
	}
	wantCode(t, invoke(c.client(caller, pinned)), api.CodeForbidden)
	wantCode(t, invoke(c.client(caller, pinned, firstUse)), api.CodeForbidden)
	wantCode(t, invoke(owner), "")
	first := new(client.Pins)
	cl := c.client(caller, firstUse, func(cfg *client.Config) { cfg.Pins = first })
	wantCode(t, invoke(cl), "")
	if got, ok := first.Owner(c.URL, fn); !ok || got != c.Owner {
		t.Error("the first use was not remembered")
	}
}

func TestAForgedDescriptorIsRefused(t *testing.T) {
	c, owner, _ := deployed(t)
	good := c.Record.Descriptor
	serve := func(desc []byte) {
		c.Record = &api.Revision{Descriptor: desc}
	}
	for name, at := range map[string]int{"payload": 40, "signature": len(good) - 3} {
		bad := bytes.Clone(good)
		bad[at] ^= 1
		serve(bad)
		pins := new(client.Pins)
		cl := c.client(identity(t), firstUse, func(cfg *client.Config) { cfg.Pins = pins })
		if _, err := cl.Invoke(t.Context(), fn, client.Request{}); err == nil {
			t.Errorf("%s changed: accepted", name)
		}
		if len(pins.List()) != 0 {
			t.Errorf("%s changed: its claimed owner was pinned", name)
		}
	}
	serve(nil)
	_, err := c.client(identity(t), firstUse).Invoke(t.Context(), fn, client.Request{})
	wantCode(t, err, api.CodeInvalid)
	serve(good)
	_, err = owner.Invoke(t.Context(), "other.openfaas-fn", client.Request{})
	wantCode(t, err, api.CodeForbidden)
}

func TestANewRevisionIsFetchedOnceWhenTheBodyCanBeSentAgain(t *testing.T) {
	c, owner, ring := deployed(t)
	caller := c.client(identity(t), firstUse)
	call := func(body io.Reader) (*client.Response, error) {
		res, err := caller.Invoke(t.Context(), fn, client.Request{Body: body})
		if err == nil {
			io.Copy(io.Discard, res.Body)
			res.Body.Close()
		}
		return res, err
	}
	big := bytes.Repeat([]byte("x"), 300<<10)
	file := filepath.Join(t.TempDir(), "body")
	if err := os.WriteFile(file, big, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := call(nil); err != nil {
		t.Fatal(err)
	}
	for i, k := range []struct {
		name string
		body func() io.Reader
		want api.Code
	}{
		{"none", func() io.Reader { return nil }, ""},
		{"small stream", func() io.Reader { return struct{ io.Reader }{strings.NewReader("small")} }, ""},
		{"large file", func() io.Reader { f, _ := os.Open(file); t.Cleanup(func() { f.Close() }); return f }, ""},
		{"large stream", func() io.Reader { return struct{ io.Reader }{bytes.NewReader(big)} }, api.CodeStaleRevision},
	} {
		next := c.deployment(ring, func(d *client.Deployment) { d.MaxInFlight = i + 1 })
		if _, err := owner.Deploy(t.Context(), next); err != nil {
			t.Fatal(err)
		}
		res, err := call(k.body())
		wantCode(t, err, k.want)
		if err == nil && !res.Meta.Retried {
			t.Errorf("%s: not retried", k.name)
		}
	}
}

func TestARotatedKeyIsFollowed(t *testing.T) {
	c, owner, ring := deployed(t)
	caller := c.client(identity(t), firstUse)
	old := c.Descriptor
	if res, err := caller.Invoke(t.Context(), fn, client.Request{}); err != nil {
		t.Fatal(err)
	} else {
		res.Body.Close()
	}
	for i := range 3 {
		d, err := owner.Deploy(t.Context(), c.deployment(ring, func(d *client.Deployment) { d.Rotate = true }))
		if err != nil {
			t.Fatal(err)
		}
		if d.Changed || c.Descriptor.SigningKey != old.SigningKey || len(c.Descriptor.Decryption) != 2 {
			t.Errorf("rotation %d: changed %v, %d keys", i, d.Changed, len(c.Descriptor.Decryption))
		}
		res, err := caller.Invoke(t.Context(), fn, client.Request{})
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
	}
	for _, k := range c.Descriptor.Decryption {
		if k.Key == old.Decryption[0].Key {
			t.Error("the first key is still listed after three rotations")
		}
	}
}

func TestRefusalsKeepTheirCode(t *testing.T) {
	c, owner, _ := deployed(t)
	for _, code := range []api.Code{api.CodeBusy, api.CodeNoRoom, api.CodeReplay, api.CodeOOMKilled, "window"} {
		c.Intercept = func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasPrefix(r.URL.Path, api.GatewayPathInvoke) {
				clienttest.Fail(w, &api.Error{Code: code, Message: "no", Field: "f", Remedy: "r"})
				return true
			}
			return false
		}
		_, err := owner.Invoke(t.Context(), fn, client.Request{})
		var e *api.Error
		if !errors.As(err, &e) || e.Code != code || e.Field != "f" || e.Remedy != "r" {
			t.Errorf("%s: error %v", code, err)
		}
	}
}

func TestAReplyThatIsNotTheFunctionsIsRefused(t *testing.T) {
	c, owner, _ := deployed(t)
	var kept []byte
	rewrite := func(change func([]byte) []byte) {
		c.Intercept = func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasPrefix(r.URL.Path, api.GatewayPathInvoke) {
				return false
			}
			rec := &recorder{header: make(http.Header)}
			c.Invoke(rec, r)
			w.Header().Set("Content-Type", rec.header.Get("Content-Type"))
			w.Write(change(rec.body.Bytes()))
			return true
		}
	}
	read := func() error {
		res, err := owner.Invoke(t.Context(), fn, client.Request{Body: strings.NewReader("hello")})
		if err != nil {
			return err
		}
		defer res.Body.Close()
		_, err = io.ReadAll(res.Body)
		return err
	}
	rewrite(func(b []byte) []byte { kept = bytes.Clone(b); return b })
	wantCode(t, read(), "")
	rewrite(func(b []byte) []byte { return kept })
	if err := read(); err == nil {
		t.Error("another request's reply was accepted")
	}
	rewrite(func(b []byte) []byte { b[len(b)-1] ^= 1; return b })
	wantCode(t, read(), "record")
	rewrite(func(b []byte) []byte { return b[:len(b)-25] })
	wantCode(t, read(), api.CodeNodeLost)
	rewrite(func(b []byte) []byte { return append(b, 0) })
	if err := read(); err == nil {
		t.Error("bytes after the end were accepted")
	}
	rewrite(func([]byte) []byte { return nil })
	if err := read(); err == nil {
		t.Error("an empty reply was accepted")
	}
	c.Intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.URL.Path, api.GatewayPathInvoke) {
			w.Header().Set("Content-Type", "text/plain")
			io.WriteString(w, "plain")
			return true
		}
		return false
	}
	wantCode(t, read(), api.CodeMediaType)
}

type recorder struct {
	header http.Header
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) Write(p []byte) (int, error) { return r.body.Write(p) }
func (r *recorder) WriteHeader(int)             {}
func (r *recorder) Flush()                      {}

func TestDeployNeedsAPinnedBroker(t *testing.T) {
	c := newCluster(t)
	id := identity(t)
	_, err := c.client(id).Deploy(t.Context(), c.deployment(newRing(t)))
	wantCode(t, err, api.CodeForbidden)
	if !strings.Contains(err.Error(), "key trust broker") {
		t.Errorf("no remedy in %v", err)
	}
	dir := t.TempDir()
	if err := client.PinBroker(dir, c.URL+"/", c.Broker.Info()); err != nil {
		t.Fatal(err)
	}
	pins, err := client.OpenPins(dir)
	if err != nil {
		t.Fatal(err)
	}
	with := func(cfg *client.Config) { cfg.Pins = pins }
	if _, err := c.client(id, with).Deploy(t.Context(), c.deployment(newRing(t))); err != nil {
		t.Fatal(err)
	}
	if err := pins.SetBroker(c.URL, client.BrokerPin{Signing: id.SigningKey(), Decryption: id.DecryptionKey()}); err != nil {
		t.Fatal(err)
	}
	_, err = c.client(id, with, firstUse).Deploy(t.Context(), c.deployment(newRing(t)))
	wantCode(t, err, api.CodeForbidden)
}

func TestABundleIsSealedAndKeepsItsRevision(t *testing.T) {
	c, owner, ring := deployed(t)
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, "model.csv"), []byte("weight,1.5"), 0o600)
	os.Mkdir(filepath.Join(dir, "empty"), 0o755)
	os.Symlink("model.csv", filepath.Join(dir, "link"))
	with := func(d *client.Deployment) {
		d.BundlePath = "/function"
		d.Bundle = client.Bundle{Dir: dir, Env: map[string]string{"TOKEN": "s3cret"}, Secrets: map[string][]byte{"api": []byte("key")}}
	}
	first, err := owner.Deploy(t.Context(), c.deployment(ring, with))
	if err != nil {
		t.Fatal(err)
	}
	blob := c.Blobs["bundles/openfaas-fn/echo"]
	for _, s := range []string{"weight", "s3cret", "model", "TOKEN"} {
		if bytes.Contains(blob, []byte(s)) {
			t.Errorf("the pushed bundle shows %q", s)
		}
	}
	b, err := c.Opener.OpenBundle(bytes.NewReader(blob), unseal.Expect{Role: sealed.RoleBundle, Name: string(fn), Context: c.Revision,
		Senders: unseal.OnlyFingerprint(c.Owner)}, c.Descriptor.Config.Bundle, nil, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if got := tarNames(t, b); got != "env secrets/api code/empty/ code/link code/model.csv" {
		t.Errorf("archive has %q", got)
	}
	os.Chtimes(filepath.Join(dir, "model.csv"), time.Now(), time.Now().Add(time.Hour))
	again, err := owner.Deploy(t.Context(), c.deployment(ring, with))
	if err != nil || again.Revision != first.Revision || again.Changed || again.Sequence <= first.Sequence {
		t.Errorf("%+v after %+v, %v", again, first, err)
	}
	os.WriteFile(filepath.Join(dir, "model.csv"), []byte("weight,1.6"), 0o600)
	if changed, err := owner.Deploy(t.Context(), c.deployment(ring, with)); err != nil || changed.Revision == first.Revision {
		t.Errorf("%+v, %v", changed, err)
	}
	missing := c.deployment(ring, func(d *client.Deployment) { d.Bundle.Dir = filepath.Join(dir, "nowhere") })
	_, err = owner.Deploy(t.Context(), missing)
	wantCode(t, err, api.CodeInvalid)
}

func TestAnotherOwnersNameIsRefusedBeforeAnythingIsMade(t *testing.T) {
	c, _, _ := deployed(t)
	ring := newRing(t)
	_, err := c.client(identity(t), firstUse).Deploy(t.Context(), c.deployment(ring))
	wantCode(t, err, api.CodeForbidden)
}

func TestRemoveDestroysTheKeys(t *testing.T) {
	c, owner, _ := deployed(t)
	wantCode(t, c.client(identity(t)).Remove(t.Context(), fn), api.CodeForbidden)
	if err := owner.Remove(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Broker.Functions(); n != 0 || err != nil {
		t.Errorf("the broker keeps %d functions, %v", n, err)
	}
	wantCode(t, owner.Remove(t.Context(), fn), api.CodeNotFound)
}

func TestLogsAreOpenedAndDuplicatesDropped(t *testing.T) {
	c, owner, _ := deployed(t)
	sign, err := unseal.KeyFromScalar(c.Keys.Signing)
	if err != nil {
		t.Fatal(err)
	}
	frame := func(seq uint64, sender *unseal.PrivateKey, text string) []byte {
		now := time.Now()
		g, err := sealed.NewGrant(sealed.GrantParams{Role: sealed.RoleLog, Recipient: c.Descriptor.LogRecipient, Sender: sender, Context: c.Revision,
			Name: string(fn), NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		defer g.Release()
		body, _ := cbor.Marshal(map[int]any{1: []map[int]any{{1: now.UnixNano(), 2: 1, 3: text}}})
		msg, err := g.Append(nil, sealed.MessageParams{Issued: now}, body)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := json.Marshal(api.LogFrame{Node: "n1", Sandbox: "s1", Seq: seq, Sealed: msg})
		return b
	}
	forger, err := unseal.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.Logs = [][]byte{{}, frame(1, sign, "one"), frame(2, sign, "two"), frame(1, sign, "one"), frame(3, forger, "forged"), frame(4, sign, "three")}
	var got []string
	err = owner.Logs(t.Context(), fn, false, func(l client.LogLine, err error) error {
		if err != nil {
			got = append(got, string(api.CodeOf(err)))
			return nil
		}
		got = append(got, l.Text)
		return nil
	})
	if err != nil || strings.Join(got, " ") != "one two sender three" {
		t.Errorf("%q, %v", got, err)
	}
	_, lerr := os.Stat("nowhere")
	if err := owner.Logs(t.Context(), fn, false, func(client.LogLine, error) error { return lerr }); !errors.Is(err, lerr) {
		t.Errorf("error %v", err)
	}
}

func TestGatewayURLsAreChecked(t *testing.T) {
	for _, u := range []string{"", "127.0.0.1:8080", "ftp://x", "http://u:p@x", "http://x/path", "http://x?q=1", "http://"} {
		_, err := client.New(client.Config{Gateway: u})
		wantCode(t, err, api.CodeInvalid)
	}
	cl, err := client.New(client.Config{Gateway: "http://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = cl.List(t.Context())
	wantCode(t, err, api.CodeUnavailable)
}
