package containerd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/runtime"
	"github.com/faasd-sec/faasd-sec/runtime/runtimetest"
)

// way is one of the two ways to a sandbox with a function.
type way struct {
	name string
	// begin makes it; run then runs /bin/fn with arguments as the function.
	begin func(t *testing.T, b *bench, r *Runtime, spec runtime.Spec) (runtime.Sandbox, func(args ...string) string)
}

func plainWay() way {
	return way{"plain", func(t *testing.T, b *bench, r *Runtime, spec runtime.Spec) (runtime.Sandbox, func(args ...string) string) {
		s, a := b.start(t, r, spec)
		return s, func(args ...string) string {
			t.Helper()
			pid, err := a.Start(false, append([]string{"/bin/fn"}, args...)...)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.AdmitLauncher(t.Context(), pid); err != nil {
				t.Fatal(err)
			}
			ans, err := a.Wait()
			if err != nil {
				t.Fatal(err)
			}
			return ans.Output + ans.Status
		}
	}}
}

func boundWay() way {
	return way{"bound", func(t *testing.T, b *bench, r *Runtime, spec runtime.Spec) (runtime.Sandbox, func(args ...string) string) {
		s, a := b.bind(t, r, spec)
		return s, func(args ...string) string {
			t.Helper()
			if err := a.Launch(append([]string{"/bin/fn"}, args...)...); err != nil {
				t.Fatal(err)
			}
			ans, err := a.Wait()
			if err != nil {
				t.Fatal(err)
			}
			return ans.Output + ans.Status
		}
	}}
}

// eachWay runs a test with both shims and in all ways of starting that there are:
// where the kernel cannot bind, there is one.
func eachWay(t *testing.T, test func(t *testing.T, b *bench, r *Runtime, w way)) {
	eachShim(t, func(t *testing.T, b *bench) {
		for _, w := range []way{plainWay(), boundWay()} {
			t.Run(w.name, func(t *testing.T) {
				r := b.open(t)
				if w.name == "bound" {
					needBind(t, r)
				}
				test(t, b, r, w)
			})
		}
	})
	t.Run("older", func(t *testing.T) {
		with := *need(t)
		with.shim, with.older = with.own, true
		r := with.open(t)
		needBind(t, r)
		test(t, &with, r, boundWay())
	})
}

// ours is an image with a directory that is the function's.
func (b *bench) ours(t testing.TB, r *Runtime) runtime.Image {
	t.Helper()
	return load(t, r, ocispec.ImageConfig{User: "1000:1000"}, b.program(t), []runtimetest.File{
		{Path: "data", Dir: true, Mode: 0o755, UID: 1000},
		{Path: "data/old", Body: []byte("as it was"), Mode: 0o644, UID: 1000},
		{Path: "data/gone", Body: []byte("to be removed"), Mode: 0o644, UID: 1000},
	})
}

func TestTheWritableLayerHasItsSizeAndNoMore(t *testing.T) { eachWay(t, theWritableLayerHasItsSize) }

