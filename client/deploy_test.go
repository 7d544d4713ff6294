package client_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

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
