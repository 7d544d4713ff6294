package image

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

func TestArchiveKeepsTheImage(t *testing.T) {
	dir := t.TempDir()
	tree(t, dir, map[string]string{"f": "f"})
	img := mustBuild(t, testBuilder(t, dir), Build{From: "scratch", Copy: []Copy{{Src: "f", Dst: "/f"}}})
	a, b := filepath.Join(dir, "a.tar"), filepath.Join(dir, "b.tar")
	for _, p := range []string{a, b} {
		if err := img.Save(p, "hello:v1"); err != nil {
			t.Fatal(err)
		}
	}
	x, _ := os.ReadFile(a)
	y, _ := os.ReadFile(b)
	if len(x) == 0 || !bytes.Equal(x, y) {
		t.Fatal("two archives of one image differ")
	}
	got, err := OpenArchive(a)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if err := validate.Image(got.Image); err != nil {
		t.Fatal(err)
	}
	if digestOf(t, got) != digestOf(t, img) {
		t.Fatal("another digest came back")
	}
	if err := img.Save(filepath.Join(dir, "none", "x.tar"), "x:y"); err == nil {
		t.Fatal("saved into nowhere")
	}
}

func TestDockerSaveIsOpenedToo(t *testing.T) {
	img, err := random.Image(1000, 2)
	if err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(t.TempDir(), "docker.tar")
	if err := tarball.WriteToFile(p, name.MustParseReference("x:y"), img); err != nil {
		t.Fatal(err)
	}
	got, err := OpenArchive(p)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if err := validate.Image(got.Image); err != nil {
		t.Fatal(err)
	}
}

func TestDamagedArchiveIsRefused(t *testing.T) {
	dir := t.TempDir()
	img := mustBuild(t, testBuilder(t, dir), Build{From: "scratch", WorkDir: "/marker"})
	p := filepath.Join(dir, "a.tar")
	if err := img.Save(p, "hello:v1"); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"cut off": good[:len(good)/2], "empty": nil, "noise": []byte("noise"),
		"config": bytes.Replace(good, []byte("/marker"), []byte("/forged"), 1),
	} {
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := OpenArchive(p)
		if err == nil {
			err = validate.Image(got.Image)
			got.Close()
		}
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestBaseFromALayoutDirectory(t *testing.T) {
	dir := t.TempDir()
	p, err := layout.Write(filepath.Join(dir, "lay"), empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for _, arch := range []string{"arm64", "amd64"} {
		img, err := random.Image(100, 1)
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.ConfigFile(img, &v1.ConfigFile{OS: "linux", Architecture: arch, Config: v1.Config{User: arch},
			RootFS: must(img.ConfigFile()).RootFS}); err != nil {
			t.Fatal(err)
		}
		if err := p.AppendImage(img, layout.WithPlatform(v1.Platform{OS: "linux", Architecture: arch})); err != nil {
			t.Fatal(err)
		}
		want[arch] = arch
	}
	for arch := range want {
		b := testBuilder(t, dir)
		b.Arch = arch
		cf, err := mustBuild(t, b, Build{From: "oci:lay"}).ConfigFile()
		if err != nil || cf.Config.User != arch {
			t.Fatalf("%s: got the image of %q, %v", arch, cf.Config.User, err)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
