package client_test

import (
	"context"
	"crypto/rand"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/client/clienttest"
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
