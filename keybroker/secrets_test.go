package keybroker_test

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/emmansun/gmsm/sm3"
	"github.com/fxamacker/cbor/v2"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// askSecrets is ask of a plain function's sandbox.
func (r *rig) askSecrets(node, evidence string, s *sandbox, secrets ...string) (api.ReleaseReply, error) {
	r.t.Helper()
	b, err := cbor.Marshal(s.st)
	if err != nil {
		r.t.Fatal(err)
	}
	agent := sealed.Digest(sm3.Sum([]byte("agent")))
	return r.b.Release(r.t.Context(), node, api.ReleaseRequest{Function: s.fn, Revision: s.rev.String(), Statement: b, Secrets: secrets,
		Evidence: []api.Evidence{{Type: "word", Data: []byte(evidence + " " + agent.String())}}})
}

// openSecrets is what an agent does with a release of secrets.
func (s *sandbox) openSecrets(r *rig, frame []byte) (map[string][]byte, error) {
	b, err := s.opened(r, s.fn, frame, 1<<20)
	if err != nil {
		return nil, err
	}
	var out map[string][]byte
	return out, cbor.Unmarshal(b, &out)
}

// A broker that was killed while it wrote leaves a temporary file, which is a copy of
// a secret: its next start removes it, or a deleted secret would stay on the disk.
func TestInterruptedWritesOfSecretsAreSwept(t *testing.T) {
	r := newRig(t)
	if err := r.b.PutSecret("openfaas-fn", "api-key", []byte("value")); err != nil {
		t.Fatal(err)
	}
	var left []string
	if err := filepath.WalkDir(r.dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && filepath.Base(path) == "s.api-key" {
			left = append(left, filepath.Join(filepath.Dir(path), ".123.tmp"))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if len(left) != 1 || os.WriteFile(left[0], []byte("cut short"), 0o600) != nil {
		t.Fatalf("files of the secret: %q", left)
	}
	r.start()
	if _, err := os.Stat(left[0]); !os.IsNotExist(err) {
		t.Errorf("the temporary file is there: %v", err)
	}
	if names, err := r.b.Secrets("openfaas-fn"); err != nil || !slices.Equal(names, []string{"api-key"}) {
		t.Errorf("secrets %q, %v", names, err)
	}
}

func TestSecretsAreKeptSealedAndReleasedToSandboxes(t *testing.T) {
	r := newRig(t)
	value := []byte("a value that no file has in clear")
	for name, v := range map[string][]byte{"api-key": []byte("old"), "Other_1.pem": []byte("other")} {
		if err := r.b.PutSecret("openfaas-fn", name, v); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.b.PutSecret("openfaas-fn", "api-key", value); err != nil {
		t.Fatal(err)
	}
	r.start() // nothing but the disk survives
	if err := filepath.WalkDir(r.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, value) {
			t.Errorf("the value is in %s", path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	names, err := r.b.Secrets("openfaas-fn")
	if err != nil || !slices.Equal(names, []string{"Other_1.pem", "api-key"}) {
		t.Errorf("%q, %v", names, err)
	}
	s := r.sandbox(sealed.Digest{7})
	reply, err := r.askSecrets("n1", "n1", s, "api-key", "Other_1.pem")
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.openSecrets(r, reply.Sealed)
	if err != nil || !bytes.Equal(got["api-key"], value) || string(got["Other_1.pem"]) != "other" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := r.sandbox(sealed.Digest{7}).openSecrets(r, reply.Sealed); err == nil {
		t.Error("another sandbox opened them")
	}
	// One sandbox serves one function.
	s.fn = "other.openfaas-fn"
	_, err = r.askSecrets("n1", "n1", s, "api-key")
	wantCode(t, err, api.CodeKeyRefused)
	// Secrets stay in their namespace, and go to nobody without evidence.
	elsewhere := r.sandbox(sealed.Digest{8})
	elsewhere.fn = "f.elsewhere"
	_, err = r.askSecrets("n1", "n1", elsewhere, "api-key")
	wantCode(t, err, api.CodeNotFound)
	_, err = r.askSecrets("n1", "n2", r.sandbox(sealed.Digest{9}), "api-key")
	wantCode(t, err, api.CodeKeyRefused)
	_, err = r.askSecrets("liar", "liar", r.sandbox(sealed.Digest{9}), "api-key")
	wantCode(t, err, api.CodeKeyRefused)
	if err := r.b.DeleteSecret("openfaas-fn", "api-key"); err != nil {
		t.Fatal(err)
	}
	wantCode(t, r.b.DeleteSecret("openfaas-fn", "api-key"), api.CodeNotFound)
	_, err = r.askSecrets("n1", "n1", r.sandbox(sealed.Digest{9}), "api-key")
	wantCode(t, err, api.CodeNotFound)
}

func TestSecretsNamesReachNoOtherFile(t *testing.T) {
	r := newRig(t)
	for _, name := range []string{"", ".", "..", "../x", "a/b", "-a", "a\x00b"} {
		wantCode(t, r.b.PutSecret("openfaas-fn", name, []byte("v")), api.CodeInvalid)
		wantCode(t, r.b.DeleteSecret("openfaas-fn", name), api.CodeInvalid)
	}
	for _, ns := range []string{"", "..", "a/b", "A", "a.b"} {
		wantCode(t, r.b.PutSecret(ns, "x", []byte("v")), api.CodeInvalid)
		_, err := r.b.Secrets(ns)
		wantCode(t, err, api.CodeInvalid)
	}
	wantCode(t, r.b.PutSecret("openfaas-fn", "x", nil), api.CodeInvalid)
	wantCode(t, r.b.PutSecret("openfaas-fn", "x", make([]byte, api.MaxSecrets+1)), api.CodeInvalid)
	// One file cannot take the place of another.
	if err := r.b.PutSecret("openfaas-fn", "a", []byte("of a")); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(r.dir, "vault", "secrets", "openfaas-fn")
	if err := os.Rename(filepath.Join(dir, "s.a"), filepath.Join(dir, "s.b")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.askSecrets("n1", "n1", r.sandbox(sealed.Digest{1}), "b"); err == nil {
		t.Error("a secret was released under another name")
	}
}
