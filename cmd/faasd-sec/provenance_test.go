package main

import (
	"path/filepath"
	"strings"
	"testing"

	cdx "github.com/CycloneDX/cyclonedx-go"

	"github.com/faasd-sec/faasd-sec/client/clienttest"
	"github.com/faasd-sec/faasd-sec/image"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// What was deployed is signed by its owner, once, and says what is in it. What is in
// the sealed bundle is told to the owner alone.
func TestDeployedImageIsSignedAndListed(t *testing.T) {
	c := clienttest.New(t)
	s := newShell(t, c.URL)
	dir := t.TempDir()
	yml := s.file(filepath.Join(dir, "function.yml"), helloYML)
	s.file(filepath.Join(dir, "main.sh"), "#!/bin/sh\n")
	s.file(filepath.Join(dir, "model", "requirements.txt"), "secret-sauce==1.0\n")
	s.file(filepath.Join(s.config(), "secrets", "token"), "x")
	s.must("", "key", "new")
	for range 2 {
		s.must("", "deploy", "-f", yml, "--build", "--trust-first-use")
	}
	store, err := unseal.OpenKeystore(filepath.Join(s.config(), "identities"))
	if err != nil {
		t.Fatal(err)
	}
	id, err := store.Load("default", []byte("correct horse"))
	if err != nil {
		t.Fatal(err)
	}
	digest := c.Descriptor.Config.Image
	registry, err := registryReader(c.URL, id)
	if err != nil {
		t.Fatal(err)
	}
	found, err := registry.Attached(t.Context(), "hello", digest, image.TypeSignature)
	if err != nil || len(found) != 1 {
		t.Fatalf("%d signatures, %v", len(found), err)
	}
	if st, err := image.VerifySignature(found[0]); err != nil || st.Repository != "hello" || st.Digest != digest || st.Signer != id.SigningKey().Fingerprint() {
		t.Errorf("%+v, %v", st, err)
	}
	out := s.must("", "sbom", "hello")
	var bom cdx.BOM
	if err := cdx.NewBOMDecoder(strings.NewReader(out), cdx.BOMFileFormatJSON).Decode(&bom); err != nil || bom.Metadata.Component.Version != digest {
		t.Errorf("%v\n%s", err, out)
	}
	if strings.Contains(out, "secret-sauce") {
		t.Error("the registry is told what is in the sealed bundle")
	}
	if out := s.must("", "sbom", "-f", yml, "hello"); !strings.Contains(out, "pkg:pypi/secret-sauce@1.0") {
		t.Errorf("the owner is not told:\n%s", out)
	}
}

func TestDockerfileIsSaidNotToBeRead(t *testing.T) {
	s := newShell(t, "")
	dir := t.TempDir()
	s.file(filepath.Join(dir, "function.yml"), helloYML)
	s.file(filepath.Join(dir, "main.sh"), "#!/bin/sh\n")
	if _, _, errs := s.run("", "build", dir); strings.Contains(errs, "not read") {
		t.Error(errs)
	}
	s.file(filepath.Join(dir, "Dockerfile"), "FROM nowhere\n")
	code, _, errs := s.run("", "build", dir)
	if code != 0 || !strings.Contains(errs, "Dockerfile is not read") {
		t.Errorf("exit %d: %s", code, errs)
	}
}

func TestNewMakesAFunctionOnce(t *testing.T) {
	s := newShell(t, "")
	dir := filepath.Join(t.TempDir(), "greet")
	if out := s.must("", "new", "--lang", "shell", "--dir", dir, "greet"); !strings.Contains(out, "function.yml") || !strings.Contains(out, "sh test.sh") {
		t.Errorf("%q", out)
	}
	if code, _, errs := s.run("", "new", "--lang", "shell", "--dir", dir, "greet"); code == 0 || !strings.Contains(errs, "overwritten") {
		t.Errorf("exit %d: %s", code, errs)
	}
	if code, _, errs := s.run("", "new", "greet"); code != exitInvalid || !strings.Contains(errs, "--lang") {
		t.Errorf("exit %d: %s", code, errs)
	}
}
