package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/image"
	"github.com/faasd-sec/faasd-sec/local"
	"github.com/faasd-sec/faasd-sec/reqauth"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// world is a one-node cluster and a user of it.
type world struct {
	*local.Cluster
	id      *unseal.Identity
	client  *client.Client
	keyring *client.Keyring
	pins    *client.Pins
	remote  *image.Remote
	pushed  map[string]string // language -> image digest
	serial  int
}

// newWorld starts a cluster in dir. Limits are not what is measured here, so the
// node lends more CPU than the machine has.
func newWorld(ctx context.Context, bin, dir string, args, nodeArgs []string) (_ *world, err error) {
	w := &world{pushed: map[string]string{}}
	w.Cluster, err = local.Start(ctx, local.Config{
		Nodes: 1, Listen: "127.0.0.1:0", Bin: bin, State: filepath.Join(dir, "state"), CPU: "2000", Args: args, NodeArgs: nodeArgs, Gateways: true,
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		return nil, fmt.Errorf("start a cluster: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
		}
	}()
	if w.id, err = unseal.NewIdentity(rand.Reader); err != nil {
		return nil, err
	}
	user := filepath.Join(dir, "user")
	if err = client.PinBroker(user, w.Gateway(), w.Broker()); err != nil {
		return nil, err
	}
	if w.pins, err = client.OpenPins(user); err != nil {
		return nil, err
	}
	w.keyring = client.NewKeyring(filepath.Join(user, "functions"), []byte("bench"), rand.Reader)
	w.client, err = w.newClient()
	w.remote = &image.Remote{Registry: strings.TrimPrefix(w.Gateway(), "http://"), PlainHTTP: true, Transport: &reqauth.Transport{
		Base: http.DefaultTransport, Unsigned: reqauth.RegistryUpload,
		Signer: &reqauth.Signer{Key: w.id.Signer(), Random: rand.Reader, Now: time.Now},
	}}
	return w, err
}

// endpoint is where callers reach the coordinator.
func (w *world) endpoint() endpoint {
	return endpoint{"tcp", strings.TrimPrefix(w.Gateway(), "http://")}
}

func (w *world) newClient() (*client.Client, error) {
	return client.New(client.Config{Gateway: w.Gateway(), Identity: w.id, Pins: w.pins})
}

// viaNode makes a client whose invocations the node's own gateway serves.
func (w *world) viaNode() (*client.Client, error) {
	return client.New(client.Config{Gateway: w.Gateway(), Via: w.NodeGateway(1), Identity: w.id, Pins: w.pins})
}

// push stores a program's image in the cluster's registry.
func (w *world) push(ctx context.Context, lang string, img *image.Image) error {
	digest, err := w.remote.Push(ctx, "bench/"+lang, "latest", img)
	if err != nil {
		return fmt.Errorf("push the %s image: %w", lang, err)
	}
	w.pushed[lang] = digest
	return nil
}

func (w *world) close() error {
	if w.client != nil {
		w.client.Close()
	}
	ctx, cancel := cleanUpContext()
	defer cancel()
	return w.Stop(ctx)
}

// deploy makes one new function of a pushed image.
func (w *world) deploy(ctx context.Context, lang string, change ...func(*client.Deployment)) (api.FunctionName, error) {
	w.serial++
	fn, err := api.ParseFunctionName(fmt.Sprintf("%s-%d", lang, w.serial))
	if err != nil {
		return "", err
	}
	d := client.Deployment{
		Name: fn, ImageRef: "bench/" + lang, ImageDigest: w.pushed[lang], Mode: "http", Upstream: "unix",
		Resources: api.Resources{CPU: 2000, Memory: 512 << 20, PIDs: 128, Tmp: 64 << 20}, MaxInFlight: 256,
		Exec: time.Minute, Attestation: []string{"node-key"}, Callers: []sealed.Fingerprint{w.id.SigningKey().Fingerprint()},
		Keys: w.keyring, PushBundle: func(ctx context.Context, repo string, blob *os.File, size int64) (string, error) {
			return w.remote.PushBlob(ctx, repo, blob, size)
		},
	}
	for _, f := range change {
		f(&d)
	}
	if _, err := w.client.Deploy(ctx, d); err != nil {
		return "", fmt.Errorf("deploy %s: %w", fn.Short(), err)
	}
	return fn, nil
}

// invoke makes one sealed invocation, reads the opened reply to its end and
// checks that so many bytes came, of a success.
func invoke(ctx context.Context, c *client.Client, fn api.FunctionName, req client.Request, want int64) (client.Meta, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	began := time.Now()
	resp, err := c.Invoke(ctx, fn, req)
	if err != nil {
		return client.Meta{}, err
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err != nil {
		return client.Meta{}, fmt.Errorf("after %d bytes of the reply in %v: %w", n, time.Since(began).Round(time.Millisecond), err)
	}
	if resp.Status != http.StatusOK || n != want {
		return client.Meta{}, fmt.Errorf("status %d, %d bytes came back of %d", resp.Status, n, want)
	}
	return resp.Meta, nil
}

// hello calls any of the programs with a GET, whose answer is five bytes.
func (w *world) hello(ctx context.Context, fn api.FunctionName) (client.Meta, error) {
	return invoke(ctx, w.client, fn, client.Request{Method: http.MethodGet}, 5)
}

// find returns the cluster's process of a part.
func (w *world) find(part string) (process, error) {
	all, err := processesOf(w.State())
	if err != nil {
		return process{}, err
	}
	for _, p := range all {
		if p.part == part {
			return p, nil
		}
	}
	return process{}, fmt.Errorf("no %s runs for %s", part, w.State())
}
