package registry

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

func TestIndexIsPushedAfterItsImages(t *testing.T) {
	addr := serveNetHTTP(t, openRegistry(t, testConfig(t, t.TempDir())))
	idx, err := random.Index(1000, 2, 3)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(ref(t, addr, "multi:v1"), idx, options(t)...); err != nil {
		t.Fatal(err)
	}
	got, err := remote.Index(ref(t, addr, "multi:v1"), options(t)...)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(got); err != nil {
		t.Fatal(err)
	}
}

func TestManifestsAreCheckedBeforeTheyAreTaken(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	cfg.MaxManifestBytes = 10_000
	addr := serveNetHTTP(t, openRegistry(t, cfg))
	c := client(t)
	url := "http://" + addr + "/v2/r/"
	d := noiseDigest(t, 10)
	wantStatus(t, do(t, c, "POST", url+"blobs/uploads/?digest="+d.String(), noise(10), 10), 201, "")
	missing := "sha256:" + strings.Repeat("0", 64)
	desc := func(d string, size int) string {
		return fmt.Sprintf(`{"mediaType":"x/y","digest":%q,"size":%d}`, d, size)
	}
	good := `{"schemaVersion":2,"config":` + desc(d.String(), 10) + `,"layers":[]}`
	for name, m := range map[string]struct{ body, contentType, code string }{
		"good":            {good, typeManifest, ""},
		"no type":         {good, "", codeManifestInvalid},
		"odd type":        {strings.Replace(good, `2,`, `2,"mediaType":"a/b",`, 1), "a/b", codeManifestInvalid},
		"two types":       {strings.Replace(good, `2,`, `2,"mediaType":"`+typeIndex+`",`, 1), typeManifest, codeManifestInvalid},
		"version":         {strings.Replace(good, `:2`, `:1`, 1), typeManifest, codeManifestInvalid},
		"no JSON":         {"{", typeManifest, codeManifestInvalid},
		"no config":       {`{"schemaVersion":2}`, typeManifest, codeManifestInvalid},
		"missing blob":    {`{"schemaVersion":2,"config":` + desc(missing, 10) + `}`, typeManifest, codeManifestBlob},
		"size of a blob":  {`{"schemaVersion":2,"config":` + desc(d.String(), 11) + `}`, typeManifest, codeManifestBlob},
		"digest":          {`{"schemaVersion":2,"config":` + desc("sha256:../x", 10) + `}`, typeManifest, codeManifestInvalid},
		"missing image":   {`{"schemaVersion":2,"manifests":[` + desc(missing, 10) + `]}`, typeIndex, codeManifestUnknown},
		"config in index": {`{"schemaVersion":2,"manifests":[],"config":` + desc(d.String(), 10) + `}`, typeIndex, codeManifestInvalid},
		"too large":       {good + strings.Repeat(" ", 10_000), typeManifest, codeSizeInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			status := 400
			switch m.code {
			case "":
				status = 201
			case codeSizeInvalid:
				status = 413
			}
			wantStatus(t, do(t, c, "PUT", url+"manifests/tag", strings.NewReader(m.body), int64(len(m.body)), "Content-Type", m.contentType), status, m.code)
		})
	}
}

