package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/client/clienttest"
	"github.com/faasd-sec/faasd-sec/sealed"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"faasd-sec": main})
}

// The scripts are mistakes that people make, with what they are told.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("FAASD_SEC_CONFIG", filepath.Join(e.WorkDir, "config"))
			e.Setenv("FAASD_SEC_GATEWAY", "http://127.0.0.1:1")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits},
	})
}

// exits runs a command and wants exactly this exit code: exits 2 faasd-sec …
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND…")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	if e, ok := err.(interface{ ExitCode() int }); ok {
		got = fmt.Sprint(e.ExitCode())
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if got != args[0] {
		ts.Fatalf("exit code %s, want %s", got, args[0])
	}
}

// shell runs command lines in this process.
type shell struct {
	t   *testing.T
	env map[string]string
}

func newShell(t *testing.T, gateway string) *shell {
	return &shell{t: t, env: map[string]string{"HOME": t.TempDir(), envGateway: gateway, envPassphrase: "correct horse"}}
}

func (s *shell) config() string { return filepath.Join(s.env["HOME"], ".config", "faasd-sec") }

// run returns exit code and outputs; stdin is empty when it is "".
func (s *shell) run(stdin string, args ...string) (int, string, string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	code := run(ctx, args, strings.NewReader(stdin), &out, &errs, func(k string) (string, bool) { v, ok := s.env[k]; return v, ok })
	return code, out.String(), errs.String()
}

