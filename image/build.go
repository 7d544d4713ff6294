package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/faasd-sec/faasd-sec/api"
)

// FunctionBinary is where Build.Go puts the compiled program.
const FunctionBinary = "/function-bin"

// DefaultUser runs functions of images that are built from nothing or from
// packages and name no user.
const DefaultUser = "10001"

// Build describes an image, as function.yml's build section does.
type Build struct {
	// From is the base: "scratch", "debian:PACKAGE,PACKAGE", "oci:DIRECTORY",
	// "archive:FILE" (an OCI layout or docker save in a tar) or an image
	// reference.
	From       string
	Copy       []Copy
	Go         string // directory of a main package, relative to Builder.Dir; empty for none
	Entrypoint []string
	Cmd        []string
	Env        map[string]string // put over the base's
	WorkDir    string            // absolute; empty keeps the base's
	User       string            // empty keeps the base's, or DefaultUser where the base is ours
	Labels     map[string]string // put over the base's
}

// Copy puts a file, or what is in a directory, into the image, owned by root.
// A directory's .git is left out. Links are kept if they stay inside of Src.
type Copy struct {
	Src  string // relative to Builder.Dir
	Dst  string // absolute; a file goes into it where it ends in '/'
	Mode uint32 // of files; 0 gives 0755 to what its owner may execute, else 0644
}

// Builder builds images.
type Builder struct {
	Dir        string     // build directory; nothing is read outside of it but the base
	Arch       string     // GOARCH of the image
	Go         string     // the go command
	BaseScript string     // scripts/base-image.sh, for bases of Debian packages
	Pull       Puller     // gets bases by reference; nil refuses them
	Progress   func(Step) // told what is being done; may be nil
}

// Step is one thing that a build does.
type Step struct {
	Name   string // "base", "go", "copy", "pack"
	Detail string // for a person
}

// Puller gets an image for a platform.
type Puller interface {
	Pull(ctx context.Context, ref, arch string) (v1.Image, error)
}

// DefaultBuilder builds in dir for this machine's architecture.
func DefaultBuilder(dir string) *Builder {
	return &Builder{Dir: dir, Arch: runtime.GOARCH, Go: "go", BaseScript: "scripts/base-image.sh"}
}

// Build makes the image. Errors in the description are *api.Error with
// CodeInvalid whose field is "build.…". The image reads temporary files until
// it is closed.
func (b *Builder) Build(ctx context.Context, d Build) (_ *Image, retErr error) {
	if err := d.check(); err != nil {
		return nil, err
	}
	work, err := os.MkdirTemp("", "faasd-sec-build-")
	if err != nil {
		return nil, fmt.Errorf("build: %w", err)
	}
	defer func() {
		if retErr != nil {
			os.RemoveAll(work)
		}
	}()
	root, err := os.OpenRoot(b.Dir)
	if err != nil {
		return nil, &api.Error{Code: api.CodeInvalid, Field: "build", Message: "the build directory cannot be opened", Err: err,
			Remedy: "check the handler's path"}
	}
	defer root.Close()

	b.step("base", d.From)
	base, err := b.base(ctx, d, work)
	if err != nil {
		return nil, err
	}
	defer func() {
		if retErr != nil && base.close != nil {
			base.close()
		}
	}()
	layer := newLayer(filepath.Join(work, "files.tar.gz"))
	defer layer.abort()
	if d.Go != "" {
		b.step("go", d.Go)
		bin := filepath.Join(work, "function-bin")
		if err := b.compile(ctx, root, d.Go, bin); err != nil {
			return nil, err
		}
		if err := layer.addFile(bin, FunctionBinary, 0o755); err != nil {
			return nil, err
		}
	}
	for i, c := range d.Copy {
		b.step("copy", c.Src)
		if err := layer.addCopy(root, c, fmt.Sprintf("build.copy[%d]", i)); err != nil {
			return nil, err
		}
	}
	b.step("pack", "")
	img := base.image
	if !layer.empty() {
		l, err := layer.finish()
		if err != nil {
			return nil, err
		}
		if img, err = mutate.Append(img, mutate.Addendum{Layer: l, MediaType: types.OCILayer,
			History: v1.History{CreatedBy: "faasd-sec build", Created: v1.Time{Time: epoch}}}); err != nil {
			return nil, fmt.Errorf("build: add layer: %w", err)
		}
	}
	if img, err = d.configure(img, b.Arch, base.ours); err != nil {
		return nil, err
	}
	return &Image{Image: img, close: func() error {
		err := os.RemoveAll(work)
		if base.close != nil {
			err = errors.Join(err, base.close())
		}
		return err
	}}, nil
}

func (b *Builder) step(name, detail string) {
	if b.Progress != nil {
		b.Progress(Step{Name: name, Detail: detail})
	}
}

// epoch is the time of everything in an image.
var epoch = time.Unix(0, 0).UTC()

// configure sets what a container takes from the image.
func (d Build) configure(img v1.Image, arch string, ours bool) (v1.Image, error) {
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("build: read the base's configuration: %w", err)
	}
	cf = cf.DeepCopy()
	cf.Created = v1.Time{Time: epoch}
	if ours {
		cf.OS, cf.Architecture = "linux", arch
		cf.Config.User = DefaultUser
		cf.Config.WorkingDir = "/"
	}
	c := &cf.Config
	switch {
	case len(d.Entrypoint) > 0:
		// As in a Dockerfile: a new entrypoint drops the base's arguments.
		c.Entrypoint, c.Cmd = d.Entrypoint, nil
	case d.Go != "" && len(d.Cmd) == 0:
		c.Entrypoint, c.Cmd = []string{FunctionBinary}, nil
	}
	if len(d.Cmd) > 0 {
		c.Cmd = d.Cmd
	}
	c.Env = mergeEnv(c.Env, d.Env)
	if d.WorkDir != "" {
		c.WorkingDir = d.WorkDir
	}
	if d.User != "" {
		c.User = d.User
	}
	for k, v := range d.Labels {
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		c.Labels[k] = v
	}
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		return nil, fmt.Errorf("build: write the configuration: %w", err)
	}
	// A base from Docker Hub has Docker's types; one image has one kind.
	return mutate.ConfigMediaType(mutate.MediaType(img, types.OCIManifestSchema1), types.OCIConfigJSON), nil
}

// mergeEnv puts set over env, by name. The order is the base's, then by name.
func mergeEnv(env []string, set map[string]string) []string {
	var out []string
	for _, kv := range env {
		name, _, _ := strings.Cut(kv, "=")
		if _, replaced := set[name]; !replaced {
			out = append(out, kv)
		}
	}
	names := make([]string, 0, len(set))
	for name := range set {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		out = append(out, name+"="+set[name])
	}
	return out
}
