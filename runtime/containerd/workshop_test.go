package containerd

import (
	"fmt"
	"os"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/runtime/runtimetest"
)

// workshopMounts are the mounts of the namespace in which trees are composed.
func workshopMounts(t *testing.T, w *workshop) []string {
	t.Helper()
	var tid int
	if err := w.thread.here(func() error { tid = unix.Gettid(); return nil }); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/mountinfo", tid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

// Nothing of the host's is kept busy by the place where trees are composed, and
// nothing of the trees stays in it, whether they could be composed or not.
func TestTheWorkshopHoldsNothing(t *testing.T) {
	with := *need(t)
	with.shim, with.older = with.own, true
	r := with.open(t)
	needBind(t, r)
	const own = 2 // its root, and the /dev of all
	if m := workshopMounts(t, r.shop); len(m) != own {
		t.Errorf("at first: %q", m)
	}
	s, _ := with.bind(t, r, with.spec(t, r, with.ours(t, r)))
	big := with.spec(t, r, with.ours(t, r))
	big.Resources.Storage = 1 << 20
	written, _ := with.bind(t, r, big)
	rng, err := r.ranges.lend()
	if err != nil {
		t.Fatal(err)
	}
	defer r.ranges.giveBack(rng.base)
	fd, err := idmapped(t.TempDir(), rng.userns)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	plain, err := unix.Open("/etc", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(plain)
	if root, err := r.shop.overlay([]int{fd, plain}, nil); err == nil {
		_ = unix.Close(root)
		t.Error("a directory that is no mount became a layer")
	}
	if m := workshopMounts(t, r.shop); len(m) != own {
		t.Errorf("at last: %q", m)
	}
	for _, id := range []string{s.ID(), written.ID()} {
		if points, err := mountsBelow(r.dir(id)); err != nil || len(points) != 0 {
			t.Errorf("mounts on the host: %q, %v", points, err)
		}
	}
}

func TestBlanksTakeImagesOfManyLayersOnOlderKernels(t *testing.T) {
	with := *need(t)
	with.shim, with.older = with.own, true
	r := with.open(t)
	needBind(t, r)
	layers := [][]runtimetest.File{with.program(t)}
	for i := 1; i < 120; i++ {
		layers = append(layers, []runtimetest.File{
			{Path: "layer/top", Body: fmt.Appendf(nil, "%d", i), Mode: 0o644}, {Path: fmt.Sprintf("layer/%d", i), Body: []byte("x"), Mode: 0o644}})
	}
	_, run := boundWay().begin(t, &with, r, with.spec(t, r, load(t, r, ocispec.ImageConfig{}, layers...)))
	if got := run("cat", "/layer/top"); !strings.HasPrefix(got, "119") {
		t.Errorf("the top one says %q", got)
	}
}
