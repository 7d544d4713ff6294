package image

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// The vector of docs/images.md.
const (
	vectorStatement = "faasd-sec image v1\nrepository team-a/hello\ndigest sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\n" +
		"signer 8f2ebf3a65ab2ff11db6d87b87ebecb4f8682e8c6262673f8eba85fa4f2a1503\ntime 1790000000\n"
	vectorKey       = "046b6171a14025774a0e8253dededc8026e87908d1bb86979957c95d1bc26bb3db5045b958b0fdcab0b2e9bd9e31090cba6f347c3b4ddea5ad81c4014844f9295b"
	vectorE         = "ee772c1edb4e552f964621de9ad83df63c2007d45f20593948630ed729431caa"
	vectorSignature = "MEUCIQDULqWOz5d2iG5itG+Ku2X7VoNb6wx/qZ7QcUAXml8ZTAIgLY8VMZ+mbHH0WK33ix/yzg+9FqiobAUjnCD5eOEZ80A="
)

func TestSignatureVector(t *testing.T) {
	pub, err := sealed.ParsePublicKeyText(vectorKey)
	if err != nil {
		t.Fatal(err)
	}
	s := Statement{Repository: "team-a/hello", Digest: "sha256:" + strings.Repeat("0123456789abcdef", 4), Signer: pub.Fingerprint(), Time: time.Unix(1790000000, 0).UTC()}
	if string(s.Bytes()) != vectorStatement {
		t.Errorf("%q", s.Bytes())
	}
	if e := fmt.Sprintf("%x", sealed.SignatureDigest(pub, LabelSignature, s.Bytes())); e != vectorE {
		t.Errorf("e is %s", e)
	}
	content := fmt.Sprintf(`{"statement":%q,"public_key":%q,"signature":%q}`, vectorStatement, vectorKey, vectorSignature)
	if got, err := VerifySignature([]byte(content)); err != nil || got != s {
		t.Errorf("%+v, %v", got, err)
	}
	doc, err := os.ReadFile("../docs/images.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{vectorKey, vectorE, vectorSignature, strings.TrimSpace(vectorStatement)} {
		if !strings.Contains(strings.ReplaceAll(string(doc), "\n    ", "\n"), want) {
			t.Errorf("docs/images.md lacks %s", want)
		}
	}
}

func TestSignatureThatWasChangedIsRefused(t *testing.T) {
	other := signer(t)
	for name, edit := range map[string]func(*signature){
		"repository": func(s *signature) { s.Statement = strings.Replace(s.Statement, "team-a", "team-b", 1) },
		"digest":     func(s *signature) { s.Statement = strings.Replace(s.Statement, "0123", "1123", 1) },
		"time":       func(s *signature) { s.Statement = strings.Replace(s.Statement, "1790000000", "1790000001", 1) },
		"version":    func(s *signature) { s.Statement = strings.Replace(s.Statement, "v1", "v2", 1) },
		"extra line": func(s *signature) { s.Statement += "more 1\n" },
		"spaces":     func(s *signature) { s.Statement = strings.Replace(s.Statement, "time ", "time  ", 1) },
		"key":        func(s *signature) { s.PublicKey = other.PublicKey().String() },
		"signature":  func(s *signature) { s.Signature[10] ^= 1 },
		"none":       func(s *signature) { s.Signature = nil },
	} {
		var s signature
		content := fmt.Sprintf(`{"statement":%q,"public_key":%q,"signature":%q}`, vectorStatement, vectorKey, vectorSignature)
		if err := json.Unmarshal([]byte(content), &s); err != nil {
			t.Fatal(err)
		}
		edit(&s)
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := VerifySignature(b); api.CodeOf(err) != api.CodeForbidden {
			t.Errorf("%s changed: %v", name, err)
		}
	}
	if _, err := VerifySignature([]byte("no json")); api.CodeOf(err) != api.CodeForbidden {
		t.Error(err)
	}
}

