package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/faasd-sec/faasd-sec/api"
)

// Remote pushes to one registry and pulls bases from any.
type Remote struct {
	Registry  string                  // host:port of the cluster's registry
	PlainHTTP bool                    // allow http to it, where TLS fails
	Transport http.RoundTripper       // signs requests to it; nil is the default one
	Keychain  authn.Keychain          // for other registries; nil is anonymous
	Progress  func(done, total int64) // bytes of a push; may be nil, called from one goroutine
}

var _ Puller = (*Remote)(nil)

// Push stores an image under repo and tag, and returns the manifest's digest.
// What the registry has already is not sent again. ctx bounds it.
func (r *Remote) Push(ctx context.Context, repo, tag string, img v1.Image) (string, error) {
	ref, err := r.ref(repo, tag)
	if err != nil {
		return "", err
	}
	d, err := img.Digest()
	if err != nil {
		return "", fmt.Errorf("push image: %w", err)
	}
	if err := r.write(ctx, ref, img); err != nil {
		return "", err
	}
	return d.String(), nil
}

// write runs a push with its progress, both of which have ended on return.
func (r *Remote) write(ctx context.Context, ref name.Reference, img v1.Image) error {
	opts := append(r.options(ctx), remote.WithJobs(2))
	done := make(chan struct{})
	if r.Progress == nil {
		close(done)
	} else {
		updates := make(chan v1.Update, 16)
		opts = append(opts, remote.WithProgress(updates))
		go func() { // ends when the push closes the channel, as it always does
			defer close(done)
			for u := range updates {
				if u.Error == nil {
					r.Progress(u.Complete, u.Total)
				}
			}
		}()
	}
	err := remote.Write(ref, img, opts...)
	<-done
	if err != nil {
		return failure(fmt.Sprintf("push to %s", ref), err)
	}
	return nil
}

// Pull gets an image for linux/arch. A reference without a registry's name is
// one of Docker Hub, as everywhere.
func (r *Remote) Pull(ctx context.Context, s, arch string) (v1.Image, error) {
	ref, err := name.ParseReference(s)
	if err != nil {
		return nil, api.Invalid("image", "write REGISTRY/REPOSITORY:TAG or …@sha256:DIGEST", err.Error())
	}
	opts := []remote.Option{remote.WithContext(ctx)}
	if r.Registry != "" && ref.Context().RegistryStr() == r.Registry {
		// Parsed again, as what may be plain is part of a reference.
		if ref, err = name.ParseReference(s, r.nameOptions()...); err != nil {
			return nil, fmt.Errorf("pull %s: %w", s, err)
		}
		opts = r.options(ctx)
	} else if r.Keychain != nil {
		opts = append(opts, remote.WithAuthFromKeychain(r.Keychain))
	}
	img, err := remote.Image(ref, append(opts, remote.WithPlatform(v1.Platform{OS: "linux", Architecture: arch}))...)
	if err != nil {
		return nil, failure("pull "+s, err)
	}
	return img, nil
}

// ref names a tag of a repository in the registry. The registry is parsed by
// itself: in a whole reference a host without dot or port is taken for a part
// of a repository of Docker Hub.
func (r *Remote) ref(repo, tag string) (name.Reference, error) {
	reg, err := name.NewRegistry(r.Registry, append(r.nameOptions(), name.StrictValidation)...)
	if err != nil || r.Registry == "" {
		return nil, api.Invalid("registry", "write HOST or HOST:PORT", fmt.Sprintf("%q is not a registry", r.Registry))
	}
	// Checked here, as the other constructors take names that no registry does.
	if repo != path.Clean(repo) || !filepath.IsLocal(repo) {
		return nil, errRepository(fmt.Sprintf("%q is not a repository", repo))
	}
	if _, err := name.NewRepository(reg.RegistryStr()+"/"+repo, r.nameOptions()...); err != nil {
		return nil, errRepository(err.Error())
	}
	if _, err := name.NewTag("registry.invalid/x/x:"+tag, name.StrictValidation); err != nil {
		return nil, errRepository(fmt.Sprintf("%q is not a tag", tag))
	}
	return reg.Repo(repo).Tag(tag), nil
}

func errRepository(message string) error {
	return api.Invalid("image", "write REPOSITORY:TAG with lower-case letters, digits, '.', '_', '-' and '/'", message)
}

func (r *Remote) nameOptions() []name.Option {
	if r.PlainHTTP {
		return []name.Option{name.Insecure}
	}
	return nil
}

func (r *Remote) options(ctx context.Context) []remote.Option {
	opts := []remote.Option{remote.WithContext(ctx)}
	if r.Transport != nil {
		opts = append(opts, remote.WithTransport(r.Transport))
	}
	return opts
}

// failure gives a registry's refusal a code.
func failure(op string, err error) error {
	code := api.CodeUnavailable
	var te *transport.Error
	if errors.As(err, &te) {
		switch te.StatusCode {
		case http.StatusBadRequest:
			code = api.CodeInvalid
		case http.StatusUnauthorized:
			code = api.CodeUnauthorized
		case http.StatusForbidden:
			code = api.CodeForbidden
		case http.StatusNotFound:
			code = api.CodeNotFound
		case http.StatusRequestEntityTooLarge:
			code = api.CodeTooLarge
		case http.StatusTooManyRequests:
			code = api.CodeBusy
		}
	}
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s: %w", op, err)
	}
	return api.Wrap(code, err, op+" failed")
}
