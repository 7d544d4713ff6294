package client_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/client/clienttest"
)

// first is a coordinator that answers with a code, or breaks off after it has
// read the whole request.
func (c *cluster) first(code api.Code, asked *atomic.Int64) string {
	c.t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		io.Copy(io.Discard, r.Body)
		if code == "" {
			panic(http.ErrAbortHandler)
		}
		clienttest.Fail(w, api.Errorf(code, "no"))
	}))
	c.t.Cleanup(srv.Close)
	return srv.URL
}

func closedAddress(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) }) // bound until then, so that nobody else has the port, and never listening
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("http://127.0.0.1:%d", at.(*unix.SockaddrInet4).Port)
}

func TestTheNextCoordinatorIsAskedOnce(t *testing.T) {
	c, _, _ := deployed(t)
	var asked atomic.Int64
	for _, transport := range []http.RoundTripper{nil, client.NewTransport()} { // both ways to send
		for name, gateway := range map[string]string{"gone": closedAddress(t), "unavailable": c.first(api.CodeUnavailable, &asked),
			"draining": c.first(api.CodeDraining, &asked)} {
			cl := c.client(identity(t), firstUse, func(cfg *client.Config) {
				cfg.Gateway, cfg.Others, cfg.Transport = gateway, []string{c.URL}, transport
			})
			before := asked.Load()
			for range 3 {
				if err := echoed(t, cl); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			// It stays with the one that served.
			if n := asked.Load() - before; n > 1 {
				t.Errorf("%s: asked %d times", name, n)
			}
		}
	}
	alone := c.client(identity(t), firstUse, func(cfg *client.Config) {
		cfg.Gateway, cfg.Others = closedAddress(t), []string{closedAddress(t)}
	})
	wantCode(t, echoed(t, alone), api.CodeUnavailable)
}

func TestACallThatMayHaveRunIsAskedAgainOnlyIfItMay(t *testing.T) {
	c, _, _ := deployed(t)
	var broken, second atomic.Int64
	gateway := c.brokenInvocations(&broken)
	c.Intercept = func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.URL.Path, api.GatewayPathInvoke) {
			second.Add(1)
		}
		return false
	}
	for _, transport := range []http.RoundTripper{nil, client.NewTransport()} {
		cl := c.client(identity(t), firstUse, func(cfg *client.Config) {
			cfg.Gateway, cfg.Others, cfg.Transport = gateway, []string{c.URL}, transport
		})
		wantCode(t, echoed(t, cl), api.CodeUnavailable)
		if second.Load() != 0 {
			t.Fatal("it was sent a second time")
		}
		again := c.client(identity(t), firstUse, func(cfg *client.Config) {
			cfg.Gateway, cfg.Others, cfg.Resend, cfg.Transport = gateway, []string{c.URL}, true, transport
		})
		if err := echoed(t, again); err != nil || second.Swap(0) != 1 {
			t.Errorf("%v", err)
		}
	}
	// What a coordinator decided another would decide as well.
	refusing := c.client(identity(t), firstUse, func(cfg *client.Config) {
		cfg.Gateway, cfg.Others, cfg.Resend = c.first(api.CodeForbidden, &broken), []string{c.URL}, true
	})
	wantCode(t, echoed(t, refusing), api.CodeForbidden)
}

// brokenInvocations is a coordinator that tells of functions and breaks off
// when one is invoked.
func (c *cluster) brokenInvocations(n *atomic.Int64) string {
	return c.but(api.GatewayPathInvoke, func(_ http.ResponseWriter, r *http.Request) {
		n.Add(1)
		io.Copy(io.Discard, r.Body)
		panic(http.ErrAbortHandler)
	}).URL
}

// but is a coordinator that serves what is below a path itself. It keeps no
// connection open, so that nobody is there once it was closed.
func (c *cluster) but(path string, serve http.HandlerFunc) *httptest.Server {
	c.t.Helper()
	to, err := url.Parse(c.URL)
	if err != nil {
		c.t.Fatal(err)
	}
	others := httputil.NewSingleHostReverseProxy(to)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, path) {
			serve(w, r)
			return
		}
		others.ServeHTTP(w, r)
	}))
	srv.Config.SetKeepAlivesEnabled(false)
	srv.Start()
	c.t.Cleanup(srv.Close)
	return srv
}

func TestACallForLaterGoesToTheNextCoordinatorOnlyWhereNobodyIs(t *testing.T) {
	c, _, _ := deployed(t)
	var kept, broken atomic.Int64
	keep := func(w http.ResponseWriter, r *http.Request) {
		if b, err := io.ReadAll(r.Body); err != nil || len(b) == 0 {
			t.Errorf("%d bytes, %v", len(b), err)
		}
		kept.Add(1)
		w.Header().Set(api.HeaderCallID, "kept")
		w.WriteHeader(http.StatusAccepted)
	}
	next := c.but(api.GatewayPathAsync, keep)
	using := func(first *httptest.Server) func() error {
		cl := c.client(identity(t), firstUse, func(cfg *client.Config) { cfg.Gateway, cfg.Others = first.URL, []string{next.URL} })
		return func() error {
			_, err := cl.InvokeLater(t.Context(), fn, client.Request{Body: strings.NewReader("a")}, client.Later{})
			return err
		}
	}
	first := c.but(api.GatewayPathAsync, keep)
	later := using(first)
	if err := later(); err != nil || kept.Load() != 1 {
		t.Fatalf("kept %d times: %v", kept.Load(), err)
	}
	first.Close()
	if err := later(); err != nil || kept.Load() != 2 {
		t.Fatalf("kept %d times: %v", kept.Load(), err)
	}
	// These may have accepted it.
	breaks := using(c.but(api.GatewayPathAsync, func(_ http.ResponseWriter, r *http.Request) {
		broken.Add(1)
		io.Copy(io.Discard, r.Body)
		panic(http.ErrAbortHandler)
	}))
	refuses := using(c.but(api.GatewayPathAsync, func(w http.ResponseWriter, r *http.Request) {
		broken.Add(1)
		clienttest.Fail(w, api.Errorf(api.CodeUnavailable, "the store did not answer in time"))
	}))
	wantCode(t, breaks(), api.CodeUnavailable)
	wantCode(t, refuses(), api.CodeUnavailable)
	if kept.Load() != 2 || broken.Load() != 2 {
		t.Fatalf("kept %d times, asked %d", kept.Load(), broken.Load())
	}
}
