package image

import (
	"archive/tar"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/faasd-sec/faasd-sec/api"
)

// needDebian skips, or fails where everything is required, on a machine that
// cannot make or enter a base of packages.
func needDebian(t *testing.T) {
	t.Helper()
	missing := ""
	if os.Getuid() != 0 {
		missing = "root, for chroot"
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		missing = "apt"
	}
	if missing == "" {
		return
	}
	if os.Getenv("REQUIRE_ALL") == "1" {
		t.Fatalf("needs %s", missing)
	}
	t.Skipf("needs %s", missing)
}

// unpack writes an image's files into a new directory, as they are.
func unpack(t *testing.T, img v1.Image) string {
	t.Helper()
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		r, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		in := tar.NewReader(r)
		for {
			h, err := in.Next()
			if err == io.EOF {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			if err := place(root, h, in); err != nil {
				t.Fatalf("%s: %v", h.Name, err)
			}
		}
		r.Close()
	}
	return dir
}

func place(root *os.Root, h *tar.Header, body io.Reader) error {
	name := strings.TrimSuffix(h.Name, "/")
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err := root.MkdirAll(name, 0o755); err != nil {
			return err
		}
		return root.Chmod(name, os.FileMode(h.Mode).Perm())
	case tar.TypeSymlink:
		return root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		return root.Link(h.Linkname, name)
	}
	f, err := root.OpenFile(name, os.O_CREATE|os.O_WRONLY, os.FileMode(h.Mode).Perm())
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, body); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// inside runs a program of an unpacked image as the image's user.
func inside(t *testing.T, dir string, argv ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "chroot", append([]string{"--userspec=10001:10001", dir}, argv...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v: %s", argv, err, out)
	}
	return string(out)
}

func TestPythonBaseRunsWithItsModulesCompiled(t *testing.T) {
	needDebian(t)
	dir := t.TempDir()
	tree(t, dir, map[string]string{"main.py": "import argparse, sys; print('hello from', sys.version_info[0], argparse.__cached__)\n"})
	b := testBuilder(t, dir)
	d := Build{From: "debian:python3-minimal", Copy: []Copy{{Src: "main.py", Dst: "/app/"}}, Entrypoint: []string{"python3", "/app/main.py"}}
	img := mustBuild(t, b, d)
	root := unpack(t, img.Image)
	out := inside(t, root, "python3", "-v", "/app/main.py")
	if !strings.Contains(out, "hello from 3 /usr/lib/python3") {
		t.Fatal(out)
	}
	for line := range strings.Lines(out) {
		if strings.Contains(line, "code object from '/usr/lib") && !strings.Contains(line, ".pyc'") {
			t.Errorf("compiled at start: %s", line)
		}
	}
	if digestOf(t, mustBuild(t, b, d)) != digestOf(t, img) {
		t.Fatal("two builds differ")
	}
	if st, err := os.Stat(filepath.Join(root, "tmp")); err != nil || st.Mode().Perm() != 0o777 {
		t.Fatal(st.Mode(), err)
	}
	if _, err := os.Stat(filepath.Join(root, "usr/share/man")); err == nil {
		t.Fatal("manual pages are in it")
	}
}

func TestShellBaseRunsAScript(t *testing.T) {
	needDebian(t)
	dir := t.TempDir()
	tree(t, dir, map[string]string{"*count.sh": "#!/bin/sh\necho a b c | wc -w; id -un\n"})
	img := mustBuild(t, testBuilder(t, dir), Build{From: "debian:busybox-static", Copy: []Copy{{Src: "count.sh", Dst: "/count.sh"}}})
	if out := inside(t, unpack(t, img.Image), "/count.sh"); strings.TrimSpace(out) != "3\napp" {
		t.Fatalf("%q", out)
	}
}

func TestUnknownPackageIsNamed(t *testing.T) {
	needDebian(t)
	_, err := testBuilder(t, t.TempDir()).Build(t.Context(), Build{From: "debian:no-such-package-anywhere"})
	if api.CodeOf(err) != api.CodeInvalid || !strings.Contains(err.Error(), "no-such-package-anywhere") {
		t.Fatal(err)
	}
}
