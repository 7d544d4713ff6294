package containerd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/runtime"
)

// labelImage marks images that Images may list: pulled by us and unpacked.
const labelImage = "faasd-sec.image"

// imageName is how an image is called in containerd: by its digest alone, so
// that the same image from two registries is one.
func imageName(d string) string { return "faasd-sec/image@" + d }

// flight is one image being made present, for all who ask for it meanwhile.
type flight struct {
	ref    string
	cancel context.CancelFunc
	done   chan struct{} // closed once image and err are set
	image  runtime.Image
	err    error

	// Guarded by Runtime.pulls.
	waiters  int
	fetching bool // has its place among the fetches
}

// Pull implements runtime.Runtime. However many ask for an image, it is
// fetched once, and at most Config.MaxPulls are at a time. The fetch belongs to
// the runtime: who gives up leaves it to the others, and to the next who asks.
func (r *Runtime) Pull(ctx context.Context, ref, dgst string) (runtime.Image, error) {
	d, err := digest.Parse(dgst)
	if err != nil {
		return runtime.Image{}, api.Invalid("digest", `write "sha256:" and 64 hex digits`, fmt.Sprintf("%q: %v", dgst, err))
	}
	full := byDigest(ref, d)
	for {
		if img, ok := r.images.get(d.String()); ok {
			return img.image, nil
		}
		f, err := r.join(full, d)
		if err != nil {
			return runtime.Image{}, err
		}
		select {
		case <-f.done:
			// That another registry fails says nothing about the one asked for here.
			if f.err != nil && f.ref != full {
				continue
			}
			return f.image, f.err
		case <-ctx.Done():
			r.leave(f, d)
			return runtime.Image{}, fmt.Errorf("pull %s: %w", full, ctx.Err())
		}
	}
}

// join finds the image's flight or starts one.
func (r *Runtime) join(full string, d digest.Digest) (*flight, error) {
	r.pulls.Lock()
	defer r.pulls.Unlock()
	if f := r.flights[d.String()]; f != nil {
		f.waiters++
		return f, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, fmt.Errorf("pull %s: the runtime is closed", full)
	}
	ctx, cancel := context.WithCancel(r.life)
	f := &flight{ref: full, cancel: cancel, done: make(chan struct{}), waiters: 1}
	r.flights[d.String()] = f
	r.watchers.Add(1)
	go r.fly(ctx, f, d)
	return f, nil
}

// leave takes one off who waited for f. A flight that has not begun to fetch
// ends with the last of them: it would only keep others from their images.
func (r *Runtime) leave(f *flight, d digest.Digest) {
	r.pulls.Lock()
	defer r.pulls.Unlock()
	f.waiters--
	if f.waiters > 0 || f.fetching {
		return
	}
	f.cancel()
	if r.flights[d.String()] == f {
		delete(r.flights, d.String()) // who asks from now on starts another
	}
}

// fly makes an image present. It ends in time: by its deadlines, with the last
// who waits for it, or with the runtime.
func (r *Runtime) fly(ctx context.Context, f *flight, d digest.Digest) {
	defer r.watchers.Done()
	defer f.cancel()
	f.image, f.err = r.obtain(ctx, f, d)
	r.pulls.Lock()
	if r.flights[d.String()] == f {
		delete(r.flights, d.String())
	}
	r.pulls.Unlock()
	close(f.done)
}

// obtain finds the image here or fetches it. The wait for a place has its own
// deadline, so that a fetch has the whole of its.
func (r *Runtime) obtain(ctx context.Context, f *flight, d digest.Digest) (runtime.Image, error) {
	wctx, cancel := context.WithTimeout(ctx, r.cfg.PullTimeout)
	defer cancel()
	if img, err := r.present(wctx, d); err == nil || !errdefs.IsNotFound(err) {
		return img, err
	}
	if err := r.fetches.Acquire(wctx, 1); err != nil {
		return runtime.Image{}, fmt.Errorf("pull %s: wait for %d other images: %w", f.ref, r.cfg.MaxPulls, err)
	}
	defer r.fetches.Release(1)
	r.pulls.Lock()
	f.fetching = true
	r.pulls.Unlock()
	fctx, cancel := context.WithTimeout(ctx, r.cfg.PullTimeout)
	defer cancel()
	return r.fetch(fctx, f.ref, d)
}

