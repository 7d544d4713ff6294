package sbom

import (
	"archive/tar"
	"bytes"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"github.com/faasd-sec/faasd-sec/api"
)

const (
	maxText    = 32 << 20  // bytes of a list of packages
	maxProgram = 512 << 20 // bytes of a program that is looked into
)

// Scanner collects the components of files. Its zero value is ready.
type Scanner struct {
	found map[string]cdx.Component // by purl
}

// Image scans all files of an image as a container would see them.
func (s *Scanner) Image(img v1.Image) (retErr error) {
	body := mutate.Extract(img)
	defer func() { retErr = errors.Join(retErr, body.Close()) }()
	in := tar.NewReader(body)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("sbom: read the image: %w", err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if err := s.File(path.Clean("/"+h.Name), h.Size, in); err != nil {
			return err
		}
	}
}

// Dir scans the files of a directory; links are not followed.
func (s *Scanner) Dir(dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return &api.Error{Code: api.CodeInvalid, Field: "sealed.bundle", Err: err, Message: "cannot open the directory " + dir, Remedy: "check the path"}
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(p string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		f, err := root.Open(p)
		if err != nil {
			return fmt.Errorf("sbom: %w", err)
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return fmt.Errorf("sbom: %w", err)
		}
		return s.File("/"+p, info.Size(), f)
	})
}

// File looks into one file, whose name is absolute. It may leave the rest of r
// unread. A list of packages that does not parse is an error that names the file.
func (s *Scanner) File(name string, size int64, r io.Reader) error {
	var parse func([]byte) error
	base := path.Base(name)
	switch {
	case name == "/var/lib/dpkg/status", path.Dir(name) == "/var/lib/dpkg/status.d" && !strings.HasSuffix(base, ".md5sums"):
		parse = s.dpkg
	case base == "package-lock.json" && !strings.Contains(name, "/node_modules/"):
		parse = s.npm
	case base == "METADATA" && strings.HasSuffix(path.Dir(name), ".dist-info"):
		parse = s.distInfo
	case strings.HasPrefix(base, "requirements") && strings.HasSuffix(base, ".txt"):
		parse = s.requirements
	default:
		return s.program(name, size, r)
	}
	if size > maxText {
		return api.Errorf(api.CodeTooLarge, "sbom: %s has %d bytes", name, size)
	}
	b, err := io.ReadAll(io.LimitReader(r, maxText))
	if err != nil {
		return fmt.Errorf("sbom: read %s: %w", name, err)
	}
	if err := parse(b); err != nil {
		return &api.Error{Code: api.CodeInvalid, Field: name, Err: err, Message: "a list of packages does not parse", Remedy: "repair it, or leave it out of the image"}
	}
	return nil
}

// program reads the build information of Go programs.
func (s *Scanner) program(name string, size int64, r io.Reader) error {
	var magic [4]byte
	if _, err := io.ReadFull(r, magic[:]); err != nil || string(magic[:]) != "\x7fELF" || size > maxProgram {
		return nil
	}
	rest, err := io.ReadAll(io.LimitReader(r, maxProgram))
	if err != nil {
		return fmt.Errorf("sbom: read %s: %w", name, err)
	}
	info, err := buildinfo.Read(bytes.NewReader(append(magic[:], rest...)))
	if err != nil {
		return nil // a program of another language
	}
	s.goProgram(info)
	return nil
}

// add notes a component once.
func (s *Scanner) add(c cdx.Component) {
	if s.found == nil {
		s.found = make(map[string]cdx.Component)
	}
	c.BOMRef = c.PackageURL
	if old, ok := s.found[c.PackageURL]; ok && old.Hashes != nil {
		return
	}
	s.found[c.PackageURL] = c
}
