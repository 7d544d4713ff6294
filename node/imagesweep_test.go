package node

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/runtime"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// TestImagesThatNothingUsesAreLetGo has the image of a revision that was replaced go
// after its time, and those of revisions and sandboxes stay however old they are.
func TestImagesThatNothingUsesAreLetGo(t *testing.T) {
	w := newWorld(t) // its own sweep comes once in a quarter of an hour
	other, foreign := "sha256:"+strings.Repeat("1", 64), "sha256:"+strings.Repeat("2", 64)
	for _, d := range []string{other, foreign} {
		w.fake.AddImage(runtime.Image{Ref: "img", Digest: d, Config: api.ImageConfig{Entrypoint: []string{"/fn"}}})
	}
	has := func() []string {
		list, err := w.fake.Images(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	f := w.known("f")
	w.invoke(f)
	unused, now := map[string]time.Time{}, time.Now()
	sweep := func(after time.Duration) { w.n.sweepOnce(unused, now.Add(after)) }

	sweep(0)
	sweep(w.cfg.ImageKeep - time.Second)
	if got := has(); len(got) != 3 {
		t.Fatalf("too early: %v are left", got)
	}
	// Used again in between, an image has all its time anew.
	w.known("g", imageOf(other))
	sweep(w.cfg.ImageKeep)
	if got := has(); !slices.Equal(got, []string{imageDigest, other}) {
		t.Fatalf("%v are left", got)
	}
	w.do("DELETE", api.NodePathFunctions+"g.ns", nil)
	sweep(w.cfg.ImageKeep)
	sweep(2*w.cfg.ImageKeep - time.Second)
	if got := has(); len(got) != 2 {
		t.Fatalf("too early again: %v are left", got)
	}
	sweep(2 * w.cfg.ImageKeep)
	if got := has(); !slices.Equal(got, []string{imageDigest}) {
		t.Fatalf("%v are left", got)
	}
	if status, _, body := w.invoke(f); status != 200 {
		t.Errorf("its image is here: %d %s", status, body)
	}
}

func TestTheNodeSweepsImagesByItself(t *testing.T) {
	w := newWorld(t, func(w *world) { w.cfg.ImageKeep = 20 * time.Millisecond })
	w.eventually("an image that no revision has is gone", func() bool {
		list, err := w.fake.Images(t.Context())
		return err == nil && len(list) == 0
	})
}

func imageOf(digest string) func(*sealed.Descriptor) {
	return func(d *sealed.Descriptor) { d.Config.Image = digest }
}
