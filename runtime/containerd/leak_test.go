package containerd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/containers"

	"github.com/faasd-sec/faasd-sec/runtime"
)

// holdings are what a runtime holds of the machine for its sandboxes.
type holdings struct {
	fds, leases, containers, mounts, groups, dirs int
}

func (r *Runtime) holdings(t *testing.T) holdings {
	t.Helper()
	ctx, cancel := r.call(r.life)
	defer cancel()
	ls, err := r.client.LeasesService().List(ctx, "labels."+quoteFilter(labelSandbox))
	if err != nil {
		t.Fatal(err)
	}
	cs, err := r.client.ContainerService().List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	points, err := mountsBelow(r.cfg.RunDir)
	if err != nil {
		t.Fatal(err)
	}
	groups, err := r.cgroups.Group(filepath.Dir(r.cgroupPath("x"))).Children()
	if err != nil {
		t.Fatal(err)
	}
	dirs, err := os.ReadDir(filepath.Join(r.cfg.RunDir, "sandboxes"))
	if err != nil {
		t.Fatal(err)
	}
	return holdings{fds: handlesOpen(t), leases: len(ls), containers: len(cs), mounts: len(points), groups: len(groups), dirs: len(dirs)}
}

// handlesOpen counts this process's descriptors of kinds that a sandbox has:
// namespaces, processes, and directories or mounts opened as O_PATH.
func handlesOpen(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && (strings.HasPrefix(target, "mnt:") || strings.Contains(target, "pidfd") || strings.HasPrefix(target, "/")) {
			n++
		}
	}
	return n
}

func TestASandboxTakesAllItHeldWithIt(t *testing.T) { eachBind(t, aSandboxTakesAllItHeldWithIt) }

func aSandboxTakesAllItHeldWithIt(t *testing.T, b *bench) {
	r := b.open(t)
	img := b.basic(t, r)
	cycle := func() {
		var all []runtime.Sandbox
		for range 2 {
			s, a := b.bind(t, r, b.spec(t, r, img))
			if err := a.Launch("/bin/fn", "say"); err != nil {
				t.Fatal(err)
			}
			all = append(all, s)
		}
		waiting, _ := b.blank(t, r, b.spec(t, r, img)) // one that never gets a function
		all = append(all, waiting)
		failed, _ := b.blank(t, r, b.spec(t, r, img)) // one whose bind fails half-way
		bad := b.spec(t, r, img)
		bad.ID = failed.ID()
		bad.Image.Digest = "sha256:" + strings.Repeat("0", 64)
		if err := failed.Bind(t.Context(), bad); err == nil {
			t.Fatal("an unknown image was bound")
		}
		all = append(all, failed)
		for _, s := range all {
			if err := s.Remove(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	cycle() // makes what is kept for all, such as user namespaces
	before := r.holdings(t)
	for range 3 {
		cycle()
	}
	after := r.holdings(t)
	if after.fds < before.fds { // the test's own connections, closed meanwhile
		after.fds = before.fds
	}
	if after != before {
		t.Errorf("held before %+v, and after %+v", before, after)
	}
}

func TestABoundSandboxIsRecordedByItsFunction(t *testing.T) {
	b := need(t)
	r := b.open(t)
	spec := b.spec(t, r, b.basic(t, r))
	spec.Function, spec.Revision = "greet.team", "abcdef"
	s, _ := b.bind(t, r, spec)
	defer s.Remove(t.Context(), 0)
	<-s.(*Sandbox).settled
	ctx, cancel := r.call(r.life)
	defer cancel()
	var c containers.Container
	c, err := r.client.ContainerService().Get(ctx, s.ID())
	if err != nil {
		t.Fatal(err)
	}
	if c.Labels[labelFunction] != "greet.team" || c.Labels[labelRevision] != "abcdef" || c.Labels[labelBlank] != "" {
		t.Errorf("labels %v", c.Labels)
	}
	// The lease alone keeps the image's layers from the collector.
	if err := r.Forget(t.Context(), spec.Image.Digest); err != nil {
		t.Fatal(err)
	}
	if _, err := r.client.SnapshotService(r.cfg.Snapshotter).Stat(ctx, viewKey(spec.Image.Digest)); err != nil {
		t.Errorf("the layers of a running sandbox: %v", err)
	}
}
