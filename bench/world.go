package main

import (
	"bytes"
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
	digest  string // of the benchmark function's image
}

const imageRepo = "bench/echo"

// newWorld starts the cluster and pushes the benchmark function.
func newWorld(ctx context.Context, o options) (_ *world, err error) {
	w := &world{}
	w.Cluster, err = local.Start(ctx, local.Config{
		Nodes: 1, Listen: "127.0.0.1:0", Bin: o.bin, CPU: "64", // limits are not what is measured here
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
		}
	}()
	if w.id, err = unseal.NewIdentity(rand.Reader); err != nil {
		return nil, err
	}
	dir := filepath.Join(o.scratch, "user")
	if err = client.PinBroker(dir, w.Gateway(), w.Broker()); err != nil {
		return nil, err
	}
	if w.pins, err = client.OpenPins(dir); err != nil {
		return nil, err
	}
	w.keyring = client.NewKeyring(filepath.Join(dir, "functions"), []byte("bench"), rand.Reader)
	if w.client, err = w.newClient(); err != nil {
		return nil, err
	}
	w.remote = &image.Remote{Registry: strings.TrimPrefix(w.Gateway(), "http://"), PlainHTTP: true, Transport: &reqauth.Transport{
		Base: http.DefaultTransport, Unsigned: reqauth.RegistryUpload,
		Signer: &reqauth.Signer{Key: w.id.Signer(), Random: rand.Reader, Now: time.Now},
	}}
	img, err := image.DefaultBuilder(filepath.Dir(o.function)).Build(ctx, image.Build{
		From: "scratch", Copy: []image.Copy{{Src: filepath.Base(o.function), Dst: "/fn", Mode: 0o755}}, Entrypoint: []string{"/fn"},
	})
	if err != nil {
		return nil, err
	}
	defer img.Close()
	w.digest, err = w.remote.Push(ctx, imageRepo, "latest", img)
	return w, err
}

func (w *world) newClient() (*client.Client, error) {
	return client.New(client.Config{Gateway: w.Gateway(), Identity: w.id, Pins: w.pins})
}

func (w *world) close() error {
	if w.client != nil {
		w.client.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return w.Stop(ctx)
}

// deploy makes one function of the pushed image.
func (w *world) deploy(ctx context.Context, name string) (api.FunctionName, error) {
	fn, err := api.ParseFunctionName(name)
	if err != nil {
		return "", err
	}
	_, err = w.client.Deploy(ctx, client.Deployment{
		Name: fn, ImageRef: imageRepo, ImageDigest: w.digest, Mode: "http", Upstream: "unix",
		Resources: api.Resources{CPU: 2000, Memory: 1 << 30, PIDs: 256, Tmp: 64 << 20}, MaxInFlight: 256,
		Exec: time.Minute, Attestation: []string{"node-key"}, Callers: []sealed.Fingerprint{w.id.SigningKey().Fingerprint()},
		Keys: w.keyring, PushBundle: func(ctx context.Context, repo string, blob *os.File, size int64) (string, error) {
			return w.remote.PushBlob(ctx, repo, blob, size)
		},
	})
	return fn, err
}

// call makes one sealed invocation and checks that everything came back.
func (w *world) call(ctx context.Context, c *client.Client, fn api.FunctionName, body []byte) error {
	resp, err := c.Invoke(ctx, fn, client.Request{Body: bytes.NewReader(body)})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err != nil {
		return err
	}
	if resp.Status != http.StatusOK || n != int64(len(body)) {
		return fmt.Errorf("status %d, %d bytes came back of %d", resp.Status, n, len(body))
	}
	return nil
}
