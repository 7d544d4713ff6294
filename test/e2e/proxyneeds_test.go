package e2e

import (
	"context"
	"crypto/rand"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/daemon"
	"github.com/faasd-sec/faasd-sec/manifest"
	"github.com/faasd-sec/faasd-sec/proxy"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// proxied is where a proxy serves a function as c, which asks for what headers say.
func proxied(t *testing.T, c *client.Client, fn api.FunctionName) string {
	t.Helper()
	cfg := proxy.DefaultConfig()
	cfg.Routes[0].Overridable = []manifest.Field{manifest.FieldMemory, manifest.FieldStorage, manifest.FieldPIDs, manifest.FieldIngress, manifest.FieldEgress,
		manifest.FieldPorts, manifest.FieldConstraints, manifest.FieldDeadline}
	log := slog.New(slog.NewTextHandler(&testWriter{t: t}, nil))
	p, err := proxy.New(context.WithoutCancel(t.Context()), cfg, proxy.Deps{Callers: map[string]proxy.Invoker{"": c}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := daemon.Listen("127.0.0.1:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	server := daemon.Server(p.Handler(), log)
	server.ErrorHandler = p.HandleError
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- daemon.Serve(ctx, server, ln, 2*time.Second) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		p.Close()
	})
	return "http://" + ln.Addr().String() + api.GatewayPathInvoke + fn.Short() + "/"
}

// TestProxyCommandKnowsPinsAndNeeds has a caller who is not the function's owner run
// the proxy before it has pinned anybody.
func TestProxyCommandKnowsPinsAndNeeds(t *testing.T) {
	needTools(t, "curl")
	c := up(t, 1)
	fn := c.deploy(t, "proxied", func(d *client.Deployment) {
		d.Callers, d.AnyCaller = nil, true
		d.Bounds = &manifest.Bounds{Max: manifest.Max{MemoryBytes: 96 << 20}, Overridable: []manifest.Field{manifest.FieldMemory, manifest.FieldDeadline}, AnyInitiator: true}
	})
	owner := c.id.SigningKey().Fingerprint()
	caller := *c
	var err error
	if caller.id, err = unseal.NewIdentity(rand.Reader); err != nil {
		t.Fatal(err)
	}
	dir := caller.configDir(t)
	config := filepath.Join(t.TempDir(), "proxy.yml")
	if err := os.WriteFile(config, []byte("routes:\n  - {name: needing, functions: [proxied], paths: [/needing], needs: {memory: 80Mi, deadline: 20s}}\n"+
		"  - {name: all, functions: [proxied], overridable: [memory]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	url, _ := caller.startProxy(t, "--config-dir", dir, "--config", config)
	url += api.GatewayPathInvoke + fn.Short()
	wants := func(code api.Code, args ...string) {
		t.Helper()
		out, err := curl(t.Context(), append([]string{"--data", "body"}, args...)...)
		if code == "" && (err != nil || out != "body") || code != "" && (err == nil || !strings.Contains(out, `"code":"`+string(code)+`"`)) {
			t.Errorf("%v: %s, %v, want %q", args, out, err, code)
		}
	}
	wants(api.CodeForbidden, url)
	_, must := caller.commands(t, dir)
	must("key", "trust", "owner", string(fn), owner.String())
	wants("", url)
	memory := func(v string) []string { return []string{"-H", api.HeaderNeedPrefix + "Memory: " + v, url} }
	wants(api.CodeForbidden, memory("80Mi")...) // nobody is pinned as the manifest opener
	must("key", "trust", "manifest-opener", c.openerKey(t, c.ManifestKeys()).Fingerprint().String())
	wants("", memory("80Mi")...)
	wants("", url+"/needing")
	wants(api.CodeExceedsBounds, memory("1Gi")...)
	wants(api.CodeInvalid, memory("much")...)
	wants(api.CodeForbidden, "-H", api.HeaderNeedPrefix+"Cpu: 1", url)
	wants(api.CodeForbidden, "-H", api.HeaderNeedPrefix+"Memory: 80Mi", url+"/needing")
}
