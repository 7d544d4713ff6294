package image

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
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
		repo := api.Repository(s)
		if digest, err = r.Own(ctx, repo, ref.Identifier()); err == nil && digest != "" {
			return repo + ":" + strings.ReplaceAll(ref.Identifier(), ":", "-"), digest, nil
		}
		if err != nil && api.CodeOf(err) != api.CodeInvalid {
			return "", "", err
		}
	}
	host := ref.Context().RegistryStr()
	if !api.NamesRegistry(host + "/x") {
		return "", "", api.Invalid("image", "name the registry by its full name", fmt.Sprintf("%q is no registry's name", host))
	}
	opts := []remote.Option{remote.WithContext(ctx), remote.WithTransport(&Transport{Insecure: r.Insecure})}
	if r.Keychain != nil {
		opts = append(opts, remote.WithAuthFromKeychain(r.Keychain))
	}
	if slices.Contains(r.Insecure, host) {
		if ref, err = name.ParseReference(s, name.Insecure); err != nil {
			return "", "", api.Invalid("image", "write REGISTRY/REPOSITORY:TAG", err.Error())
		}
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
