package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"go.uber.org/goleak"

	"github.com/faasd-sec/faasd-sec/api"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"))
}

// tree writes files: a name that ends in '/' is a directory, one with " -> " a
// link, one that begins with '*' may be executed.
func tree(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		mode := os.FileMode(0o644)
		if n, ok := strings.CutPrefix(name, "*"); ok {
			name, mode = n, 0o755
		}
		if from, to, ok := strings.Cut(name, " -> "); ok {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, from)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(to, filepath.Join(dir, from)); err != nil {
				t.Fatal(err)
			}
			continue
		}
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
}

func testBuilder(t *testing.T, dir string) *Builder {
	b := DefaultBuilder(dir)
	b.BaseScript = "../scripts/base-image.sh"
	return b
}

func mustBuild(t *testing.T, b *Builder, d Build) *Image {
	t.Helper()
	img, err := b.Build(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := img.Close(); err != nil {
			t.Error(err)
		}
	})
	return img
}

func digestOf(t *testing.T, img *Image) string {
	t.Helper()
	d, err := img.DigestString()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// valid saves the image and has the saved one checked whole, as a mutated one
// in memory is not compared well.
func valid(t *testing.T, img *Image) {
	t.Helper()
	p := filepath.Join(t.TempDir(), "image.tar")
	if err := img.Save(p, "x:y"); err != nil {
		t.Fatal(err)
	}
	saved, err := OpenArchive(p)
	if err != nil {
		t.Fatal(err)
	}
	defer saved.Close()
	if err := validate.Image(saved.Image); err != nil {
		t.Fatal(err)
	}
}

// contents are the last layer's entries: name to "mode text" or "-> target".
func contents(t *testing.T, img v1.Image) map[string]string {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	r, err := layers[len(layers)-1].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	out := map[string]string{}
	in := tar.NewReader(r)
	for {
		h, err := in.Next()
		if err == io.EOF {
			return out
		} else if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || !h.ModTime.Equal(epoch) || h.Uname != "" {
			t.Errorf("%s: owner %d:%d, time %v", h.Name, h.Uid, h.Gid, h.ModTime)
		}
		b, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeSymlink {
			out[h.Name] = "-> " + h.Linkname
			continue
		}
		out[h.Name] = fmt.Sprintf("%o %s", h.Mode, b)
	}
}

func TestCopiesArePlacedWithFixedOwnersModesAndTimes(t *testing.T) {
	dir := t.TempDir()
	tree(t, dir, map[string]string{"app/main.py": "m", "*app/run": "r", "app/sub/x": "x", "app/.git/config": "g", "conf": "c", "app/l -> sub/x": ""})
	img := mustBuild(t, testBuilder(t, dir), Build{From: "scratch", Copy: []Copy{
		{Src: "app", Dst: "/srv"}, {Src: "conf", Dst: "/etc/app/"}, {Src: "./conf", Dst: "/etc/app/secret", Mode: 0o400}}})
	want := map[string]string{"srv/": "755 ", "srv/main.py": "644 m", "srv/run": "755 r", "srv/sub/": "755 ", "srv/sub/x": "644 x",
		"srv/l": "-> sub/x", "etc/app/conf": "644 c", "etc/app/secret": "400 c"}
	got := contents(t, img.Image)
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s: %q, want %q", k, got[k], v)
		}
	}
	if len(got) != len(want) {
		t.Errorf("got %v", got)
	}
	valid(t, img)
}

func TestSameInputGivesSameDigest(t *testing.T) {
	d := Build{From: "scratch", Go: "src", Copy: []Copy{{Src: "data", Dst: "/data"}},
		Env: map[string]string{"B": "2", "A": "1", "C": "3"}, Labels: map[string]string{"x": "y", "a": "b"}, Cmd: []string{"go"}}
	files := map[string]string{"src/main.go": "package main\nfunc main() { println(1) }\n", "src/go.mod": "module x\ngo 1.24\n",
		"data/b": "b", "data/a": "a", "data/c/d": "d"}
	var digests []string
	for i := range 2 {
		dir := filepath.Join(t.TempDir(), fmt.Sprint("elsewhere", i))
		tree(t, dir, files)
		if i == 1 { // another umask and other times
			when := time.Unix(1e9, 0)
			if err := errors.Join(os.Chmod(filepath.Join(dir, "data/b"), 0o664), os.Chtimes(filepath.Join(dir, "data/a"), when, when)); err != nil {
				t.Fatal(err)
			}
		}
		digests = append(digests, digestOf(t, mustBuild(t, testBuilder(t, dir), d)))
	}
	if digests[0] != digests[1] {
		t.Fatalf("two builds differ: %v", digests)
	}
	dir := t.TempDir()
	files["data/a"] = "A"
	tree(t, dir, files)
	if digestOf(t, mustBuild(t, testBuilder(t, dir), d)) == digests[0] {
		t.Fatal("other input gives the same digest")
	}
}

