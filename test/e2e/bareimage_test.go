package e2e

import (
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// pushBareImage pushes the test function's image without what says what to
// execute.
func (c *cluster) pushBareImage(t testing.TB, repo string) string {
	t.Helper()
	host := strings.TrimPrefix(c.Gateway(), "http://")
	opts := []remote.Option{remote.WithTransport(c.signed()), remote.WithContext(t.Context())}
	from, err := name.NewDigest(host+"/"+repo+"@"+c.pushTestImage(t, repo), name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(from, opts...)
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.Config(img, v1.Config{}); err != nil {
		t.Fatal(err)
	}
	ref, err := name.NewTag(host+"/"+repo+":bare", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img, opts...); err != nil {
		t.Fatal(err)
	}
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}
