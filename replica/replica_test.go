package replica

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/pki"
	"github.com/faasd-sec/faasd-sec/registry"
)

// site is one coordinator's registry behind mutual TLS.
type site struct {
	addr   string
	images *registry.Registry
	reps   *Replicas
	server *fasthttp.Server
}

// sites starts n of them that know each other; all is how many there are, with
// those that are away.
func sites(t *testing.T, n, all int) []*site {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	ca, err := pki.NewCluster(filepath.Join(t.TempDir(), "ca"))
	if err != nil {
		t.Fatal(err)
	}
	var group []*site
	for i := range n {
		keyPEM, certPEM, err := ca.Issue(pki.RoleCoordinator, fmt.Sprintf("c%d", i), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		id, err := pki.NewIdentity(keyPEM, certPEM, ca.CertificatePEM())
		if err != nil {
			t.Fatal(err)
		}
		cfg := registry.DefaultConfig(t.TempDir(), log)
		cfg.Authorize, cfg.MinFreeBytes = registry.AllowAll, 0
		s := &site{}
		if s.images, err = registry.Open(cfg); err != nil {
			t.Fatal(err)
		}
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s.addr = ln.Addr().String()
		s.reps = New(context.WithoutCancel(t.Context()), s.images, Config{Self: s.addr, Log: log,
			Count: func(context.Context) (int, error) { return all, nil },
			TLS:   pki.ClientConfig(id, pki.RoleCoordinator, pki.AnyID),
			Others: func() []string {
				var others []string
				for _, o := range group {
					if o != s {
						others = append(others, o.addr)
					}
				}
				return others
			}})
		s.server = &fasthttp.Server{StreamRequestBody: true, Handler: func(ctx *fasthttp.RequestCtx) {
			if string(ctx.Path()) == api.GatewayPathReplicate {
				s.reps.Serve(ctx)
				return
			}
			s.images.ServeFastHTTP(ctx)
		}}
		tlsLn := tlsListener(ln, id)
		go s.server.Serve(tlsLn)
		t.Cleanup(func() {
			s.reps.Close()
			s.server.Shutdown()
			s.images.Close()
		})
		group = append(group, s)
	}
	return group
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// push stores an image of one layer and returns its digest and its layer's.
func (s *site) push(t *testing.T, repo, content string) (manifest, layer string) {
	t.Helper()
	put := func(method, path, typ string, b []byte) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, path, bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", typ)
		w := &recorder{header: http.Header{}}
		s.images.ServeHTTP(w, req)
		if w.status != http.StatusCreated {
			t.Fatalf("%s: %d %s", path, w.status, w.body.String())
		}
	}
	config, blob := []byte("{}"), []byte(content)
	for _, b := range [][]byte{config, blob} {
		put(http.MethodPost, "/v2/"+repo+"/blobs/uploads/?digest="+digestOf(b), "application/octet-stream", b)
	}
	m := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",`+
		`"config":{"mediaType":"a/b","digest":%q,"size":%d},"layers":[{"mediaType":"a/b","digest":%q,"size":%d}]}`,
		digestOf(config), len(config), digestOf(blob), len(blob))
	put(http.MethodPut, "/v2/"+repo+"/manifests/"+digestOf(m), "application/vnd.oci.image.manifest.v1+json", m)
	return digestOf(m), digestOf(blob)
}

func TestAMajorityHasWhatADeploymentNames(t *testing.T) {
	all := sites(t, 3, 3)
	m, layer := all[0].push(t, "fn/a", "code")
	if ok, err := all[0].reps.HasManifest(t.Context(), "fn/a", m); err != nil || !ok {
		t.Fatalf("%v, %v", ok, err)
	}
	have := 0
	for _, s := range all {
		ok, err := s.images.HasManifest(t.Context(), "fn/a", m)
		if err != nil {
			t.Fatal(err)
		}
		if there, err := s.images.HasBlob(t.Context(), "fn/a", layer); err != nil || ok && !there {
			t.Fatalf("a manifest without its layer: %v", err)
		}
		if ok {
			have++
		}
	}
	if have < 2 {
		t.Fatalf("%d of 3 have it", have)
	}
}

func TestAnyCoordinatorDeploysWhatAnotherWasPushed(t *testing.T) {
	all := sites(t, 3, 3)
	m, layer := all[0].push(t, "fn/a", "code")
	if ok, err := all[2].reps.HasManifest(t.Context(), "fn/a", m); err != nil || !ok {
		t.Fatalf("%v, %v", ok, err)
	}
	if ok, err := all[2].reps.HasBlob(t.Context(), "fn/a", layer); err != nil || !ok {
		t.Fatalf("%v, %v", ok, err)
	}
	if ok, err := all[2].reps.HasManifest(t.Context(), "fn/a", digestOf([]byte("nowhere"))); err != nil || ok {
		t.Fatalf("what nobody has: %v, %v", ok, err)
	}
}

func TestWithoutAMajorityNothingIsDeployed(t *testing.T) {
	all := sites(t, 1, 3) // two are away
	m, _ := all[0].push(t, "fn/a", "code")
	_, err := all[0].reps.HasManifest(t.Context(), "fn/a", m)
	if api.CodeOf(err) != api.CodeUnavailable || !strings.Contains(err.Error(), "1 of 3") {
		t.Fatalf("%v", err)
	}
	alone := sites(t, 1, 1)
	m, _ = alone[0].push(t, "fn/a", "code")
	if ok, err := alone[0].reps.HasManifest(t.Context(), "fn/a", m); err != nil || !ok {
		t.Fatalf("a lone coordinator: %v, %v", ok, err)
	}
}

func TestCopiesAreMadeFromCoordinatorsOnly(t *testing.T) {
	all := sites(t, 2, 2)
	var ctx fasthttp.RequestCtx
	ctx.Request.SetBodyString(`{"repository":"fn/a","digest":"` + digestOf(nil) + `","from":"127.0.0.1:1"}`)
	all[0].reps.Serve(&ctx)
	if ctx.Response.StatusCode() != http.StatusBadRequest {
		t.Fatalf("status %d: %s", ctx.Response.StatusCode(), ctx.Response.Body())
	}
	if slices.Contains(all[0].reps.cfg.Others(), all[0].addr) {
		t.Fatal("one is not its own other")
	}
}