func TestGoProgramBecomesTheEntrypointAndIsStatic(t *testing.T) {
	dir := t.TempDir()
	tree(t, dir, map[string]string{"main.go": "package main\nimport \"fmt\"\nfunc main() { fmt.Print(\"hi\") }\n", "go.mod": "module x\ngo 1.24\n"})
	img := mustBuild(t, testBuilder(t, dir), Build{From: "scratch", Go: "."})
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c := cf.Config
	if !slices.Equal(c.Entrypoint, []string{FunctionBinary}) || c.User != DefaultUser || c.WorkingDir != "/" || cf.OS != "linux" || !slices.Contains(c.Env, defaultPath) {
		t.Fatalf("%+v", c)
	}
	_, bin, _ := strings.Cut(contents(t, img.Image)["function-bin"], " ")
	p := filepath.Join(t.TempDir(), "bin")
	if err := os.WriteFile(p, []byte(bin), 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), p).Output()
	if err != nil || string(out) != "hi" || strings.Contains(bin, dir) {
		t.Fatalf("%q, %v; names the build directory: %v", out, err, strings.Contains(bin, dir))
	}
}

func TestConfigurationIsPutOverTheBases(t *testing.T) {
	dir := t.TempDir()
	tree(t, dir, map[string]string{"f": "f", "g": "g"})
	b := testBuilder(t, dir)
	base := mustBuild(t, b, Build{From: "scratch", Copy: []Copy{{Src: "f", Dst: "/f"}}, Entrypoint: []string{"/e"}, Cmd: []string{"c"},
		Env: map[string]string{"A": "1", "B": "2"}, User: "7", WorkDir: "/w", Labels: map[string]string{"l": "1", "m": "1"}})
	// A base with Docker's media types, as most public ones are.
	docker := &Image{Image: mutate.ConfigMediaType(mutate.MediaType(base.Image, types.DockerManifestSchema2), types.DockerConfigJSON)}
	if err := docker.Save(filepath.Join(dir, "base.tar"), "base:v1"); err != nil {
		t.Fatal(err)
	}
	img := mustBuild(t, b, Build{From: "archive:base.tar", Copy: []Copy{{Src: "g", Dst: "/g"}}, Cmd: []string{"d"},
		Env: map[string]string{"B": "3"}, Labels: map[string]string{"m": "2"}})
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c := cf.Config
	got := fmt.Sprintf("%v %v %v %v %v %v", c.Entrypoint, c.Cmd, c.Env, c.User, c.WorkingDir, c.Labels)
	if want := "[/e] [d] [" + defaultPath + " A=1 B=3] 7 /w map[l:1 m:2]"; got != want {
		t.Fatalf("got %s, want %s", got, want)
	}
	m, err := img.Manifest()
	if err != nil || m.MediaType != types.OCIManifestSchema1 || m.Config.MediaType != types.OCIConfigJSON || len(m.Layers) != 3 {
		t.Fatalf("%+v, %v", m, err)
	}
	valid(t, img)
	again := mustBuild(t, b, Build{From: "archive:base.tar", Entrypoint: []string{"/x"}})
	cf, err = again.ConfigFile()
	if err != nil || cf.Config.Cmd != nil {
		t.Fatalf("a new entrypoint got the base's arguments: %v %v", cf.Config.Cmd, err)
	}
}

