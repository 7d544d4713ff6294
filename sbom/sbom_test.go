package sbom_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"go.uber.org/goleak"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/image"
	"github.com/faasd-sec/faasd-sec/sbom"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func purls(t *testing.T, b []byte) []string {
	t.Helper()
	var bom cdx.BOM
	if err := cdx.NewBOMDecoder(bytes.NewReader(b), cdx.BOMFileFormatJSON).Decode(&bom); err != nil {
		t.Fatal(err)
	}
	if bom.BOMFormat != "CycloneDX" || bom.SpecVersion != cdx.SpecVersion1_6 || !strings.HasPrefix(bom.SerialNumber, "urn:uuid:") || bom.Metadata.Timestamp != "" {
		t.Errorf("%s %s %s", bom.BOMFormat, bom.SpecVersion, bom.SerialNumber)
	}
	var out []string
	for _, c := range *bom.Components {
		if c.BOMRef == "" || c.Name == "" {
			t.Errorf("%+v", c)
		}
		out = append(out, c.PackageURL)
	}
	return out
}

var lists = map[string]string{
	"package-lock.json": `{"lockfileVersion":3,"packages":{"":{"name":"f"},"node_modules/@scope/a":{"version":"1.0.0","integrity":"sha512-` +
		strings.Repeat("A", 86) + `=="},"node_modules/@scope/a/node_modules/b":{"version":"2.0.0-rc+1"},"node_modules/d":{"version":"3.0.0","dev":true},"node_modules/l":{"link":true}}}`,
	"v1/package-lock.json":                   `{"lockfileVersion":1,"dependencies":{"c":{"version":"1.2.3","dependencies":{"e":{"version":"4.5.6"}}}}}`,
	"node_modules/x/package-lock.json":       `not looked at`,
	"lib/Flask_Thing-2.1.dist-info/METADATA": "Metadata-Version: 2.1\nName: Flask_Thing\nVersion: 2.1\n\nA description: of it\n",
	"requirements-prod.txt":                  "# comment\nrequests[socks] == 2.32.0 ; python_version > '3'\nloose>=1\n-r other.txt\n",
}

var listed = []string{"pkg:npm/%40scope/a@1.0.0", "pkg:npm/b@2.0.0-rc%2B1", "pkg:npm/c@1.2.3", "pkg:npm/e@4.5.6", "pkg:pypi/flask-thing@2.1", "pkg:pypi/requests@2.32.0"}

func TestListsOfPackagesAreFound(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, lists)
	var s sbom.Scanner
	if err := s.Dir(dir); err != nil {
		t.Fatal(err)
	}
	b, err := s.Encode(sbom.Subject{Name: "f", Digest: "sha256:00"})
	if err != nil {
		t.Fatal(err)
	}
	if got := purls(t, b); !slices.Equal(got, listed) {
		t.Errorf("%q", got)
	}
}

func TestListThatDoesNotParseNamesTheFile(t *testing.T) {
	for name, text := range map[string]string{"package-lock.json": "{", "a-1.dist-info/METADATA": "no header", "b-1.dist-info/METADATA": "Version: 1\n\n", "var/lib/dpkg/status": "Version: 1\n\n"} {
		dir := t.TempDir()
		write(t, dir, map[string]string{name: text})
		var s sbom.Scanner
		var e *api.Error
		if err := s.Dir(dir); !errors.As(err, &e) || e.Field != "/"+name {
			t.Errorf("%s: %v", name, err)
		} else if strings.Contains(e.Err.Error(), "%!") {
			t.Errorf("%s: %v", name, e.Err)
		}
	}
}

// Of an image on packages of the distribution, with a Go program and lists, all is
// found, twice with the same bytes.
func TestImageIsListedWholeAndReproducibly(t *testing.T) {
	if _, err := exec.LookPath("dpkg-deb"); err != nil && os.Getenv("REQUIRE_ALL") != "1" {
		t.Skip("needs dpkg-deb")
	}
	if out, err := exec.Command("go", "list", "-m", "golang.org/x/sys").Output(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	var first []byte
	for range 2 {
		dir := t.TempDir()
		write(t, dir, lists)
		// A program with a dependency: one of this module's own.
		cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", filepath.Join(dir, "program"), "github.com/faasd-sec/faasd-sec/cmd/agent")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		b := image.DefaultBuilder(dir)
		b.BaseScript = "../scripts/base-image.sh"
		img, err := b.Build(t.Context(), image.Build{From: "debian:busybox-static", Copy: []image.Copy{{Src: ".", Dst: "/srv"}}})
		if err != nil {
			t.Fatal(err)
		}
		defer img.Close()
		var s sbom.Scanner
		if err := s.Image(img.Image); err != nil {
			t.Fatal(err)
		}
		d, err := img.DigestString()
		if err != nil {
			t.Fatal(err)
		}
		text, err := s.Encode(sbom.Subject{Name: "f", Digest: d})
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = text
		} else if !bytes.Equal(first, text) {
			t.Error("the same image gives other bytes")
		}
	}
	got := strings.Join(purls(t, first), "\n")
	for _, want := range append(slices.Clone(listed), "pkg:deb/debian/busybox-static@", "pkg:golang/stdlib@1.", "pkg:golang/github.com/emmansun/gmsm@v0.44.0", "pkg:golang/github.com/faasd-sec/faasd-sec") {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in\n%s", want, got)
		}
	}
}
