package e2e

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/daemon"
	"github.com/faasd-sec/faasd-sec/manifest"
	"github.com/faasd-sec/faasd-sec/proxy"
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
