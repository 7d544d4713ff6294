package registry

import (
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	godigest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Nodes pull with containerd's client, by digest.
func TestContainerdPullsByDigest(t *testing.T) {
	onFronts(t, func(t *testing.T, fr front) {
		addr := fr.serve(t, openRegistry(t, testConfig(t, t.TempDir())))
		img, err := random.Image(300_000, 2)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(ref(t, addr, "team/hello:v1"), img, options(t)...); err != nil {
			t.Fatal(err)
		}
		d, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		resolver := docker.NewResolver(docker.ResolverOptions{Hosts: docker.ConfigureDefaultRegistries(
			docker.WithPlainHTTP(docker.MatchLocalhost), docker.WithClient(client(t)))})
		for _, s := range []string{"/team/hello:v1", "/team/hello@" + d.String()} {
			name, desc, err := resolver.Resolve(t.Context(), addr+s)
			if err != nil || desc.Digest.String() != d.String() {
				t.Fatal(desc, err)
			}
			fetcher, err := resolver.Fetcher(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			m, err := img.Manifest()
			if err != nil {
				t.Fatal(err)
			}
			all := []ocispec.Descriptor{desc}
			for _, l := range append(m.Layers, m.Config) {
				all = append(all, ocispec.Descriptor{MediaType: string(l.MediaType), Digest: godigest.Digest(l.Digest.String()), Size: l.Size})
			}
			for _, want := range all {
				body, err := fetcher.Fetch(t.Context(), want)
				if err != nil {
					t.Fatal(err)
				}
				h := want.Digest.Verifier()
				n, err := io.Copy(h, body)
				body.Close()
				if err != nil || n != want.Size || !h.Verified() {
					t.Fatalf("%s: %d of %d bytes, %v", want.Digest, n, want.Size, err)
				}
			}
		}
	})
}

func TestClientThatGoesAwayLeavesNoFileOpen(t *testing.T) {
	const size = 8 << 20
	d := noiseDigest(t, size)
	onFronts(t, func(t *testing.T, fr front) {
		dir := t.TempDir()
		addr := fr.serve(t, openRegistry(t, testConfig(t, dir)))
		url := "http://" + addr + "/v2/r/blobs/"
		wantStatus(t, do(t, client(t), "POST", url+"uploads/?digest="+d.String(), noise(size), size), http.StatusCreated, "")
		for range 5 {
			resp := do(t, client(t), "GET", url+d.String(), nil, 0)
			if _, err := io.CopyN(io.Discard, resp.Body, 1000); err != nil {
				t.Fatal(err)
			}
			resp.Body.Close() // in the middle: closes the connection
		}
		for deadline := time.Now().Add(10 * time.Second); openUnder(t, dir+"/blobs") > 0; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d blobs are still open", openUnder(t, dir+"/blobs"))
			}
		}
	})
}

// openUnder counts this process's open files below dir.
func openUnder(t *testing.T, dir string) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(to, dir+"/") {
			n++
		}
	}
	return n
}
