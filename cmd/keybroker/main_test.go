package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/pki"
)

// state is a state directory with a certificate of role.
func state(t *testing.T, role pki.Role) string {
	t.Helper()
	ca, err := pki.NewCluster(filepath.Join(t.TempDir(), "ca"))
	if err != nil {
		t.Fatal(err)
	}
	key, cert, err := ca.Issue(role, "kb", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := pki.SaveIdentity(filepath.Join(dir, "tls.pem"), key, cert, ca.CertificatePEM()); err != nil {
		t.Fatal(err)
	}
	return dir
}

func env(kv map[string]string) func(string) string { return func(k string) string { return kv[k] } }

func TestMistakesAreToldBeforeAnythingListens(t *testing.T) {
	good := state(t, pki.RoleKeyBroker)
	loose := filepath.Join(t.TempDir(), "nowhere")
	for name, k := range map[string]struct {
		args []string
		env  map[string]string
		want string
	}{
		"no certificate":        {[]string{"--state-dir", t.TempDir()}, nil, "no certificate"},
		"no passphrase":         {[]string{"--state-dir", good}, nil, "--passphrase-file"},
		"named file missing":    {[]string{"--state-dir", good, "--passphrase-file", loose}, map[string]string{passphraseEnv: "passphrase"}, "passphrase"},
		"named credential":      {[]string{"--state-dir", good}, map[string]string{"CREDENTIALS_DIRECTORY": loose}, passphraseCredential},
		"short passphrase":      {[]string{"--state-dir", good}, map[string]string{passphraseEnv: "short"}, "at least 8"},
		"another's certificate": {[]string{"--state-dir", state(t, pki.RoleNode), "--insecure-passphrase"}, nil, "role is node"},
		"owner":                 {[]string{"--allow-owner", "abc"}, nil, "allow-owner"},
		"agent":                 {[]string{"--allow-agent", "abc"}, nil, "allow-agent"},
		"argument":              {[]string{"serve"}, nil, "unexpected argument"},
		"flag":                  {[]string{"--nope"}, nil, "nope"},
		"level":                 {[]string{"--log-level", "loud"}, nil, "log-level"},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			err := run(t.Context(), k.args, env(k.env), &out)
			if err == nil || !strings.Contains(err.Error(), k.want) {
				t.Errorf("error %v, want one about %q", err, k.want)
			}
		})
	}
}

func TestItServesUntilItIsTold(t *testing.T) {
	dir := state(t, pki.RoleKeyBroker)
	pass := filepath.Join(t.TempDir(), "pass")
	if err := os.WriteFile(pass, []byte("passphrase\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"passphrase", "passphrase"} { // made, then opened from the environment
		ctx, cancel := context.WithCancel(t.Context())
		listens := &watcher{want: []byte("key broker listens"), seen: make(chan struct{})}
		done := make(chan error, 1)
		args := []string{"--state-dir", dir, "--listen", "127.0.0.1:0", "--metrics-listen", ""}
		if _, err := os.Stat(filepath.Join(dir, "identity")); err != nil {
			args = append(args, "--passphrase-file", pass)
		}
		go func() { done <- run(ctx, args, env(map[string]string{passphraseEnv: p}), listens) }()
		select {
		case <-listens.seen:
		case err := <-done:
			t.Fatalf("ended: %v", err)
		case <-time.After(20 * time.Second):
			t.Fatal("it does not listen")
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	err := run(t.Context(), []string{"--state-dir", dir}, env(map[string]string{passphraseEnv: "another passphrase"}), &bytes.Buffer{})
	if err == nil || api.CodeOf(err) == "" || !strings.Contains(err.Error(), "passphrase") {
		t.Errorf("a wrong passphrase: %v", err)
	}
}

// watcher closes seen when want was written.
type watcher struct {
	want []byte
	seen chan struct{}
	done bool
}

func (s *watcher) Write(p []byte) (int, error) {
	if !s.done && bytes.Contains(p, s.want) {
		s.done = true
		close(s.seen)
	}
	return len(p), nil
}