// fetch pulls and unpacks an image that is not here.
func (r *Runtime) fetch(ctx context.Context, full string, d digest.Digest) (runtime.Image, error) {
	pulled, err := r.client.Pull(quiet(ctx), full,
		client.WithResolver(r.resolver()),
		client.WithPlatformMatcher(platforms.OnlyStrict(platforms.DefaultSpec())),
		client.WithPullUnpack, client.WithPullSnapshotter(r.cfg.Snapshotter))
	if err != nil {
		return runtime.Image{}, fmt.Errorf("pull %s: %w", full, err)
	}
	if pulled.Target().Digest != d {
		return runtime.Image{}, fmt.Errorf("pull %s: the registry answered with %s", full, pulled.Target().Digest)
	}
	if err := r.adoptImage(ctx, pulled.Target()); err != nil {
		return runtime.Image{}, err
	}
	// The record under the registry's name has done its work.
	if err := r.client.ImageService().Delete(ctx, pulled.Name()); err != nil && !errdefs.IsNotFound(err) {
		return runtime.Image{}, fmt.Errorf("drop the image's first name: %w", err)
	}
	return r.present(ctx, d)
}

// quiet keeps containerd's client from writing to standard error by a global
// logger: all it has to say comes back as an error as well.
func quiet(ctx context.Context) context.Context {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return log.WithLogger(ctx, logrus.NewEntry(l))
}

// byDigest is ref with its tag or digest replaced by d.
func byDigest(ref string, d digest.Digest) string {
	name, _, _ := strings.Cut(ref, "@")
	if slash, colon := strings.LastIndexByte(name, '/'), strings.LastIndexByte(name, ':'); colon > slash {
		name = name[:colon]
	}
	return name + "@" + d.String()
}

// resolver talks to registries as configured.
func (r *Runtime) resolver() remotes.Resolver {
	return docker.NewResolver(docker.ResolverOptions{
		Hosts: func(host string) ([]docker.RegistryHost, error) {
			reg := r.cfg.Registries[host]
			h := docker.RegistryHost{
				Client: reg.Client, Host: host, Scheme: "https", Path: "/v2",
				Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
			}
			if h.Client == nil {
				r.stranger(&h)
			}
			if reg.PlainHTTP {
				h.Scheme = "http"
			}
			return []docker.RegistryHost{h}, nil
		},
	})
}

// stranger is how a registry is reached that is not the cluster's own.
func (r *Runtime) stranger(h *docker.RegistryHost) {
	h.Client = http.DefaultClient
	if local, err := docker.MatchLocalhost(h.Host); err == nil && local {
		h.Scheme = "http"
	}
	if h.Host == "docker.io" {
		h.Host = "registry-1.docker.io"
	}
	if r.cfg.Credentials != nil {
		h.Authorizer = docker.NewDockerAuthorizer(docker.WithAuthCreds(r.cfg.Credentials))
	}
}

// Import makes the images of an OCI layout archive available, as Pull does,
// and returns them. It is for hosts without a registry, and tests.
func (r *Runtime) Import(ctx context.Context, archive io.Reader) ([]runtime.Image, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.PullTimeout)
	defer cancel()
	platform := platforms.OnlyStrict(platforms.DefaultSpec())
	imported, err := r.client.Import(ctx, archive,
		client.WithImportPlatform(platform),
		client.WithDigestRef(func(d digest.Digest) string { return "faasd-sec/import@" + d.String() }))
	if err != nil {
		return nil, fmt.Errorf("import images: %w", err)
	}
	var out []runtime.Image
	var errs []error
	for _, i := range imported {
		img := client.NewImageWithPlatform(r.client, i, platform)
		err := img.Unpack(ctx, r.cfg.Snapshotter)
		if err == nil {
			err = r.adoptImage(ctx, i.Target)
		}
		if derr := r.client.ImageService().Delete(ctx, i.Name); derr != nil && !errdefs.IsNotFound(derr) {
			err = errors.Join(err, derr)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("import image %s: %w", i.Name, err))
			continue
		}
		if slices.ContainsFunc(out, func(o runtime.Image) bool { return o.Digest == i.Target.Digest.String() }) {
			continue
		}
		p, err := r.present(ctx, i.Target.Digest)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out = append(out, p)
	}
	return out, errors.Join(errs...)
}

