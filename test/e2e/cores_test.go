package e2e

import (
	"errors"
	"strings"
	"syscall"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/local"
	"github.com/faasd-sec/faasd-sec/manifest"
)

// TestCoresOfASealedManifest has a task run on the one core that its node lends,
// also after the daemon was killed, and a task that asks for none on all.
func TestCoresOfASealedManifest(t *testing.T) {
	c := up(t, 1, func(cfg *local.Config) { cfg.NodeArgs = append(cfg.NodeArgs, "-pin-cores", "1") })
	fn := c.deploy(t, "pinned", func(d *client.Deployment) {
		d.Bounds = &manifest.Bounds{Max: manifest.Max{Cores: 1}, Overridable: []manifest.Field{manifest.FieldCores}}
	})
	// on is where the function's process may run, by its own kernel's word.
	on := func(cores uint64) (list, start string) {
		t.Helper()
		req := client.Request{Path: "/read", Query: "path=/proc/self/status"}
		if cores > 0 {
			req.Needs = &client.Needs{Needs: manifest.Needs{Cores: cores}}
		}
		resp, body, err := c.invoke(t, fn, req)
		if err != nil {
			t.Fatal(err)
		}
		_, list, _ = strings.Cut(string(body), "Cpus_allowed_list:\t")
		list, _, _ = strings.Cut(list, "\n")
		return list, resp.Meta.Start
	}
	if got, _ := on(0); got == "1" || got == "" {
		t.Errorf("a task without cores of its own runs on %q", got)
	}
	if got, _ := on(1); got != "1" {
		t.Errorf("pinned to core 1, it runs on %q", got)
	}
	c.kill(t, "node-1", syscall.SIGKILL)
	c.served(t, "node-1")
	if got, start := on(1); got != "1" || start != "warm" {
		t.Errorf("after the daemon was killed, it runs on %q, %s", got, start)
	}
	_, _, err := c.invoke(t, fn, client.Request{Needs: &client.Needs{Needs: manifest.Needs{Cores: 2}}})
	var e *api.Error
	if !errors.As(err, &e) || e.Code != manifest.CodeExceedsBounds || e.Field != "cores" {
		t.Errorf("more than its owner allows: %v", err)
	}
	if err := c.client.Remove(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}