func TestNothingOutsideTheBuildDirectoryGetsIn(t *testing.T) {
	outer := t.TempDir()
	dir := filepath.Join(outer, "build")
	tree(t, outer, map[string]string{"secret": "s", "build/ok": "o", "build/d/x": "x"})
	tree(t, dir, map[string]string{"up -> ../secret": "", "abs -> /etc/passwd": "", "updir -> ..": "", "d/up -> ../../secret": ""})
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		copy  Copy
		field string
	}{
		"dots":           {Copy{Src: "../secret", Dst: "/x"}, "build.copy[0].src"},
		"inner dots":     {Copy{Src: "d/../../secret", Dst: "/x"}, "build.copy[0].src"},
		"absolute":       {Copy{Src: "/etc/passwd", Dst: "/x"}, "build.copy[0].src"},
		"empty":          {Copy{Src: "", Dst: "/x"}, "build.copy[0].src"},
		"NUL":            {Copy{Src: "ok\x00", Dst: "/x"}, "build.copy[0].src"},
		"link up":        {Copy{Src: "up", Dst: "/x"}, "build.copy[0].src"},
		"link absolute":  {Copy{Src: "abs", Dst: "/x"}, "build.copy[0].src"},
		"through a link": {Copy{Src: "updir/secret", Dst: "/x"}, "build.copy[0].src"},
		"link in a tree": {Copy{Src: "d", Dst: "/x"}, "build.copy[0].src"},
		"pipe":           {Copy{Src: "pipe", Dst: "/x"}, "build.copy[0].src"},
		"missing":        {Copy{Src: "nothing", Dst: "/x"}, "build.copy[0].src"},
		"dst relative":   {Copy{Src: "ok", Dst: "x"}, "build.copy[0].dst"},
		"dst dots":       {Copy{Src: "ok", Dst: "/a/../../x"}, "build.copy[0].dst"},
		"dst root":       {Copy{Src: "ok", Dst: "//"}, ""},
		"dst ours":       {Copy{Src: "ok", Dst: "/a/.././.faasd-sec/agent"}, "build.copy[0].dst"},
		"dst reserved":   {Copy{Src: "ok", Dst: "/.faasd-sec/"}, "build.copy[0].dst"},
		"mode":           {Copy{Src: "ok", Dst: "/x", Mode: 0o4755}, "build.copy[0].mode"},
	} {
		t.Run(name, func(t *testing.T) {
			img, err := testBuilder(t, dir).Build(t.Context(), Build{From: "scratch", Copy: []Copy{c.copy}})
			if c.field == "" {
				if err != nil {
					t.Fatal(err)
				}
				defer img.Close()
				if got := contents(t, img.Image); got["ok"] != "644 o" {
					t.Fatal(got)
				}
				return
			}
			var e *api.Error
			if !errors.As(err, &e) || e.Code != api.CodeInvalid || e.Field != c.field || e.Remedy == "" {
				t.Fatalf("got %v, want an error about %s", err, c.field)
			}
		})
	}
}

func TestErrorsNameTheFieldAndTheRemedy(t *testing.T) {
	dir := t.TempDir()
	tree(t, dir, map[string]string{"bad/main.go": "package main\nfunc main() { nonsense }\n", "bad/go.mod": "module x\n", "base.tar": "no tar"})
	for field, d := range map[string]Build{
		"build.from":    {},
		"build.from ":   {From: "debian:../../x"},
		"build.from  ":  {From: "debian:--help"},
		"build.from   ": {From: "archive:base.tar"},
		"build.from -":  {From: "archive:none.tar"},
		"build.from --": {From: "oci:none"},
		"build.from *":  {From: "alpine:3"}, // no puller
		"build.go":      {From: "scratch", Go: "../x"},
		"build.go ":     {From: "scratch", Go: "none"},
		"build.go  ":    {From: "scratch", Go: "bad"},
		"build.env":     {From: "scratch", Env: map[string]string{"A=B": ""}},
		"build.env.A":   {From: "scratch", Env: map[string]string{"A": "\x00"}},
		"build.workdir": {From: "scratch", WorkDir: "w"},
	} {
		_, err := testBuilder(t, dir).Build(t.Context(), d)
		var e *api.Error
		if !errors.As(err, &e) || e.Code != api.CodeInvalid || e.Field != strings.TrimRight(field, " -*") || e.Remedy == "" {
			t.Errorf("%q: got %v", field, err)
		}
	}
	left, err := filepath.Glob(filepath.Join(os.TempDir(), "faasd-sec-build-*"))
	if err != nil || len(left) != 0 {
		t.Errorf("refused builds left %v", left)
	}
}

func TestBuildTellsItsSteps(t *testing.T) {
	dir := t.TempDir()
	tree(t, dir, map[string]string{"f": "f"})
	b := testBuilder(t, dir)
	var steps []string
	b.Progress = func(s Step) { steps = append(steps, s.Name) }
	mustBuild(t, b, Build{From: "scratch", Copy: []Copy{{Src: "f", Dst: "/f"}}})
	if !slices.Equal(steps, []string{"base", "copy", "pack"}) {
		t.Fatal(steps)
	}
}
