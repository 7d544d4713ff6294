package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/faasd-sec/faasd-sec/api"
)

// Media types of a sealed bundle in a registry.
const (
	TypeBundle       types.MediaType = "application/vnd.faasd-sec.bundle.v1"
	typeBundleConfig types.MediaType = "application/vnd.faasd-sec.bundle.config.v1+json"
)

// PushBlob stores size bytes of content as a blob of repo and returns the
// blob's digest, "sha256:…". A small manifest, tagged with the digest, refers
// to it, so that no registry takes it for garbage.
func (r *Remote) PushBlob(ctx context.Context, repo string, content io.ReaderAt, size int64) (string, error) {
	h := sha256.New()
	if n, err := io.Copy(h, io.NewSectionReader(content, 0, size)); err != nil || n != size {
		return "", fmt.Errorf("push blob: read %d of %d bytes: %w", n, size, err)
	}
	d := v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}
	ref, err := r.ref(repo, "sha256-"+d.Hex)
	if err != nil {
		return "", err
	}
	img, err := mutate.Append(empty.Image, mutate.Addendum{Layer: &blob{content: content, size: size, digest: d}, MediaType: TypeBundle})
	if err != nil {
		return "", fmt.Errorf("push blob: %w", err)
	}
	img = mutate.ConfigMediaType(mutate.MediaType(img, types.OCIManifestSchema1), typeBundleConfig)
	if err := r.write(ctx, ref, img); err != nil {
		return "", err
	}
	return d.String(), nil
}

// blob is content as the layer of an artifact: opaque, never unpacked.
type blob struct {
	content io.ReaderAt
	size    int64
	digest  v1.Hash
}

var _ v1.Layer = (*blob)(nil)

func (b *blob) Digest() (v1.Hash, error)             { return b.digest, nil }
func (b *blob) DiffID() (v1.Hash, error)             { return b.digest, nil }
func (b *blob) Size() (int64, error)                 { return b.size, nil }
func (b *blob) MediaType() (types.MediaType, error)  { return TypeBundle, nil }
func (b *blob) Uncompressed() (io.ReadCloser, error) { return b.Compressed() }
func (b *blob) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(io.NewSectionReader(b.content, 0, b.size)), nil
}

// Blobs fetches blobs of one registry. It is safe for use by several goroutines.
type Blobs struct {
	base   string
	client *http.Client
}

// NewBlobs fetches from a registry at base, "https://host:port", with a client
// that knows whom to trust there.
func NewBlobs(base string, client *http.Client) *Blobs {
	return &Blobs{base: strings.TrimSuffix(base, "/"), client: client}
}

// Fetch streams a blob of repo. Reading it ends in io.EOF only if the content
// has the digest; until then nothing may be built upon it. ctx bounds the
// whole of it, the reading included.
func (b *Blobs) Fetch(ctx context.Context, repo, digest string) (io.ReadCloser, error) {
	want, err := v1.NewHash(digest)
	if err != nil || want.Algorithm != "sha256" {
		return nil, api.Invalid("digest", "use sha256: and 64 hex characters", fmt.Sprintf("%.80q is not a digest", digest))
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.base+"/v2/"+repo+"/blobs/"+digest, nil)
	if err != nil {
		return nil, fmt.Errorf("fetch blob: %w", err)
	}
	resp, err := b.client.Do(req)
	if err != nil {
		return nil, api.Wrap(api.CodeUnavailable, err, "the registry cannot be reached")
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, answered(resp, "blob "+digest, repo)
	}
	return &verified{body: resp.Body, hash: sha256.New(), want: want.Hex}, nil
}

// verified passes a body through and checks its digest at the end.
type verified struct {
	body io.ReadCloser
	hash hash.Hash
	want string
	err  error
}

var errDigest = errors.New("the blob has another digest")

func (v *verified) Read(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	n, err := v.body.Read(p)
	v.hash.Write(p[:n])
	if err == io.EOF && hex.EncodeToString(v.hash.Sum(nil)) != v.want {
		err = errDigest
	}
	v.err = err
	return n, err
}

func (v *verified) Close() error { return v.body.Close() }
