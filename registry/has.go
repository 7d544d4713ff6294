package registry

import (
	"context"
	"fmt"
	"net/http"

	"github.com/faasd-sec/faasd-sec/api"
)

// HasManifest reports whether repo has the manifest with this digest.
func (r *Registry) HasManifest(ctx context.Context, repo, digest string) (bool, error) {
	return r.has(ctx, repo, "manifests", digest)
}

// HasBlob reports whether repo has the blob with this digest.
func (r *Registry) HasBlob(ctx context.Context, repo, digest string) (bool, error) {
	return r.has(ctx, repo, "blobs", digest)
}

// has asks as a client would, so that it and the clients always agree.
func (r *Registry) has(ctx context.Context, repo, kind, digest string) (bool, error) {
	if !validName(repo) {
		return false, api.Invalid("image", "use lower-case letters, digits, and . _ - / between them", fmt.Sprintf("%q is not a repository", repo))
	}
	if _, ok := parseDigest(digest); !ok {
		return false, api.Invalid("digest", "use sha256: and 64 hex digits", fmt.Sprintf("%q is not a digest", digest))
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, "/v2/"+repo+"/"+kind+"/"+digest, nil)
	if err != nil {
		return false, fmt.Errorf("registry: %w", err)
	}
	resp := r.handle(req)
	if resp.body != nil {
		resp.body.Close()
	}
	switch resp.status {
	case http.StatusOK:
		return true, nil
	case http.StatusNotFound:
		return false, nil
	}
	return false, fmt.Errorf("registry: status %d for %s of %s", resp.status, kind, repo)
}

// Digest is the digest that a tag of repo, or a digest, names; "" if it names nothing.
func (r *Registry) Digest(ctx context.Context, repo, tag string) (string, error) {
	if !validName(repo) {
		return "", api.Invalid("image", "use lower-case letters, digits, and . _ - / between them", fmt.Sprintf("%q is not a repository", repo))
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, "/v2/"+repo+"/manifests/"+tag, nil)
	if err != nil {
		return "", api.Invalid("image", "write REPOSITORY:TAG", "it is no reference")
	}
	resp := r.handle(req)
	if resp.body != nil {
		resp.body.Close()
	}
	switch resp.status {
	case http.StatusOK:
		return resp.header.Get("Docker-Content-Digest"), nil
	case http.StatusNotFound, http.StatusBadRequest:
		return "", nil
	}
	return "", fmt.Errorf("registry: status %d for %s:%s", resp.status, repo, tag)
}
