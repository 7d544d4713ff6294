package image

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/faasd-sec/faasd-sec/api"
)

// Resolver finds out what image a reference means. One without a registry's name is
// the cluster's own where its registry has it, and else one of Docker Hub, as
// everywhere: what is pushed to the cluster is never shadowed by a stranger's.
type Resolver struct {
	// Own resolves a tag or digest in the cluster's registry, "" if it is not there.
	Own      func(ctx context.Context, repo, tag string) (digest string, err error)
	Keychain authn.Keychain // nil is anonymous
	Insecure []string       // HOST[:PORT] of registries spoken to without TLS; those on the loopback may be
}

// Resolve returns the reference with its registry, where that is not the cluster's
// own, and the digest that it means now.
func (r *Resolver) Resolve(ctx context.Context, s string) (full, digest string, err error) {
	ref, err := name.ParseReference(s)
	if err != nil {
		return "", "", api.Invalid("image", "write REGISTRY/REPOSITORY:TAG or …@sha256:DIGEST", err.Error())
	}
	if !api.NamesRegistry(s) && r.Own != nil {
		full, digest, err = r.own(ctx, s, ref)
		if digest != "" || err != nil && api.CodeOf(err) != api.CodeInvalid {
			return full, digest, err
		}
	}
	ref, opts, err := r.remote(ctx, s, ref)
	if err != nil {
		return "", "", err
	}
	d, err := remote.Head(ref, opts...)
	if err != nil { // not every registry answers a HEAD well
		var get *remote.Descriptor
		if get, err = remote.Get(ref, opts...); err == nil {
			d = &get.Descriptor
		}
	}
	if err != nil {
		return "", "", unresolved(s, err)
	}
	full = strings.Replace(ref.Name(), name.DefaultRegistry+"/", "docker.io/", 1)
	full, _, _ = strings.Cut(full, "@")
	return full, d.Digest.String(), nil
}

// ResolveOwn is Resolve of an image that is the cluster's own or nobody's.
func (r *Resolver) ResolveOwn(ctx context.Context, s string) (full, digest string, err error) {
	ref, err := name.ParseReference(s)
	if err != nil {
		return "", "", api.Invalid("image", "write REPOSITORY:TAG or …@sha256:DIGEST", err.Error())
	}
	if r.Own != nil {
		if full, digest, err = r.own(ctx, s, ref); digest != "" || err != nil {
			return full, digest, err
		}
	}
	return "", "", api.Invalid("image", "push it, or check its name", "the cluster's registry has no "+s)
}

// own asks the cluster's registry; the digest is "" where it has none.
func (r *Resolver) own(ctx context.Context, s string, ref name.Reference) (full, digest string, err error) {
	repo := api.Repository(s)
	digest, err = r.Own(ctx, repo, ref.Identifier())
	return repo + ":" + strings.ReplaceAll(ref.Identifier(), ":", "-"), digest, err
}

// Config is the configuration of an image in another registry, for this machine's
// architecture where there are several.
func (r *Resolver) Config(ctx context.Context, s string) (*v1.ConfigFile, error) {
	ref, err := name.ParseReference(s)
	if err != nil {
		return nil, api.Invalid("image", "write REGISTRY/REPOSITORY:TAG or …@sha256:DIGEST", err.Error())
	}
	ref, opts, err := r.remote(ctx, s, ref)
	if err != nil {
		return nil, err
	}
	img, err := remote.Image(ref, append(opts, remote.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}))...)
	if err != nil {
		return nil, unresolved(s, err)
	}
	c, err := img.ConfigFile()
	if err != nil {
		return nil, unresolved(s, err)
	}
	return c, nil
}

// remote is how another registry is asked about ref, which was written as s.
func (r *Resolver) remote(ctx context.Context, s string, ref name.Reference) (name.Reference, []remote.Option, error) {
	host := ref.Context().RegistryStr()
	if !api.NamesRegistry(host + "/x") {
		return nil, nil, api.Invalid("image", "name the registry by its full name", fmt.Sprintf("%q is no registry's name", host))
	}
	opts := []remote.Option{remote.WithContext(ctx), remote.WithTransport(&Transport{Insecure: r.Insecure})}
	if r.Keychain != nil {
		opts = append(opts, remote.WithAuthFromKeychain(r.Keychain))
	}
	if !slices.Contains(r.Insecure, host) {
		return ref, opts, nil
	}
	ref, err := name.ParseReference(s, name.Insecure)
	if err != nil {
		return nil, nil, api.Invalid("image", "write REGISTRY/REPOSITORY:TAG", err.Error())
	}
	return ref, opts, nil
}

// unresolved says what whoever deploys can do about it.
func unresolved(s string, err error) error {
	failed := failure("find image "+s, err)
	switch api.CodeOf(failed) {
	case api.CodeNotFound, api.CodeUnauthorized, api.CodeForbidden:
		// Docker Hub answers 401 for what is not there.
		return &api.Error{Code: api.CodeInvalid, Field: "image", Message: "no registry gives " + s + " to this cluster",
			Remedy: "push it, check its name, or have the operator add the registry's credentials (-registry-auth)", Err: err}
	}
	return failed
}

// Transport goes over plain http to registries on the loopback, and to those that
// are listed, and to no other: a library's guess that a private address needs no
// TLS is not good enough for what will run.
type Transport struct {
	Insecure []string
	Base     http.RoundTripper // nil is http.DefaultTransport
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !Loopback(req.URL.Host) && !slices.Contains(t.Insecure, req.URL.Host) {
		return nil, fmt.Errorf("registry %s is not spoken to without TLS; list it as insecure if it has none", req.URL.Host)
	}
	if t.Base != nil {
		return t.Base.RoundTrip(req)
	}
	return http.DefaultTransport.RoundTrip(req)
}

// Loopback reports whether host[:port] is this machine.
func Loopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