func theWritableLayerHasItsSize(t *testing.T, b *bench, r *Runtime, w way) {
	const size = 8 << 20
	img := b.ours(t, r)
	spec := b.spec(t, r, img)
	spec.Resources.Storage = size
	s, run := w.begin(t, b, r, spec)
	var filled int64
	out := run("fill", "/data/fill")
	if _, err := fmt.Sscanf(out, "filled %d", &filled); err != nil || filled > size || filled < size-128<<10 || !strings.Contains(out, "no space left") {
		t.Errorf("filling %d bytes: %s", size, out)
	}
	// It is memory, and counted as that.
	if u, err := s.Usage(t.Context()); err != nil || u.Memory < filled {
		t.Errorf("usage %+v, %v, after %d bytes were written", u, err, filled)
	}
	// Where there is no space there is none for what was there before either, and
	// afterwards there is again.
	for _, c := range []struct{ args, want string }{
		{"put /data/old changed 1", "no space left"},
		{"remove /data/fill", "exit status 0"},
		{"put /data/old changed 1", "exit status 0"},
		{"cat /data/old", "changed"},
		{"remove /data/gone", "exit status 0"},
		{"ls /data/gone", "no such file"},
		{"put /data/new new 1", "exit status 0"},
		{"ls /data/new", "1000:1000"},
		{"put /new x 1", "permission denied"}, // the root directory is not the function's
		{"put /etc/hosts x 1", "permission denied"},
		{"put /bin/fn x 1", "permission denied"},
		{"ls /", "/ 40755 0:0"},
	} {
		if got := run(strings.Fields(c.args)...); !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", c.args, got, c.want)
		}
	}
	// Another sandbox of the image sees nothing of it.
	other := b.spec(t, r, img)
	other.Resources.Storage = size
	o, look := w.begin(t, b, r, other)
	if got := look("cat", "/data/old") + look("cat", "/data/gone") + look("ls", "/data/new"); !strings.Contains(got, "as it was") || !strings.Contains(got, "to be removed") || !strings.Contains(got, "no such file") {
		t.Errorf("in another sandbox: %s", got)
	}
	for _, s := range []runtime.Sandbox{s, o} {
		if err := s.Remove(t.Context(), 0); err != nil {
			t.Error(err)
		}
	}
	if points, err := mountsBelow(r.cfg.RunDir + "/sandboxes"); err != nil || len(points) != 0 {
		t.Errorf("mounts that remain: %q, %v", points, err)
	}
}

func TestWithoutStorageTheRootIsReadOnly(t *testing.T) { eachWay(t, theRootIsReadOnly) }

func theRootIsReadOnly(t *testing.T, b *bench, r *Runtime, w way) {
	s, run := w.begin(t, b, r, b.spec(t, r, b.ours(t, r)))
	if got := run("put", "/data/old", "x", "1"); !strings.Contains(got, "read-only file system") {
		t.Errorf("writing to a read-only root: %q", got)
	}
	if err := s.Remove(t.Context(), 0); err != nil {
		t.Error(err)
	}
}

// Kernels before 6.15 compose from attached layers.
func TestTheWritableLayerOfAttachedLayers(t *testing.T) {
	b := need(t)
	r := b.open(t)
	r.compose.detached = false
	spec := b.spec(t, r, b.ours(t, r))
	spec.Resources.Storage = 2 << 20
	_, run := plainWay().begin(t, b, r, spec)
	if got := run("fill", "/data/fill"); !strings.Contains(got, "no space left") || !strings.Contains(got, "filled 2") && !strings.Contains(got, "filled 19") {
		t.Errorf("filling 2 MiB: %q", got)
	}
	if got := run("cat", "/data/old"); !strings.Contains(got, "as it was") {
		t.Errorf("the image's file: %q", got)
	}
	// Nothing but the root itself is mounted for it.
	if points, err := mountsBelow(r.dir(spec.ID)); err != nil || len(points) != 1 {
		t.Errorf("mounts: %q, %v", points, err)
	}
}

func TestAWritableLayerOfAnotherSizeEndsTheStart(t *testing.T) {
	b := need(t)
	r := b.open(t)
	rng, err := r.ranges.lend()
	if err != nil {
		t.Fatal(err)
	}
	defer r.ranges.giveBack(rng.base)
	up, err := newUpper(1<<20, rng.base)
	if err != nil {
		t.Fatal(err)
	}
	defer up.close()
	up.bytes = 2 << 20 // what was asked for, and what the kernel has, differ
	if err := up.check(up.fs); !errors.Is(err, runtime.ErrLimits) {
		t.Errorf("a layer of half its size: %v, want ErrLimits", err)
	}
}