func signer(t *testing.T) *unseal.PrivateKey {
	t.Helper()
	k, err := unseal.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// An image that was pushed, signed and listed passes; everything else does not.
func TestPolicyRefusesWhatNobodyTrustedSigned(t *testing.T) {
	_, srv := serve(t)
	r := testRemote(t, srv)
	dir := t.TempDir()
	tree(t, dir, map[string]string{"f": "1", "g": "2"})
	push := func(repo, file string) (*Image, string) {
		img := mustBuild(t, testBuilder(t, dir), Build{From: "scratch", Copy: []Copy{{Src: file, Dst: "/f"}}})
		d, err := r.Push(t.Context(), repo, "v1", img.Image)
		if err != nil {
			t.Fatal(err)
		}
		return img, d
	}
	owner, other := signer(t), signer(t)
	now := time.Now()
	sign := func(k *unseal.PrivateKey, repo, asRepo, digest string, img *Image, at time.Time) {
		t.Helper()
		b, err := Sign(rand.Reader, k, k.PublicKey(), Statement{Repository: asRepo, Digest: digest, Time: at})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Attach(t.Context(), repo, img.Image, TypeSignature, b); err != nil {
			t.Fatal(err)
		}
	}
	img, good := push("team-a/hello", "f")
	sign(other, "team-a/hello", "team-a/hello", good, img, now) // does no harm
	sign(owner, "team-a/hello", "team-a/hello", good, img, now)
	img, stranger := push("team-a/stranger", "f")
	sign(other, "team-a/stranger", "team-a/stranger", stranger, img, now)
	_, unsigned := push("team-a/unsigned", "f")
	img, renamed := push("team-a/renamed", "f")
	sign(owner, "team-a/renamed", "team-a/hello", renamed, img, now)
	img, swapped := push("team-a/swapped", "g")
	sign(owner, "team-a/swapped", "team-a/swapped", good, img, now)
	img, future := push("team-a/future", "f")
	sign(owner, "team-a/future", "team-a/future", future, img, now.Add(time.Hour))
	img, outside := push("team-b/hello", "f")
	sign(owner, "team-b/hello", "team-b/hello", outside, img, now)

	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	policy := &Policy{Rules: []Rule{{Prefix: "team-a", Signers: []sealed.Fingerprint{owner.PublicKey().Fingerprint()}}, {Prefix: "team-a/none"}}}
	v := NewVerifier(policy, "cluster:443", NewBlobs(srv.URL, &http.Client{Transport: tr}), func() time.Time { return now })
	for ref, want := range map[string]struct {
		digest string
		code   api.Code
	}{
		"cluster:443/team-a/hello":    {good, ""},
		"cluster:443/team-a/stranger": {stranger, api.CodeForbidden},
		"cluster:443/team-a/unsigned": {unsigned, api.CodeForbidden},
		"cluster:443/team-a/renamed":  {renamed, api.CodeForbidden},
		"cluster:443/team-a/swapped":  {swapped, api.CodeForbidden},
		"cluster:443/team-a/future":   {future, api.CodeForbidden},
		"cluster:443/team-b/hello":    {outside, api.CodeForbidden},
		"cluster:443/team-ab/hello":   {good, api.CodeForbidden},
		"cluster:443/team-a/none":     {good, api.CodeForbidden},
		"elsewhere:443/team-a/hello":  {good, api.CodeForbidden},
		"cluster:443/team-a/absent":   {good, api.CodeForbidden},
		"cluster:443/team-a/broken":   {"sha256:x", api.CodeUnavailable},
	} {
		if err := v.Check(t.Context(), ref, want.digest); api.CodeOf(err) != want.code {
			t.Errorf("%s: %v, want %q", ref, err, want.code)
		}
	}
	// What was found signed is remembered for a while, and nothing else is.
	srv.CloseClientConnections()
	srv.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) })
	if err := v.Check(t.Context(), "cluster:443/team-a/hello", good); err != nil {
		t.Error(err)
	}
	if err := v.Check(t.Context(), "cluster:443/team-a/unsigned", unsigned); api.CodeOf(err) != api.CodeUnavailable {
		t.Errorf("a registry that is down: %v", err)
	}
	now = now.Add(time.Hour)
	if err := v.Check(t.Context(), "cluster:443/team-a/hello", good); api.CodeOf(err) != api.CodeUnavailable {
		t.Errorf("an hour later: %v", err)
	}
}

// pushed is an image in a registry.
func pushed(t *testing.T) (srv *httptest.Server, r *Remote, img *Image, digest string) {
	t.Helper()
	_, srv = serve(t)
	r = testRemote(t, srv)
	dir := t.TempDir()
	tree(t, dir, map[string]string{"f": "1"})
	img = mustBuild(t, testBuilder(t, dir), Build{From: "scratch", Copy: []Copy{{Src: "f", Dst: "/f"}}})
	digest, err := r.Push(t.Context(), "hello", "v1", img.Image)
	if err != nil {
		t.Fatal(err)
	}
	return srv, r, img, digest
}

