package main

import (
	"context"
	"errors"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/image"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/stack"
)

// source is an image that the cluster can pull, and what it runs by itself.
type source struct {
	ref, digest string
	entry       []string // nil where that is not known
}

// lookTime bounds a question to another registry.
const lookTime = 30 * time.Second

var pinned = regexp.MustCompile(`^(.+)@(sha256:[0-9a-f]{64})$`)

// image makes sure that the cluster can pull the image, and returns how. A tag of
// another registry is resolved here, over TLS and with the owner's own credentials:
// the digest that the owner signs is nobody else's word.
func (d *deployer) image(ctx context.Context, fn *stack.Function, remote *image.Remote) (s source, err error) {
	m := pinned.FindStringSubmatch(fn.Image)
	switch {
	case m != nil && (fn.Build != nil || d.flags.imageTar != ""):
		return s, api.Invalid(field(fn, "image"), "leave the digest out", "a digest is given for an image that is built here")
	case elsewhere(fn.Image) && (fn.Build != nil || d.flags.imageTar != ""):
		return s, api.Invalid(field(fn, "image"), "name it without a host", "an image that is built here is pushed to the cluster's own registry")
	case elsewhere(fn.Image):
		return d.imageElsewhere(ctx, fn, m)
	case m != nil:
		return source{ref: m[1], digest: m[2]}, nil // it is in the cluster's registry already
	}
	file := d.flags.imageTar
	if file == "" {
		file = builtPath(fn)
		if d.flags.doBuild && fn.Build != nil {
			built, err := d.build(ctx, fn, &d.flags.build, "")
			if err != nil {
				return s, err
			}
			file = built.File
		}
	}
	img, err := image.OpenArchive(file)
	if err != nil {
		return s, d.noImage(fn, file, err)
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	repo, tag := splitRef(fn.Image)
	// The tag is for people; what runs is named by digest.
	if s.digest, err = remote.Push(ctx, repo, tag, img); err != nil {
		return s, err
	}
	s.ref = repo
	if c, err := img.ConfigFile(); err == nil {
		s.entry = entryOf(c)
	}
	return s, d.provenance(ctx, remote, repo, s.digest, img)
}

// imageElsewhere finds an image in another registry: by a tag, or by the digest
// that pin matched.
func (d *deployer) imageElsewhere(ctx context.Context, fn *stack.Function, pin []string) (source, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	r := image.Resolver{Keychain: authn.DefaultKeychain}
	if pin == nil {
		ref, digest, err := r.Resolve(ctx, fn.Image)
		if err != nil {
			return source{}, &api.Error{Code: api.CodeOf(err), Field: field(fn, "image"), Err: err, Message: "cannot find out what " + fn.Image + " is now",
				Remedy: "log in with docker login, name the digest (" + fn.Image + "@sha256:…), or deploy it from a file with --image-tar under a name without a host"}
		}
		pin = []string{"", ref, digest}
	}
	s := source{ref: pin[1], digest: pin[2]}
	if len(fn.Process) == 0 {
		return s, nil
	}
	c, err := r.Config(ctx, s.ref+"@"+s.digest)
	if err != nil {
		d.notef("warning: %s: fprocess replaces the image's own entrypoint; whether that is a watchdog was not to be seen: %s", one(fn.Name.Short()), one(err.Error()))
		return s, nil
	}
	s.entry = entryOf(c)
	return s, nil
}

func entryOf(c *v1.ConfigFile) []string {
	return append(slices.Clone(c.Config.Entrypoint), c.Config.Cmd...)
}

// behindWatchdog has an image whose own program is a watchdog of OpenFaaS's run
// that, with fprocess in its environment, as OpenFaaS does. Elsewhere fprocess is
// what runs.
func behindWatchdog(dep *client.Deployment, entry []string) {
	if dep.Mode != string(sealed.ModeHTTP) || dep.Upstream == "unix" || len(dep.Process) == 0 || !isWatchdog(entry) || isWatchdog(dep.Process) {
		return
	}
	dep.Bundle.Env["fprocess"] = strings.Join(dep.Process, " ")
	dep.Process = nil
}

// isWatchdog goes by the names under which OpenFaaS's images have them.
func isWatchdog(argv []string) bool {
	return len(argv) > 0 && slices.Contains([]string{"fwatchdog", "of-watchdog", "classic-watchdog", "watchdog"}, path.Base(argv[0]))
}