// adoptImage records an unpacked image under our own name, which keeps its
// content and snapshots from garbage collection.
func (r *Runtime) adoptImage(ctx context.Context, target ocispec.Descriptor) error {
	_, err := r.client.ImageService().Create(ctx, newImageRecord(target))
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("record image %s: %w", target.Digest, err)
	}
	return nil
}

// present describes an image that is here already; the error is NotFound if it
// is not.
func (r *Runtime) present(ctx context.Context, d digest.Digest) (runtime.Image, error) {
	if img, ok := r.images.get(d.String()); ok {
		return img.image, nil
	}
	held, err := r.loadImage(ctx, d)
	if err != nil {
		return runtime.Image{}, err
	}
	r.images.put(d.String(), held)
	return held.image, nil
}

// loadImage reads an image's configuration and makes its view.
func (r *Runtime) loadImage(ctx context.Context, d digest.Digest) (heldImage, error) {
	rec, err := r.client.ImageService().Get(ctx, imageName(d.String()))
	if err != nil {
		return heldImage{}, fmt.Errorf("look image %s up: %w", d, err)
	}
	img := client.NewImageWithPlatform(r.client, rec, platforms.OnlyStrict(platforms.DefaultSpec()))
	cfg, err := img.Spec(ctx)
	if err != nil {
		return heldImage{}, fmt.Errorf("read the configuration of image %s: %w", d, err)
	}
	size, err := img.Size(ctx)
	if err != nil {
		return heldImage{}, fmt.Errorf("size of image %s: %w", d, err)
	}
	layers, err := r.view(ctx, d.String(), identity.ChainID(cfg.RootFS.DiffIDs).String())
	if err != nil {
		return heldImage{}, err
	}
	held := heldImage{
		layers: layers,
		image: runtime.Image{
			Ref: rec.Name, Digest: d.String(), Size: size,
			Config: api.ImageConfig{
				Entrypoint: cfg.Config.Entrypoint, Cmd: cfg.Config.Cmd, Env: cfg.Config.Env,
				WorkingDir: cfg.Config.WorkingDir, User: cfg.Config.User,
			},
		},
	}
	held.uid, held.gid, held.userErr = functionUser(layers, cfg.Config.User)
	return held, nil
}

// Images implements runtime.Runtime.
func (r *Runtime) Images(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.CallTimeout)
	defer cancel()
	recs, err := r.client.ImageService().List(ctx, "labels."+quoteFilter(labelImage))
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	slices.SortFunc(recs, func(a, b images.Image) int {
		return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), cmp.Compare(a.Name, b.Name))
	})
	out := make([]string, 0, len(recs))
	for _, rec := range recs { // one for each digest, which is its name
		out = append(out, rec.Target.Digest.String())
	}
	return out, nil
}

// ground keeps an image's flights away until clear is called: who pulls it
// meanwhile waits, and then begins anew. Before that it waits for the flight that
// is under way.
func (r *Runtime) ground(ctx context.Context, dgst string) (clear func(), err error) {
	own := &flight{cancel: func() {}, done: make(chan struct{}), err: errGrounded, fetching: true}
	for {
		r.pulls.Lock()
		f := r.flights[dgst]
		if f == nil {
			r.flights[dgst] = own
		}
		r.pulls.Unlock()
		if f == nil {
			break
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return func() {
		r.pulls.Lock()
		delete(r.flights, dgst)
		r.pulls.Unlock()
		close(own.done)
	}, nil
}

// errGrounded is that of a flight that is none: it has no registry, so that whoever
// waits for it begins one.
var errGrounded = errors.New("the image is being forgotten")

// Forget implements runtime.Runtime. Sandboxes that run the image keep its
// snapshots by their leases until they are removed.
func (r *Runtime) Forget(ctx context.Context, dgst string) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.CallTimeout)
	defer cancel()
	clear, err := r.ground(ctx, dgst)
	if err != nil {
		return fmt.Errorf("forget image %s: %w", dgst, err)
	}
	defer clear()
	r.images.drop(dgst)
	if err := r.releaseView(ctx, dgst); err != nil {
		return err
	}
	if err := r.client.ImageService().Delete(ctx, imageName(dgst)); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("forget image %s: %w", dgst, err)
	}
	return nil
}