func TestArtifactsAreFoundByTypeAndOnce(t *testing.T) {
	srv, r, img, d := pushed(t)
	for range 2 {
		if _, err := r.Attach(t.Context(), "hello", img.Image, TypeSBOM, []byte(`{"a":1}`)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Attach(t.Context(), "hello", img.Image, TypeSignature, []byte(`{}`)); err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	got, err := NewBlobs(srv.URL, &http.Client{Transport: tr}).Attached(t.Context(), "hello", d, TypeSBOM)
	if err != nil || len(got) != 1 || string(got[0]) != `{"a":1}` {
		t.Errorf("%q, %v", got, err)
	}
}

// Whoever may push may attach, to any image: nodes that look for its signatures
// hold no more than signatures have.
func TestAttachedFloodIsNotRead(t *testing.T) {
	srv, r, img, d := pushed(t)
	for _, size := range []int{maxSignature + 1, 1 << 20, 3 << 20, maxSignature} {
		if _, err := r.Attach(t.Context(), "hello", img.Image, TypeSignature, make([]byte, size)); err != nil {
			t.Fatal(err)
		}
	}
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	got, err := NewBlobs(srv.URL, &http.Client{Transport: tr}).Attached(t.Context(), "hello", d, TypeSignature)
	if err != nil || len(got) != 1 || len(got[0]) != maxSignature {
		t.Errorf("%d artifacts, %v", len(got), err)
	}
}

// A registry that is not ours may send anything under any name.
func TestArtifactThatIsLongerThanItsManifestSaysIsRefused(t *testing.T) {
	about := "sha256:" + strings.Repeat("a", 64)
	endless := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch {
		case strings.Contains(req.URL.Path, "/referrers/"):
			fmt.Fprintf(w, `{"manifests":[{"artifactType":%q,"digest":%q}]}`, TypeSignature, about)
		case strings.Contains(req.URL.Path, "/manifests/"):
			fmt.Fprintf(w, `{"subject":{"digest":%q},"layers":[{"mediaType":%q,"digest":%q,"size":100}]}`, about, TypeSignature, about)
		default:
			defer close(endless)
			for err := error(nil); err == nil; {
				_, err = w.Write(make([]byte, 64<<10))
			}
		}
	}))
	t.Cleanup(srv.Close)
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	got, err := NewBlobs(srv.URL, &http.Client{Transport: tr}).Attached(t.Context(), "hello", about, TypeSignature)
	if api.CodeOf(err) != api.CodeUnavailable {
		t.Errorf("%d artifacts, %v", len(got), err)
	}
	<-endless // whoever sent it was told to stop
}

func TestPolicyFileIsReadStrictly(t *testing.T) {
	fp := strings.Repeat("ab", 32)
	path := filepath.Join(t.TempDir(), "policy.yml")
	load := func(text string) (*Policy, error) {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return LoadPolicy(path)
	}
	p, err := load("rules:\n  - {prefix: team-a/, signers: [" + fp + "]}\n  - {prefix: \"\", signers: []}\n")
	if err != nil || len(p.Rules) != 2 || p.Rules[0].Prefix != "team-a" || p.Rules[0].Signers[0].String() != fp {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err = load(""); err != nil || len(p.Rules) != 0 { // refuses everything
		t.Errorf("%+v, %v", p, err)
	}
	for text, field := range map[string]string{
		"rules: [{signers: []}]":               "rules[0].prefix",
		"rules: [{prefix: 'a/*'}]":             "rules[0].prefix",
		"rules: [{prefix: a}, {prefix: a/}]":   "rules[1].prefix",
		"rules: [{prefix: a, signers: [me]}]":  "rules[0].signers[0]",
		"rule: []":                             "rules",
		"rules: [{prefix: a, keys: []}]":       "rules",
		"rules: []\n---\nrules: [{prefix: a}]": "rules",
	} {
		_, err := load(text)
		var e *api.Error
		if !errors.As(err, &e) || !strings.HasSuffix(e.Field, ": "+field) || e.Remedy == "" {
			t.Errorf("%q: %v, want %s", text, err, field)
		}
	}
}
