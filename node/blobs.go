package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strings"

	"github.com/faasd-sec/faasd-sec/api"
)

// RegistryBundles fetches sealed bundles from an OCI registry.
type RegistryBundles struct {
	Client *http.Client
	URL    string // https://host:port
}

// Fetch implements Bundles. The reader's end is an error if the content has
// another digest; the agent checks what is inside again.
func (b *RegistryBundles) Fetch(ctx context.Context, ref, digest string) (io.ReadCloser, error) {
	want, ok := strings.CutPrefix(digest, "sha256:")
	if !ok || len(want) != sha256.Size*2 {
		return nil, api.Invalid("bundle", "use sha256: and 64 hex digits", fmt.Sprintf("%q is not a digest", digest))
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.URL+"/v2/"+ref+"/blobs/"+digest, nil)
	if err != nil {
		return nil, api.Invalid("bundle", "deploy again", err.Error())
	}
	resp, err := b.Client.Do(req)
	if err != nil {
		return nil, api.Wrap(api.CodeUnavailable, err, "the registry cannot be reached")
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, api.Errorf(api.CodeUnavailable, "the registry answers %d for the sealed bundle", resp.StatusCode)
	}
	return &checkedBlob{ReadCloser: resp.Body, sum: sha256.New(), want: want}, nil
}

// checkedBlob turns a wrong end into an error.
type checkedBlob struct {
	io.ReadCloser
	sum  hash.Hash
	want string
}

func (c *checkedBlob) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.sum.Write(p[:n])
	if err == io.EOF && hex.EncodeToString(c.sum.Sum(nil)) != c.want {
		return n, api.Errorf(api.CodeUnavailable, "the registry sent something else than the sealed bundle")
	}
	return n, err
}
