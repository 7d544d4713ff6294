package openfaas

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// stackFile is as users of OpenFaaS write it.
const stackFile = `version: 1.0
provider:
  name: openfaas
  gateway: http://127.0.0.1:8080
functions:
  stacked:
    lang: golang-middleware
    handler: ./stacked
    image: ${IMAGE:-` + testImage + `}
    fprocess: env
    environment:
      custom_env: of the file
    environment_file: [env.yml]
    secrets: [stack-key]
    labels:
      com.openfaas.scale.min: 1
    annotations:
      topic: none
    limits: {memory: 64Mi}
    readonly_root_filesystem: true
`

// sealedFile is the same image, sealed.
const sealedFile = `version: 1.0
provider:
  name: openfaas
functions:
  sealed-stacked:
    image: ` + testImage + `
    fprocess: cat
`

// testOwnCLI deploys a stack file with this project's own command, unsealed, and
// looks at it with that and with OpenFaaS's API.
func testOwnCLI(t *testing.T, c *cluster) {
	dir := t.TempDir()
	for name, text := range map[string]string{"stack.yml": stackFile, "sealed.yml": sealedFile, "env.yml": "environment:\n  second_env: of another file\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run := func(args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute) // also from a clean-up
		defer cancel()
		cmd := exec.CommandContext(ctx, filepath.Join(c.bin, "faasd-sec"), args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "FAASD_SEC_CONFIG="+filepath.Join(dir, "config"), "FAASD_SEC_GATEWAY="+c.Gateway(), "FAASD_SEC_PASSPHRASE=of a test")
		var out, errOut bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errOut
		if err := cmd.Run(); err != nil {
			t.Fatalf("faasd-sec %v: %v\n%s%s", args, err, &out, &errOut)
		}
		return out.String()
	}
	run("key", "new")
	c.want(t, c.cli.secret("POST", "stack-key", "", "value"), 201, "")
	t.Cleanup(func() { c.cli.secret("DELETE", "stack-key", "", "") })
	run("deploy", "--plain", "-f", "stack.yml")
	t.Cleanup(func() { c.cli.remove("stacked", "") })
	r := c.cli.invoke("GET", "stacked", "")
	c.want(t, r, 200, "custom_env=of the file")
	c.want(t, r, 200, "second_env=of another file")
	s, err := c.cli.status("stacked")
	if err != nil || s.Mode != "plain" || s.Image != testImage || s.EnvProcess != "env" || s.Limits["memory"] != "64Mi" ||
		s.Labels["com.openfaas.scale.min"] != "1" || s.Annotations["topic"] != "none" || !s.ReadOnlyRootFilesystem || len(s.Secrets) != 1 {
		t.Errorf("%+v, %v", s, err)
	}
	if out := run("list"); !strings.Contains(out, "stacked") || !strings.Contains(out, "plain") {
		t.Errorf("list: %s", out)
	}
	eventually(t, "its log is there", func() error { return c.logged("stacked", "Wrote") })
	if out := run("logs", "stacked"); !strings.Contains(out, "Forking fprocess.") || !strings.Contains(out, "Wrote ") {
		t.Errorf("logs: %s", out)
	}
	run("remove", "stacked")
	c.want(t, c.cli.describe("stacked", ""), 404, "")

	// The log of a sealed function is sealed records, which its owner opens.
	tag, err := name.NewTag(testImage)
	if err == nil {
		err = tarball.WriteToFile(filepath.Join(dir, "image.tar"), tag, watchdogImage(t, c.bin, "/usr/bin/watchdog"))
	}
	if err != nil {
		t.Fatal(err)
	}
	run("deploy", "-f", "sealed.yml", "--image-tar", "image.tar", "--trust-first-use")
	t.Cleanup(func() { run("remove", "sealed-stacked") })
	if out := run("invoke", "sealed-stacked", "--data", "to itself"); out != "to itself" {
		t.Errorf("invoke: %q", out)
	}
	lines, err := c.cli.logs("sealed-stacked", 10)
	if err != nil || len(lines) == 0 {
		t.Fatalf("%+v, %v", lines, err)
	}
	var printed strings.Builder
	for _, l := range lines {
		if !strings.Contains(l.Text, "faasd-sec logs sealed-stacked --from FILE") || strings.Contains(l.Text, "Forking") || time.Since(l.Timestamp) > time.Minute {
			t.Errorf("%+v", l)
		}
		fmt.Fprintf(&printed, "%s %s (%s) %s\n", l.Timestamp.Format(time.RFC3339), l.Name, l.Instance, l.Text) // as faas-cli prints them
	}
	if err := os.WriteFile(filepath.Join(dir, "printed"), []byte(printed.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := run("logs", "sealed-stacked", "--from", "printed"); !strings.Contains(out, "Forking fprocess.") {
		t.Errorf("opened: %q", out)
	}
}
