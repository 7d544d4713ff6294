package e2e

import (
	"archive/tar"
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/faasd-sec/faasd-sec/api"
)

// pushHome pushes the test function's image with a user by name who has a home.
func (c *cluster) pushHome(t testing.TB, repo string) {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, h := range []tar.Header{
		{Name: "etc/passwd", Mode: 0o644, Typeflag: tar.TypeReg, Size: int64(len(passwd))},
		{Name: "home/app/", Mode: 0o755, Typeflag: tar.TypeDir, Uid: 1000, Gid: 1000},
	} {
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			io.WriteString(tw, passwd)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	c.pushImageWith(t, repo, v1.Config{Entrypoint: []string{"/fn"}, User: "app"}, layer)
}

const passwd = "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n"

func TestAPlainFunctionsRootIsWritableWhereItMayBe(t *testing.T) {
	c := up(t, 1)
	c.pushHome(t, "plain/home")
	for fn, readOnly := range map[string]bool{"open": false, "shut": true} {
		if status, b := c.putPlain(t, fn, api.Plain{Image: "plain/home", ReadOnlyRoot: readOnly, Limits: &api.PlainAmounts{CPU: "250m", Memory: "64Mi"}}); status != http.StatusOK {
			t.Fatalf("%d %s", status, b)
		}
		status, b := c.plainly(t, &http.Client{}, "POST", "/function/"+fn+"/write?path=/home/app/x", strings.NewReader("1"))
		if want := map[bool]int{false: 200, true: 403}[readOnly]; status != want || !readOnly && b != "1000:1000" || readOnly && !strings.Contains(b, "read-only file system") {
			t.Errorf("%s: %d %s", fn, status, b)
		}
		if got := c.call(t, fn+"/write?path=/tmp/x", "1"); got != "1000:1000" {
			t.Errorf("%s: /tmp: %s", fn, got)
		}
	}
	// It is as large as was said, and no larger: a quarter of the memory.
	if got := c.call(t, "open/fill?path=/home/app/big", ""); !strings.Contains(got, "no space left on device") {
		t.Errorf("the writable root: %s", got)
	}
	// It has a network namespace of its own, with nothing in it but the loopback.
	dev := c.call(t, "open/read?path=/proc/net/dev", "")
	if n := strings.Count(dev, ":"); n != 1 || !strings.Contains(dev, "lo:") {
		t.Errorf("interfaces:\n%s", dev)
	}
}
