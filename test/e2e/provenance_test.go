package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/local"
	"github.com/faasd-sec/faasd-sec/templates"
)

// A node with an image policy runs what a trusted owner deployed, here functions as
// new makes them, in every language. It runs nothing that nobody signed.
func TestNewFunctionsAnswerWhereTheImagePolicyTrustsTheirOwner(t *testing.T) {
	need(t)
	u := &user{t: t, dir: t.TempDir()}
	u.run("", "key", "new")
	var fingerprint string
	for _, w := range strings.Fields(u.run("", "key", "show")) {
		if len(w) == 64 {
			fingerprint = w
			break
		}
	}
	policy := filepath.Join(t.TempDir(), "policy.yml")
	if err := os.WriteFile(policy, []byte("rules:\n  - {prefix: \"\", signers: ["+fingerprint+"]}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	c := up(t, 1, func(cfg *local.Config) { cfg.NodeArgs = []string{"-image-policy", policy} })
	unsigned := c.deploy(t, "unsigned")
	if _, b, err := c.invoke(t, unsigned, client.Request{Body: strings.NewReader("x")}); api.CodeOf(err) == "" {
		t.Errorf("an image that nobody signed ran: %s", b)
	} else {
		t.Logf("refused: %v", err)
	}
	if status, body := c.putPlain(t, "unsigned-plain", api.Plain{Image: "test/unsigned:latest"}); status/100 != 2 {
		t.Fatalf("deploy a plain function: %d %s", status, body)
	}
	if status, body := c.plainly(t, &http.Client{}, http.MethodPost, api.GatewayPathInvoke+"unsigned-plain", strings.NewReader("x")); status < 400 || !strings.Contains(body, "signed") {
		t.Errorf("a plain function of an image that nobody signed: %d %s", status, body)
	}
	if n := c.metric(t, "node-1", `faasd_sec_node_second_checks_failed_total{check="signature"}`); n < 2 {
		t.Errorf("%v refusals were counted", n)
	}
	u.gateway = c.Gateway()
	u.run("", "key", "trust", "broker", "--trust-first-use")
	script, err := filepath.Abs("../../scripts/base-image.sh")
	if err != nil {
		t.Fatal(err)
	}
	for _, lang := range templates.Languages() {
		dir := filepath.Join(t.TempDir(), "greet-"+lang)
		u.run("", "new", "--lang", lang, "--dir", dir, "greet-"+lang)
		u.run("", "deploy", "--build", "-f", filepath.Join(dir, "function.yml"), "--base-script", script)
		if out := u.run("", "invoke", "greet-"+lang, "--data", "Ada"); out != "Hello, Ada!\n" {
			t.Errorf("%s: %q", lang, out)
		}
		out := u.run("", "sbom", "greet-"+lang)
		want := map[string]string{"go": "pkg:golang/stdlib@", "node": "pkg:deb/debian/nodejs@", "python": "pkg:deb/debian/python3@", "shell": "pkg:deb/debian/busybox-static@"}[lang]
		if !strings.Contains(out, `"bomFormat": "CycloneDX"`) || !strings.Contains(out, want) {
			t.Errorf("%s: %.300q", lang, out)
		}
	}
}
