package image

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/faasd-sec/faasd-sec/api"
)

// base is what an image is built upon. One that is ours has no configuration.
type base struct {
	image v1.Image
	ours  bool
	close func() error // nil for none
}

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func (b *Builder) base(ctx context.Context, d Build, work string) (base, error) {
	if packages, ok := strings.CutPrefix(d.From, "debian:"); ok {
		return b.debian(ctx, packages, work)
	}
	if p, ok := strings.CutPrefix(d.From, "oci:"); ok {
		return b.layout(p)
	}
	if p, ok := strings.CutPrefix(d.From, "archive:"); ok {
		img, err := OpenArchive(b.beside(p))
		if err != nil {
			return base{}, &api.Error{Code: api.CodeInvalid, Field: "build.from", Message: "the archive cannot be used", Err: err,
				Remedy: "name an OCI layout or docker save in a tar"}
		}
		return base{image: img.Image, close: img.Close}, nil
	}
	if d.From == "scratch" {
		return b.scratch(work)
	}
	if b.Pull == nil {
		return base{}, api.Invalid("build.from", `use "scratch", "debian:…", "oci:…" or "archive:…"`, "no registry is configured for "+d.From)
	}
	img, err := b.Pull.Pull(ctx, d.From, b.Arch)
	if err != nil {
		return base{}, &api.Error{Code: api.CodeOf(err), Field: "build.from", Message: "the base could not be pulled", Err: err,
			Remedy: "check the reference, and that the registry can be reached"}
	}
	return base{image: img}, nil
}

func (b *Builder) beside(p string) string {
	if filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(b.Dir, p)
}

// scratch is a file system that has just what programs expect of one.
func (b *Builder) scratch(work string) (base, error) {
	l := newLayer(filepath.Join(work, "scratch.tar.gz"))
	defer l.abort()
	for _, dir := range []struct {
		name string
		mode int64
	}{{"/dev", 0o755}, {"/etc", 0o755}, {"/proc", 0o755}, {"/run", 0o755}, {"/sys", 0o755}, {"/tmp", 0o1777}, {"/var", 0o755}} {
		if err := l.addDir(dir.name, dir.mode); err != nil {
			return base{}, fmt.Errorf("build: %w", err)
		}
	}
	for _, f := range []struct{ name, text string }{
		{"/etc/group", "root:x:0:\napp:x:10001:\n"},
		{"/etc/passwd", "root:x:0:0:root:/root:/sbin/nologin\napp:x:10001:10001:app:/tmp:/sbin/nologin\n"},
	} {
		if err := l.addBytes(f.name, []byte(f.text), 0o644); err != nil {
			return base{}, fmt.Errorf("build: %w", err)
		}
	}
	return ourBase(l, "scratch")
}

var packageRE = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)

// debian makes a base of packages and what they depend on, with the script.
func (b *Builder) debian(ctx context.Context, list, work string) (base, error) {
	packages := strings.Split(list, ",")
	for i, p := range packages {
		packages[i] = strings.TrimSpace(p)
		// Also keeps options and paths out of the script's arguments.
		if !packageRE.MatchString(packages[i]) {
			return base{}, api.Invalid("build.from", `write "debian:" and package names separated by ','`, fmt.Sprintf("%q is not a package name", p))
		}
	}
	slices.Sort(packages)
	packages = slices.Compact(packages)
	script, err := filepath.Abs(b.BaseScript)
	if err == nil {
		_, err = os.Stat(script)
	}
	if err != nil {
		return base{}, &api.Error{Code: api.CodeInvalid, Field: "build.from", Err: err,
			Message: "bases of Debian packages need scripts/base-image.sh", Remedy: "run in the source tree, or say where the script is"}
	}
	out := filepath.Join(work, "base.tar")
	cmd := exec.CommandContext(ctx, script, append([]string{"--arch", b.Arch, out}, packages...)...)
	cmd.Dir = work
	if err := run(cmd); err != nil {
		return base{}, &api.Error{Code: api.CodeInvalid, Field: "build.from",
			Message: "the base of Debian packages was not made: " + err.Error(), Remedy: "check the package names, and that apt works on this machine"}
	}
	l := newLayer(filepath.Join(work, "base.tar.gz"))
	defer l.abort()
	if err := l.addTar(out); err != nil {
		return base{}, err
	}
	if err := os.Remove(out); err != nil {
		return base{}, fmt.Errorf("build: %w", err)
	}
	return ourBase(l, "debian packages "+strings.Join(packages, " "))
}

// ourBase is an image of one layer.
func ourBase(l *layer, what string) (base, error) {
	done, err := l.finish()
	if err != nil {
		return base{}, err
	}
	img, err := mutate.Append(empty.Image, mutate.Addendum{Layer: done, MediaType: types.OCILayer,
		History: v1.History{CreatedBy: "faasd-sec build: " + what, Created: v1.Time{Time: epoch}}})
	if err != nil {
		return base{}, fmt.Errorf("build: add base layer: %w", err)
	}
	if img, err = mutate.Config(img, v1.Config{Env: []string{defaultPath}}); err != nil {
		return base{}, fmt.Errorf("build: configure base: %w", err)
	}
	return base{image: img, ours: true}, nil
}

// layout opens the image of the right architecture in an OCI layout directory.
func (b *Builder) layout(p string) (base, error) {
	invalid := func(err error, message string) (base, error) {
		return base{}, &api.Error{Code: api.CodeInvalid, Field: "build.from", Message: message, Err: err,
			Remedy: "name a directory with an OCI layout that holds one image per architecture"}
	}
	idx, err := layout.ImageIndexFromPath(b.beside(p))
	if err != nil {
		return invalid(err, "the OCI layout cannot be read")
	}
	img, err := pick(idx, b.Arch)
	if err != nil {
		return invalid(err, "the OCI layout has no fitting image")
	}
	return base{image: img}, nil
}

// pick finds the one image for linux/arch in an index, of any depth.
func pick(idx v1.ImageIndex, arch string) (v1.Image, error) {
	m, err := idx.IndexManifest()
	if err != nil {
		return nil, err
	}
	for _, d := range m.Manifests {
		switch {
		case d.MediaType.IsIndex():
			sub, err := idx.ImageIndex(d.Digest)
			if err != nil {
				return nil, err
			}
			if img, err := pick(sub, arch); err == nil {
				return img, nil
			}
		case d.MediaType.IsImage() && (d.Platform == nil || d.Platform.OS == "linux" && d.Platform.Architecture == arch):
			return idx.Image(d.Digest)
		}
	}
	return nil, fmt.Errorf("none for linux/%s", arch)
}
