package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/faasd-sec/faasd-sec/api"
)

// Types of what is attached to an image.
const (
	TypeSignature types.MediaType = "application/vnd.faasd-sec.image-signature.v1+json"
	TypeSBOM      types.MediaType = "application/vnd.cyclonedx+json"
)

const (
	maxReferrerList = 4 << 20  // bytes of a listing
	maxArtifact     = 64 << 20 // bytes of an artifact's content
	maxSignature    = 64 << 10 // of one of TypeSignature: nodes hold all that there are
	maxAttached     = 64       // artifacts of one type that are looked at
)

// most is what an artifact of a type may have, in bytes.
func most(kind types.MediaType) int64 {
	if kind == TypeSignature {
		return maxSignature
	}
	return maxArtifact
}

// Attach stores content in repo as an artifact about the image: an OCI manifest
// whose subject is the image's, and whose one layer is the content. It returns the
// manifest's digest; the same content gives the same.
func (r *Remote) Attach(ctx context.Context, repo string, img v1.Image, kind types.MediaType, content []byte) (string, error) {
	subject, err := partial.Descriptor(img)
	if err != nil {
		return "", fmt.Errorf("attach %s: %w", kind, err)
	}
	a, err := mutate.Append(empty.Image, mutate.Addendum{Layer: static.NewLayer(content, kind), MediaType: kind})
	if err != nil {
		return "", fmt.Errorf("attach %s: %w", kind, err)
	}
	a = mutate.ConfigMediaType(mutate.MediaType(a, types.OCIManifestSchema1), kind)
	about := mutate.Subject(a, v1.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size}).(v1.Image)
	d, err := about.Digest()
	if err != nil {
		return "", fmt.Errorf("attach %s: %w", kind, err)
	}
	tag, err := r.ref(repo, "latest") // checks the names
	if err != nil {
		return "", err
	}
	if err := r.write(ctx, tag.Context().Digest(d.String()), about); err != nil {
		return "", err
	}
	return d.String(), nil
}

// Attached fetches the contents of the artifacts of one type that are attached to
// the image with this digest, in the order of their digests. A registry without
// the referrers API is asked for the tag that stands in for it. Nothing here is
// trusted: whoever may push can attach.
func (b *Blobs) Attached(ctx context.Context, repo, digest string, kind types.MediaType) ([][]byte, error) {
	if h, err := v1.NewHash(digest); err != nil || h.Algorithm != "sha256" {
		return nil, api.Invalid("digest", "use sha256: and 64 hex characters", fmt.Sprintf("%.80q is not a digest", digest))
	}
	list, err := b.small(ctx, repo, "referrers/"+digest+"?artifactType="+url.QueryEscape(string(kind)), maxReferrerList)
	if api.CodeOf(err) == api.CodeNotFound {
		list, err = b.small(ctx, repo, "manifests/sha256-"+digest[len("sha256:"):], maxReferrerList)
	}
	if api.CodeOf(err) == api.CodeNotFound {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var idx v1.IndexManifest
	if err := json.Unmarshal(list, &idx); err != nil {
		return nil, api.Wrap(api.CodeUnavailable, err, "the registry's list of referrers does not parse")
	}
	var out [][]byte
	slices.SortFunc(idx.Manifests, func(x, y v1.Descriptor) int { return slices.Compare([]byte(x.Digest.Hex), []byte(y.Digest.Hex)) })
	for _, d := range idx.Manifests {
		if d.ArtifactType != string(kind) || len(out) == maxAttached {
			continue
		}
		content, err := b.artifact(ctx, repo, d.Digest.String(), digest, kind)
		if err != nil {
			return nil, err
		}
		if content != nil {
			out = append(out, content)
		}
	}
	return out, nil
}

// artifact reads one artifact's content, nil if it is not of the kind, is about
// another image or is larger than any of the kind.
func (b *Blobs) artifact(ctx context.Context, repo, digest, subject string, kind types.MediaType) ([]byte, error) {
	raw, err := b.small(ctx, repo, "manifests/"+digest, maxReferrerList)
	if err != nil {
		return nil, err
	}
	var m v1.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, api.Wrap(api.CodeUnavailable, err, "a referrer's manifest does not parse")
	}
	if m.Subject == nil || m.Subject.Digest.String() != subject || len(m.Layers) != 1 || m.Layers[0].MediaType != kind || m.Layers[0].Size > most(kind) {
		return nil, nil
	}
	body, err := b.Fetch(ctx, repo, m.Layers[0].Digest.String())
	if err != nil {
		return nil, err
	}
	defer body.Close()
	content, err := io.ReadAll(io.LimitReader(body, max(m.Layers[0].Size, 0)+1))
	if err != nil || int64(len(content)) > m.Layers[0].Size {
		return nil, api.Wrap(api.CodeUnavailable, err, "a referrer's content is not what its manifest says")
	}
	return content, nil
}

// small gets a short document of repo.
func (b *Blobs) small(ctx context.Context, repo, path string, limit int64) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.base+"/v2/"+repo+"/"+path, nil)
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", path, err)
	}
	req.Header.Set("Accept", string(types.OCIManifestSchema1)+", "+string(types.OCIImageIndex))
	resp, err := b.client.Do(req)
	if err != nil {
		return nil, api.Wrap(api.CodeUnavailable, err, "the registry cannot be reached")
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, answered(resp, path, repo)
	}
	out, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil || int64(len(out)) > limit {
		return nil, api.Wrap(api.CodeUnavailable, err, "the registry's answer is too long or broke off")
	}
	return out, nil
}

// answered is a registry's refusal.
func answered(resp *http.Response, what, repo string) error {
	code := api.CodeUnavailable
	switch resp.StatusCode {
	case http.StatusNotFound:
		code = api.CodeNotFound
	case http.StatusUnauthorized, http.StatusForbidden:
		code = api.CodeForbidden
	}
	return api.Errorf(code, "the registry answered %s for %s of %s", resp.Status, what, repo)
}
