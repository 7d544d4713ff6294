package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/faasd-sec/faasd-sec/api"
)

// Source reads a path, which begins with /v2/, from another registry. One that
// it does not have gives api.CodeNotFound.
type Source func(ctx context.Context, path string) (io.ReadCloser, error)

// Mirror makes repo have the manifest with this digest and all it refers to,
// fetching what is missing. It returns once that is on disk. Nothing of the
// source is trusted: all of it is named by its digest.
func (r *Registry) Mirror(ctx context.Context, repo, digest string, from Source) error {
	if there, err := r.HasManifest(ctx, repo, digest); err != nil || there {
		return err // a manifest is stored after all of its parts
	}
	path := "/v2/" + repo + "/manifests/" + digest
	body, err := from(ctx, path)
	if err != nil {
		return err
	}
	b, err := io.ReadAll(io.LimitReader(body, r.cfg.MaxManifestBytes+1))
	if err = errors.Join(err, body.Close()); err != nil {
		return fmt.Errorf("mirror %s: %w", path, err)
	}
	m, err := parseManifest(b, "")
	if err != nil {
		return err
	}
	for _, part := range m.Manifests {
		if err := r.Mirror(ctx, repo, part.Digest, from); err != nil {
			return err
		}
	}
	for _, part := range m.blobs() {
		if err := r.MirrorBlob(ctx, repo, part.Digest, from); err != nil {
			return err
		}
	}
	return r.push(ctx, http.MethodPut, path, m.MediaType, bytes.NewReader(b))
}

// MirrorBlob makes repo have the blob with this digest, as Mirror does.
func (r *Registry) MirrorBlob(ctx context.Context, repo, digest string, from Source) error {
	if there, err := r.HasBlob(ctx, repo, digest); err != nil || there {
		return err
	}
	body, err := from(ctx, "/v2/"+repo+"/blobs/"+digest)
	if err != nil {
		return err
	}
	err = r.push(ctx, http.MethodPost, "/v2/"+repo+"/blobs/uploads/?digest="+digest, "application/octet-stream", body)
	return errors.Join(err, body.Close())
}

// push stores something as a client would, with all checks that are made then.
func (r *Registry) push(ctx context.Context, method, path, mediaType string, body io.Reader) error {
	req, err := http.NewRequestWithContext(ctx, method, path, body)
	if err != nil {
		return fmt.Errorf("mirror: %w", err)
	}
	req.Header.Set("Content-Type", mediaType)
	resp := r.handle(req)
	if resp.body != nil {
		resp.body.Close()
	}
	if resp.status != http.StatusCreated {
		return api.Errorf(api.CodeUnavailable, "the registry answered %d to a copy of %s", resp.status, path)
	}
	return nil
}