func (s *shell) must(stdin string, args ...string) string {
	s.t.Helper()
	code, out, errs := s.run(stdin, args...)
	if code != 0 {
		s.t.Fatalf("faasd-sec %s: exit %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

func (s *shell) file(path, content string) string {
	s.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

const helloYML = `version: 1.0
provider: {name: openfaas}
functions:
  hello:
    image: hello:latest
    environment: {GREETING: confidential-greeting}
    secrets: [token]
    sealed: {upstream: unix, bundle: ./model, callers: any}
    build:
      from: scratch
      copy: [{src: main.sh, dst: /main.sh, mode: 0755}]
      entrypoint: [/main.sh]
`

// An owner's whole day: keys, pin, build, deploy, invoke, look, rotate, remove.
func TestFromKeyToRemoval(t *testing.T) {
	c := clienttest.New(t)
	s := newShell(t, c.URL)
	dir := t.TempDir()
	yml := s.file(filepath.Join(dir, "function.yml"), helloYML)
	s.file(filepath.Join(dir, "main.sh"), "#!/bin/sh\n")
	s.file(filepath.Join(dir, "model", "weights.csv"), "confidential-weights")
	s.must("", "key", "new")

	code, _, errs := s.run("", "deploy", "-f", yml)
	if code != exitInvalid || !strings.Contains(errs, "no value for secret \"token\"") || !strings.Contains(errs, "--secret token=FILE") {
		t.Fatalf("exit %d: %s", code, errs)
	}
	s.file(filepath.Join(s.config(), "secrets", "token"), "confidential-token")
	code, _, errs = s.run("", "deploy", "-f", yml)
	if code != exitNotFound || !strings.Contains(errs, "faasd-sec build") {
		t.Fatalf("exit %d: %s", code, errs)
	}
	if out := s.must("", "build", dir); !strings.Contains(out, "built hello: hello:latest@sha256:") {
		t.Errorf("build printed %q", out)
	}
	code, _, errs = s.run("", "deploy", "-f", yml)
	if code != exitRefused || !strings.Contains(errs, "faasd-sec key trust broker --gateway "+c.URL) {
		t.Fatalf("exit %d: %s", code, errs)
	}
	code, _, errs = s.run("", "key", "trust", "broker")
	if code != exitRefused {
		t.Fatalf("exit %d: %s", code, errs)
	}
	sign, err := sealed.ParsePublicKeyText(c.Broker.Info().Signing)
	if err != nil {
		t.Fatal(err)
	}
	if code, _, _ := s.run("", "key", "trust", "broker", strings.Repeat("00", 32)); code != exitRefused {
		t.Errorf("a wrong fingerprint: exit %d", code)
	}
	s.must("", "key", "trust", "broker", sign.Fingerprint().String())
	if out := s.must("", "deploy", "-f", yml); !strings.Contains(out, "deployed hello: revision ") {
		t.Errorf("deploy printed %q", out)
	}
	revision := c.Revision
	if out := s.must("", "deploy", "-f", yml, "--build", "--rotate", "-o", "json"); !strings.Contains(out, `"changed": false`) || c.Revision != revision {
		t.Errorf("a rotation printed %q", out)
	}

	if out := s.must("piped body", "invoke", "hello"); out != "piped body" {
		t.Errorf("invoke printed %q", out)
	}
	out := s.must("", "invoke", "hello", "-d", "x", "-X", "get", "--path", "/p", "--query", "a=b", "-H", "X-A: 1", "-i")
	for _, want := range []string{"201 Created\n", "X-Line: GET /p?a=b\n", "Echo-X-A: 1\n", "\n\nx"} {
		if !strings.Contains(out, want) {
			t.Errorf("invoke -i printed %q, without %q", out, want)
		}
	}
	body := s.file(filepath.Join(dir, "body"), strings.Repeat("z", 200_000))
	if out := s.must("", "invoke", "hello", "--file", body, "--stream"); len(out) != 200_000 {
		t.Errorf("%d bytes came back", len(out))
	}
	if out := s.must("", "list"); !strings.Contains(out, "hello") || !strings.Contains(out, "sealed") || !strings.Contains(out, "you") {
		t.Errorf("list printed %q", out)
	}
	if out := s.must("", "describe", "hello"); !strings.Contains(out, "node-key (dev-untrusted)") || !strings.Contains(out, "(you)") {
		t.Errorf("describe printed %q", out)
	}
	if out := s.must("", "nodes"); !strings.Contains(out, "node-key (dev-untrusted)") || !strings.Contains(out, "1500m/2000m") {
		t.Errorf("nodes printed %q", out)
	}
	if out := s.must("", "top", "--once"); !strings.Contains(out, "n1") || !strings.Contains(out, "hello") {
		t.Errorf("top printed %q", out)
	}
	if out := s.must("", "key", "trust", "list", "-o", "json"); !json.Valid([]byte(out)) {
		t.Errorf("not JSON: %q", out)
	}
	s.must("", "logs", "hello")
	s.must("", "remove", "hello")
	if code, _, _ := s.run("", "remove", "hello"); code != exitNotFound {
		t.Errorf("removing twice: exit %d", code)
	}
	if _, err := os.Stat(filepath.Join(s.config(), "functions", "default", "openfaas-fn", "hello")); !os.IsNotExist(err) {
		t.Errorf("the function's keys remain: %v", err)
	}
	s.must("", "deploy", "-f", yml) // the name is free again
}

// Nothing confidential leaves in clear, whatever the command.
func TestNothingConfidentialLeavesInClear(t *testing.T) {
	c := clienttest.New(t)
	var wire bytes.Buffer
	c.Intercept = clienttest.Record(&wire)
	s := newShell(t, c.URL)
	dir := t.TempDir()
	yml := s.file(filepath.Join(dir, "function.yml"), helloYML)
	s.file(filepath.Join(dir, "main.sh"), "#!/bin/sh\n")
	s.file(filepath.Join(dir, "model", "weights.csv"), "confidential-weights")
	secret := s.file(filepath.Join(dir, "token"), "confidential-token")
	s.must("", "key", "new")
	s.must("", "deploy", "-f", yml, "--build", "--trust-first-use", "--secret", "token="+secret)
	s.must("confidential-payload", "invoke", "hello", "--path", "/confidential-path", "-H", "X: confidential-header")
	if wire.Len() < 2000 {
		t.Fatalf("only %d bytes were seen", wire.Len())
	}
	if at := bytes.Index(wire.Bytes(), []byte("confidential")); at >= 0 {
		t.Errorf("in clear: %q", wire.Bytes()[at:min(at+40, wire.Len())])
	}
}

func TestExitCodeTellsTheFunctionsStatus(t *testing.T) {
	c := clienttest.New(t)
	s := newShell(t, c.URL)
	dir := t.TempDir()
	yml := s.file(filepath.Join(dir, "function.yml"), "functions:\n  hello:\n    image: hello\n    build: {from: scratch, copy: [{src: f, dst: /f}], entrypoint: [/f]}\n")
	s.file(filepath.Join(dir, "f"), "x")
	s.must("", "key", "new")
	s.must("", "deploy", "-f", yml, "--build", "--trust-first-use")
	for _, k := range []struct {
		status int
		code   string
		want   int
	}{{200, "", 0}, {302, "", 0}, {404, "", exitFunction4xx}, {500, "", exitFunction5xx}, {500, "oom_killed", exitFunction5xx}} {
		c.Handler = func(sealed.RequestHead, io.Reader) (sealed.ReplyHead, func(io.Writer) error) {
			h := sealed.ReplyHead{Status: k.status}
			if k.code != "" {
				h.Header = []sealed.Field{{Name: strings.ToLower(api.HeaderFunctionErr), Value: k.code}}
			}
			return h, func(w io.Writer) error { _, err := io.WriteString(w, "body"); return err }
		}
		code, out, errs := s.run("", "invoke", "hello", "-d", "")
		if code != k.want || out != "body" {
			t.Errorf("status %d: exit %d, %q, %q", k.status, code, out, errs)
		}
	}
	c.Handler = func(sealed.RequestHead, io.Reader) (sealed.ReplyHead, func(io.Writer) error) {
		return sealed.ReplyHead{Status: 200}, func(w io.Writer) error { io.WriteString(w, "part"); return io.ErrUnexpectedEOF }
	}
	if code, _, errs := s.run("", "invoke", "hello", "-d", ""); code != exitUnavailable || !strings.Contains(errs, "cut short") {
		t.Errorf("a reply that breaks off: exit %d, %q", code, errs)
	}
}

func TestCallersNeedThePinnedOwner(t *testing.T) {
	c := clienttest.New(t)
	owner, caller := newShell(t, c.URL), newShell(t, c.URL)
	dir := t.TempDir()
	yml := owner.file(filepath.Join(dir, "function.yml"), "functions:\n  hello:\n    image: hello\n    sealed: {callers: any}\n    build: {from: scratch, copy: [{src: f, dst: /f}], entrypoint: [/f]}\n")
	owner.file(filepath.Join(dir, "f"), "x")
	owner.must("", "key", "new")
	owner.must("", "deploy", "-f", yml, "--build", "--trust-first-use")
	caller.must("", "key", "new")
	code, _, errs := caller.run("hi", "invoke", "hello")
	if code != exitRefused || !strings.Contains(errs, "key trust owner hello.openfaas-fn "+c.Owner.String()) {
		t.Fatalf("exit %d: %s", code, errs)
	}
	caller.must("", "key", "trust", "owner", "hello.openfaas-fn", c.Owner.String())
	if out := caller.must("hi", "invoke", "hello"); out != "hi" {
		t.Errorf("%q", out)
	}
	// Somebody else's name is not taken over.
	code, _, errs = caller.run("", "deploy", "-f", yml, "--trust-first-use")
	if code != exitRefused || !strings.Contains(errs, "another owner") {
		t.Errorf("exit %d: %s", code, errs)
	}
}

func TestExportedKeysImportAgain(t *testing.T) {
	s := newShell(t, "http://127.0.0.1:1")
	s.must("", "key", "new")
	show := s.must("", "key", "show")
	for _, prf := range []string{"sm3", "sha256"} {
		pem := s.must("", "key", "export", "--prf", prf)
		name := "copy-" + prf
		s.must(pem, "key", "import", name)
		if got := s.must("", "key", "show", name); strings.ReplaceAll(got, name, "default") != show {
			t.Errorf("%s: got %s want %s", prf, got, show)
		}
	}
	if code, _, errs := s.run("junk", "key", "import", "x"); code != exitInvalid {
		t.Errorf("junk: exit %d, %s", code, errs)
	}
	if out := s.must("", "key", "list"); strings.Count(out, "\n") != 4 {
		t.Errorf("key list printed %q", out)
	}
}

func TestUpsPinIsFoundByDeploy(t *testing.T) {
	c := clienttest.New(t)
	s := newShell(t, c.URL)
	if err := client.PinBroker(s.config(), c.URL, c.Broker.Info()); err != nil {
		t.Fatal(err)
	}
	if out := s.must("", "key", "trust", "list"); !strings.Contains(out, c.URL) || !strings.Contains(out, "broker") {
		t.Errorf("%q", out)
	}
}
