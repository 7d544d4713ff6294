package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/anomaly"
)

// auditLog is a closed log of five events and its key's .pub file.
func auditLog(t *testing.T) (dir, pub string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "log")
	key := filepath.Join(t.TempDir(), "anomaly.key")
	signer, err := anomaly.OpenKey(key, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cfg := anomaly.DefaultConfig()
	cfg.Dir, cfg.Node, cfg.Signer = dir, "node-1", signer
	l, err := anomaly.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		l.Append(anomaly.Event{Kind: anomaly.OOM, Code: "function", Function: "hello.openfaas-fn", Numbers: map[string]int64{"kills": int64(i)}})
	}
	l.Append(anomaly.Event{Kind: anomaly.AbnormalStop, Function: "other.demo", Numbers: map[string]int64{"exit_code": -1, "signal": 9}})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := l.Close(ctx); err != nil {
		t.Fatal(err)
	}
	return dir, key + ".pub"
}

func TestAuditVerify(t *testing.T) {
	s := newShell(t, "http://127.0.0.1:1")
	dir, pub := auditLog(t)
	var rep anomaly.Report
	if err := json.Unmarshal([]byte(s.must("", "audit", "verify", dir, "--key", pub, "--json")), &rep); err != nil || !rep.OK || rep.Events != 5 || rep.Signed == nil {
		t.Fatalf("%+v, %v", rep, err)
	}
	out := s.must("", "audit", "verify", dir, "--key", rep.Key.String(), "--expect", rep.Signed.String())
	for _, want := range []string{"sound, of node node-1", "5 in 1 segments", "event 5 is there as remembered", "anchor:    " + rep.Signed.String()} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	other := strings.Repeat("ab", 32)
	file := filepath.Join(dir, "0000000001.seg")
	for name, c := range map[string]struct {
		args   []string
		code   int
		stderr []string
	}{
		"no key":        {[]string{dir}, exitInvalid, []string{"field: --key", "fix: give 64 hex digits"}},
		"bad key":       {[]string{dir, "--key", "abc"}, exitInvalid, []string{"field: --key", `"abc" is neither`}},
		"key of others": {[]string{dir, "--key", other}, exitNotGenuine, []string{"key: it is signed by the key " + rep.Key.String(), "fix: compare the key"}},
		"no directory":  {[]string{dir + "x", "--key", pub}, exitNotFound, []string{"field: DIR", "fix: name the directory"}},
		"a file":        {[]string{file, "--key", pub}, exitInvalid, []string{"field: DIR", "is a file"}},
		"no log":        {[]string{t.TempDir(), "--key", pub}, exitNotFound, []string{"field: DIR", "no anomaly log"}},
		"bad anchor":    {[]string{dir, "--key", pub, "--expect", "5"}, exitInvalid, []string{"field: --expect", "SEQ:DIGEST"}},
		"other anchor":  {[]string{dir, "--key", pub, "--expect", "5:" + other}, exitNotGenuine, []string{"anchor: event 5 is another", "fix: ask what happened"}},
		"later anchor":  {[]string{dir, "--key", pub, "--expect", "6:" + other}, exitNotGenuine, []string{"holds no event 6"}},
	} {
		code, _, errs := s.run("", append([]string{"audit", "verify"}, c.args...)...)
		if code != c.code {
			t.Errorf("%s: exit %d, want %d\n%s", name, code, c.code, errs)
		}
		for _, want := range c.stderr {
			if !strings.Contains(errs, want) {
				t.Errorf("%s: no %q in\n%s", name, want, errs)
			}
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, bytes.Replace(b, []byte("hello."), []byte("other."), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, errs := s.run("", "audit", "verify", dir, "--key", pub)
	if code != exitNotGenuine || !strings.Contains(errs, "segment 1, byte ") || !strings.Contains(errs, "chain: the record was changed") || !strings.Contains(out, "BROKEN") {
		t.Fatalf("exit %d\n%s%s", code, out, errs)
	}
	if code, _, errs = s.run("", "audit", "show", dir); code != exitNotGenuine || !strings.Contains(errs, "warning: segment 1") {
		t.Fatalf("exit %d\n%s", code, errs)
	}
}

func TestAuditShow(t *testing.T) {
	s := newShell(t, "http://127.0.0.1:1")
	dir, _ := auditLog(t)
	lines := func(args ...string) []string {
		return strings.Split(strings.TrimSpace(s.must("", append([]string{"audit", "show", dir}, args...)...)), "\n")
	}
	if got := lines(); len(got) != 5 || !strings.Contains(got[1], "oom") || !strings.HasSuffix(got[1], "node-1  function  hello  kills=1") {
		t.Fatalf("%q", got)
	}
	if got := lines("--kind", "abnormal-stop,refused", "--since", "1h"); len(got) != 1 || !strings.HasSuffix(got[0], "other.demo  exit_code=-1  signal=9") {
		t.Fatalf("%q", got)
	}
	if got := lines("--function", "hello", "--node", "node-1"); len(got) != 4 {
		t.Fatalf("%q", got)
	}
	if got := lines("--until", "2020-01-01T00:00:00Z"); got[0] != "" {
		t.Fatalf("%q", got)
	}
	var e struct {
		Seq     uint64
		Kind    string
		Numbers map[string]int64
	}
	if err := json.Unmarshal([]byte(lines("--json")[4]), &e); err != nil || e.Seq != 5 || e.Kind != "abnormal-stop" || e.Numbers["signal"] != 9 {
		t.Fatalf("%+v, %v", e, err)
	}
	for _, c := range [][]string{{"--kind", "oops", "field: --kind"}, {"--since", "soon", "field: --since"}, {"--function", "Hello", "field: --function"}} {
		if code, _, errs := s.run("", "audit", "show", dir, c[0], c[1]); code != exitInvalid || !strings.Contains(errs, c[2]) || !strings.Contains(errs, "fix: ") {
			t.Errorf("%v: exit %d\n%s", c, code, errs)
		}
	}
}