func TestPathsCannotLeaveTheRegistry(t *testing.T) {
	dir := t.TempDir()
	addr := serveNetHTTP(t, openRegistry(t, testConfig(t, filepath.Join(dir, "reg"))))
	c := client(t)
	for _, p := range []string{
		"/v2/../x/manifests/t", "/v2/..%2f..%2fx/manifests/t", "/v2/_manifests/manifests/t", "/v2/a/_tags/manifests/t",
		"/v2/a/manifests/..%2f..%2fx", "/v2/a/manifests/.hidden", "/v2/A/manifests/t", "/v2//manifests/t", "/v2/a//b/manifests/t",
		"/v2/" + strings.Repeat("a", 256) + "/manifests/t", "/v2/a/blobs/uploads/..%2f..%2flock", "/v2/_catalog", "/v3/", "/v2x/",
	} {
		for _, method := range []string{"GET", "PUT", "PATCH", "DELETE"} {
			req, err := http.NewRequestWithContext(t.Context(), method, "http://"+addr+"/", strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			req.URL.Opaque = p
			resp, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode < 300 || resp.StatusCode >= 500 {
				t.Errorf("%s %s: status %d", method, p, resp.StatusCode)
			}
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Fatalf("something was written outside: %v", entries)
	}
}

func TestCollectFreesWhatNothingRefersTo(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	skip := time.Duration(0)
	cfg.Now = func() time.Time { return time.Now().Add(skip) }
	r := openRegistry(t, cfg)
	addr := serveNetHTTP(t, r)
	push := func(tag string, base v1.Image) v1.Image {
		layer, err := random.Layer(5000, types.OCILayer)
		if err != nil {
			t.Fatal(err)
		}
		img, err := mutate.AppendLayers(base, layer)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(ref(t, addr, "r:"+tag), img, options(t)...); err != nil {
			t.Fatal(err)
		}
		return img
	}
	base, err := random.Image(5000, 1)
	if err != nil {
		t.Fatal(err)
	}
	keep, gone := push("keep", base), push("gone", base)
	d, err := gone.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Delete(ref(t, addr, "r@"+d.String()), options(t)...); err != nil {
		t.Fatal(err)
	}
	if _, err := remote.Head(ref(t, addr, "r:gone"), options(t)...); err == nil {
		t.Fatal("the tag outlived its manifest")
	}
	if freed, err := r.Collect(t.Context(), time.Hour); err != nil || freed != 0 {
		t.Fatal("fresh blobs were swept", freed, err)
	}
	skip = 2 * time.Hour
	freed, err := r.Collect(t.Context(), time.Hour)
	if err != nil || freed < 5000 || freed > 8000 {
		t.Fatalf("freed %d bytes: %v", freed, err)
	}
	got, err := remote.Image(ref(t, addr, "r:keep"), options(t)...)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(got); err != nil {
		t.Fatal(err)
	}
	if a, _ := got.Digest(); a != must(keep.Digest()) {
		t.Fatal("another image is under the tag")
	}
}

func FuzzRoute(f *testing.F) {
	for _, s := range []string{"/v2/", "/v2/a/b/blobs/uploads/x", "/v2/a/manifests/t", "/v2/a/tags/list"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, p string) {
		r, ok := parseRoute(p)
		if ok && r.kind != "base" && validName(r.name) {
			if c := filepath.Clean("/repos/" + r.name); c != "/repos/"+r.name {
				t.Fatalf("%q escapes to %q", r.name, c)
			}
		}
	})
}

// Whoever may push may push what is about any image: the listing must stay one that
// clients read, and that fits into memory.
func TestListOfReferrersStaysShort(t *testing.T) {
	addr, c := serveNetHTTP(t, openRegistry(t, testConfig(t, t.TempDir()))), client(t)
	url := "http://" + addr + "/v2/r/"
	d := noiseDigest(t, 10)
	wantStatus(t, do(t, c, "POST", url+"blobs/uploads/?digest="+d.String(), noise(10), 10), 201, "")
	about := strings.Repeat("a", 64)
	push := func(kind, key, value string) {
		t.Helper()
		m := fmt.Sprintf(`{"schemaVersion":2,"artifactType":%q,"config":{"mediaType":"x/y","digest":%q,"size":10},"layers":[],"subject":{"mediaType":%q,"digest":"sha256:%s","size":1},"annotations":{%q:%q}}`,
			kind, d, typeManifest, about, key, value)
		wantStatus(t, do(t, c, "PUT", url+"manifests/"+fmt.Sprintf("t%d", len(m)), strings.NewReader(m), int64(len(m)), "Content-Type", typeManifest), 201, "")
	}
	push("a/short", "note", "kept")
	push("a/long", "note", strings.Repeat("x", 3<<20))
	push("a/long", strings.Repeat("x", 3<<20), "")
	push("a/"+strings.Repeat("x", 3<<20), "", "")
	list, err := io.ReadAll(do(t, c, "GET", url+"referrers/sha256:"+about, nil, 0).Body)
	if err != nil || len(list) > 4000 {
		t.Fatalf("%d bytes, %v", len(list), err)
	}
	if n := strings.Count(string(list), `"artifactType":"a/long"`); n != 2 || !strings.Contains(string(list), `{"note":"kept"}`) {
		t.Errorf("%s", list)
	}
}