func TestStorageIsPartOfMemory(t *testing.T) {
	b := need(t)
	r := b.open(t)
	img := b.ours(t, r)
	for name, res := range map[string]api.Resources{
		"more than memory":    {CPU: 100, Memory: 32 << 20, PIDs: 10, Storage: 32<<20 + 1},
		"with tmp, more":      {CPU: 100, Memory: 32 << 20, PIDs: 10, Storage: 20 << 20, Tmp: 20 << 20},
		"negative":            {CPU: 100, Memory: 32 << 20, PIDs: 10, Storage: -1},
		"absurd, and no wrap": {CPU: 100, Memory: 32 << 20, PIDs: 10, Storage: 1 << 62, Tmp: 1 << 20},
	} {
		spec := b.spec(t, r, img)
		spec.Resources = res
		if _, err := r.Create(t.Context(), spec); !errors.Is(err, &api.Error{Code: api.CodeInvalid}) {
			t.Errorf("%s: %v, want invalid", name, err)
		}
	}
}

func TestNothingEscapesFromAWritableRoot(t *testing.T) { eachShim(t, nothingEscapesFromAWritableRoot) }

func nothingEscapesFromAWritableRoot(t *testing.T, b *bench) {
	r := b.open(t)
	p := b.prey(t, r)
	spec := b.spec(t, r, p.image)
	spec.Resources.Storage = 24 << 20
	s, a := b.start(t, r, spec)
	b.plant(t, r.rootfs(s.ID()), s.(*Sandbox).base)
	args := append(p.args(false), "-writable", "/data")
	for _, root := range []bool{false, true} {
		ans, err := a.Run(root, args...)
		if err != nil {
			t.Fatal(err)
		}
		may := plainMay()
		if root { // the layer is its own to write
			may = append(append(may, rootMay()...), "write_root", "write_bin", "write_hosts", "writable_set_user_id")
		}
		judge(t, fmt.Sprintf("writable root=%v", root), ans, may)
	}
	if err := s.Remove(t.Context(), 0); err != nil {
		t.Error(err)
	}
}

func TestNothingEscapesFromABoundWritableRoot(t *testing.T) {
	eachBind(t, nothingEscapesFromABoundWritableRoot)
}

func nothingEscapesFromABoundWritableRoot(t *testing.T, b *bench) {
	r := b.open(t)
	p := b.prey(t, r)
	spec := b.spec(t, r, p.image)
	spec.Resources.Storage = 24 << 20
	s, a := b.bind(t, r, spec)
	pid, err := a.Launcher()
	if err != nil {
		t.Fatal(err)
	}
	b.plant(t, fmt.Sprintf("/proc/%d/root", pid), s.(*Sandbox).base)
	if err := a.Launch(append(p.args(false), "-writable", "/data")...); err != nil {
		t.Fatal(err)
	}
	ans, err := a.Wait()
	if err != nil {
		t.Fatal(err)
	}
	judge(t, "bound writable", ans, boundMay())
	if err := s.Remove(t.Context(), 0); err != nil {
		t.Error(err)
	}
}

// plant puts, as root of the host, into a writable root what nobody inside could.
func (b *bench) plant(t *testing.T, root string, base uint32) {
	t.Helper()
	dir := filepath.Join(root, "data")
	for name, d := range map[string]struct {
		kind         uint32
		major, minor uint32
	}{"mem": {unix.S_IFCHR, 1, 1}, "null": {unix.S_IFCHR, 1, 3}, "disk": {unix.S_IFBLK, 7, 0}} {
		path := filepath.Join(dir, name)
		if err := errors.Join(unix.Mknod(path, d.kind|0o666, int(unix.Mkdev(d.major, d.minor))), unix.Chmod(path, 0o666)); err != nil {
			t.Fatal(name, err)
		}
	}
	body, err := os.ReadFile(b.probe)
	if err != nil {
		t.Fatal(err)
	}
	suid := filepath.Join(dir, "suid")
	if err := errors.Join(os.WriteFile(suid, body, 0o755), os.Chown(suid, int(base), int(base)), unix.Chmod(suid, 0o6755)); err != nil {
		t.Fatal(err)
	}
}
