package sbom

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/textproto"
	"net/url"
	"regexp"
	"runtime/debug"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// purl writes a package URL (https://github.com/package-url/purl-spec); name may
// have '/'.
func purl(kind, name, version, qualifiers string) string {
	parts := strings.Split(name, "/")
	for i := range parts {
		parts[i] = strings.ReplaceAll(url.QueryEscape(parts[i]), "+", "%20")
	}
	s := "pkg:" + kind + "/" + strings.Join(parts, "/")
	if version != "" {
		s += "@" + strings.ReplaceAll(url.QueryEscape(version), "+", "%20")
	}
	if qualifiers != "" {
		s += "?" + qualifiers
	}
	return s
}

func library(kind, name, version, qualifiers string) cdx.Component {
	return cdx.Component{Type: cdx.ComponentTypeLibrary, Name: name, Version: version, PackageURL: purl(kind, name, version, qualifiers)}
}

func (s *Scanner) goProgram(info *debug.BuildInfo) {
	if v := strings.TrimPrefix(info.GoVersion, "go"); v != "" {
		s.add(library("golang", "stdlib", v, ""))
	}
	if m := info.Main; m.Path != "" {
		c := library("golang", m.Path, "", "") // its version is of the day, or none
		c.Type = cdx.ComponentTypeApplication
		s.add(c)
	}
	for _, m := range info.Deps {
		for m.Replace != nil {
			m = m.Replace
		}
		c := library("golang", m.Path, m.Version, "")
		if m.Sum != "" { // a hash of hashes, which CycloneDX has no name for
			c.Properties = &[]cdx.Property{{Name: "faasd-sec:go.sum", Value: m.Sum}}
		}
		s.add(c)
	}
}

// dpkg reads Debian control paragraphs.
func (s *Scanner) dpkg(b []byte) error {
	r := textproto.NewReader(bufio.NewReader(bytes.NewReader(append(bytes.TrimSpace(b), "\n\n"...))))
	for {
		h, err := r.ReadMIMEHeader()
		if len(h) == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		name, version, status := h.Get("Package"), h.Get("Version"), h.Get("Status")
		if name == "" {
			return errors.New("a paragraph has no Package")
		}
		if status == "" || strings.HasSuffix(status, " installed") {
			q := ""
			if a := h.Get("Architecture"); a != "" {
				q = "arch=" + url.QueryEscape(a)
			}
			s.add(library("deb/debian", name, version, q))
		}
		// Paragraphs are apart by one empty line, or more.
		for {
			next, err := r.R.Peek(1)
			if err != nil {
				return nil
			}
			if next[0] != '\n' {
				break
			}
			_, _ = r.R.Discard(1)
		}
	}
}

// npmPackage is an entry of package-lock.json: of "packages" in versions 2 and 3,
// of "dependencies" in version 1.
type npmPackage struct {
	Name      string `json:"name"`
	Version   string `json:"version"`
	Integrity string `json:"integrity"`
	Dev       bool   `json:"dev"`
	Link      bool   `json:"link"`
}

func (s *Scanner) npm(b []byte) error {
	var lock struct {
		Packages     map[string]npmPackage `json:"packages"`
		Dependencies json.RawMessage       `json:"dependencies"`
	}
	if err := json.Unmarshal(b, &lock); err != nil {
		return err
	}
	for at, p := range lock.Packages {
		name := p.Name
		if i := strings.LastIndex(at, "node_modules/"); i >= 0 && name == "" {
			name = at[i+len("node_modules/"):]
		}
		if at != "" && name != "" && !p.Link && !p.Dev {
			s.npmAdd(name, p.Version, p.Integrity)
		}
	}
	if lock.Packages != nil || lock.Dependencies == nil {
		return nil
	}
	return s.npmV1(lock.Dependencies)
}

func (s *Scanner) npmV1(raw json.RawMessage) error {
	var deps map[string]struct {
		npmPackage
		Dependencies json.RawMessage `json:"dependencies"`
	}
	if err := json.Unmarshal(raw, &deps); err != nil {
		return err
	}
	for name, p := range deps {
		if !p.Dev {
			s.npmAdd(name, p.Version, p.Integrity)
		}
		if p.Dependencies != nil {
			if err := s.npmV1(p.Dependencies); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Scanner) npmAdd(name, version, integrity string) {
	c := library("npm", name, version, "")
	if sum, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(integrity, "sha512-")); err == nil && len(sum) == 64 {
		c.Hashes = &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA512, Value: hex.EncodeToString(sum)}}
	}
	s.add(c)
}

func (s *Scanner) distInfo(b []byte) error {
	h, err := textproto.NewReader(bufio.NewReader(bytes.NewReader(append(b, "\n\n"...)))).ReadMIMEHeader()
	if name := h.Get("Name"); name != "" {
		s.pypi(name, h.Get("Version"))
		return nil
	}
	return errors.Join(errors.New("it has no Name"), err)
}

var (
	pinnedRE = regexp.MustCompile(`^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?\s*===?\s*([A-Za-z0-9][A-Za-z0-9.!+_-]*)`)
	dashesRE = regexp.MustCompile(`[-_.]+`)
)

// requirements takes pinned lines; others name no version that could be told.
func (s *Scanner) requirements(b []byte) error {
	for line := range strings.Lines(string(b)) {
		if m := pinnedRE.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			s.pypi(m[1], m[2])
		}
	}
	return nil
}

// pypi adds a package under its normal name (PEP 503).
func (s *Scanner) pypi(name, version string) {
	s.add(library("pypi", strings.ToLower(dashesRE.ReplaceAllString(name, "-")), version, ""))
}
