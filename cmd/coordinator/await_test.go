package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/enrol"
	"github.com/faasd-sec/faasd-sec/store/storetest"
)

// get is a page's status and text.
func get(t *testing.T, u string) (int, string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

// flags are those of a coordinator on a cluster of its own, with addresses that are
// free.
func flags(t *testing.T, etcd string) (args []string, gateway, ops string) {
	t.Helper()
	state := filepath.Join(t.TempDir(), "c")
	if _, err := enrol.Init(state, []string{"any"}, rand.Reader); err != nil {
		t.Fatal(err)
	}
	gateway, ops = storetest.FreeAddr(t), storetest.FreeAddr(t)
	return []string{"-state", state, "-listen", gateway, "-ops-listen", ops, "-cluster-listen", storetest.FreeAddr(t), "-gossip-listen", storetest.FreeAddr(t),
		"-etcd", etcd, "-log-level", "error"}, "http://" + gateway, "http://" + ops
}

func TestACoordinatorWaitsForItsStoreAndSaysSo(t *testing.T) {
	addr := storetest.FreeAddr(t)
	args, gateway, ops := flags(t, "http://"+addr)
	o, err := parse(args)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	done := make(chan error, 1)
	go func() { done <- run(ctx, o) }()

	for _, base := range []string{ops, gateway} {
		eventually(t, "a sign of life", func() error {
			code, _, err := get(t, base+"/healthz")
			if err == nil && code != http.StatusOK {
				err = fmt.Errorf("status %d", code)
			}
			return err
		})
		code, text, err := get(t, base+"/readyz")
		if err != nil || code != http.StatusServiceUnavailable || !strings.Contains(text, "waiting for the store") {
			t.Errorf("%s/readyz: %d %q %v", base, code, text, err)
		}
		if base == ops && !strings.Contains(text, "connection refused") || base == gateway && strings.Contains(text, addr) {
			t.Errorf("%s tells %q: the operator is to hear why, callers need not", base, text)
		}
	}
	if code, text, err := get(t, gateway+"/function/f"); err != nil || code != http.StatusServiceUnavailable || !strings.Contains(text, string(api.CodeUnavailable)) {
		t.Errorf("a caller is told %d %q %v", code, text, err)
	}
	away := storetest.Serve(t, url.URL{Scheme: "http", Host: addr}, transport.TLSInfo{})
	eventually(t, "the coordinator to serve", func() error {
		_, text, err := get(t, ops+"/readyz")
		if err == nil && !strings.Contains(text, "no node has joined") {
			err = errors.New(text)
		}
		return err
	})
	eventually(t, "the gateway", func() error {
		code, _, err := get(t, gateway+"/v1/nodes")
		if err == nil && code == http.StatusServiceUnavailable {
			err = errors.New("not yet")
		}
		return err
	})
	away()
	eventually(t, "the coordinator to say that its store went", func() error {
		_, text, err := get(t, ops+"/readyz")
		if err == nil && !strings.Contains(text, "the store does not answer") {
			err = errors.New(text)
		}
		return err
	})
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestACoordinatorThatWaitsStopsWhenTold(t *testing.T) {
	args, _, ops := flags(t, "http://"+storetest.FreeAddr(t))
	o, err := parse(args)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- run(ctx, o) }()
	eventually(t, "a sign of life", func() error { _, _, err := get(t, ops+"/healthz"); return err })
	stop()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("it does not stop")
	}
}

func TestAnEtcdAddressThatCannotBeRightEndsItAtOnce(t *testing.T) {
	for _, etcd := range []string{"127.0.0.1:2379", "http://127.0.0.1", "http://127.0.0.1:store", "http://10.0.0.1:2379", "https://10.0.0.1:2379"} {
		args, _, _ := flags(t, etcd)
		o, err := parse(args)
		if err != nil {
			t.Fatal(err)
		}
		if err := run(t.Context(), o); api.CodeOf(err) != api.CodeInvalid || !strings.Contains(err.Error(), "-etcd") {
			t.Errorf("%s: %v", etcd, err)
		}
	}
}
