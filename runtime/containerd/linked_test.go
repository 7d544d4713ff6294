package containerd

import (
	"os"
	"path/filepath"
	"testing"
)

// /var/run is a link to /run on most machines.
func TestARunDirectoryMayBeReachedByALink(t *testing.T) {
	eachShim(t, aRunDirectoryMayBeReachedByALink)
}

func aRunDirectoryMayBeReachedByALink(t *testing.T, b *bench) {
	link := filepath.Join(b.dir, "l")
	if err := os.Symlink(b.dir, link); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(link) }) // after the runtime's end
	cfg := b.config(t)
	cfg.RunDir = filepath.Join(link, "r", cfg.Namespace)
	r := b.openWith(t, cfg)
	img := b.basic(t, r)
	spec := b.spec(t, r, img)
	s, _ := b.start(t, r, spec)
	bound, a := b.bind(t, r, b.spec(t, r, img))
	if err := a.Launch("/bin/fn", "say"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), 0); err != nil {
		t.Error(err)
	}
	if err := bound.Remove(t.Context(), 0); err != nil {
		t.Error(err)
	}
	for _, dir := range []string{spec.SocketDir, r.dir(s.ID()), r.dir(bound.ID())} {
		if _, err := os.Lstat(dir); err == nil {
			t.Errorf("%s is left", dir)
		}
	}
	points, err := mountsBelow(filepath.Join(b.dir, "r", cfg.Namespace))
	if err != nil || len(points) > 0 {
		t.Errorf("mounts left: %v, %v", points, err)
	}
}
