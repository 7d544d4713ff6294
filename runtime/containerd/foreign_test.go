package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/cgroups"
	"github.com/faasd-sec/faasd-sec/runtime"
	"github.com/faasd-sec/faasd-sec/scratch"
)

// store is one of encrypted volumes.
func (b *bench) store(t *testing.T) *scratch.Store {
	t.Helper()
	cfg := scratch.Default(b.dir + fmt.Sprintf("/scratch%d", b.serial.Add(1)))
	cfg.Floor = 0
	s, err := scratch.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // what a sandbox had is released a moment after it
		deadline := time.Now().Add(10 * time.Second)
		for {
			live, err := s.Live()
			if err != nil || len(live) != 0 && time.Now().After(deadline) {
				t.Errorf("volumes that remain: %+v, %v", live, err)
			}
			if err != nil || len(live) == 0 {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	return s
}

func volume(t *testing.T, s *scratch.Store, size int64) *scratch.Volume {
	t.Helper()
	v, err := s.Create(t.Context(), size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Remove(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return v
}

// disk reads what is on a volume's device.
func disk(t *testing.T, v *scratch.Volume) []byte {
	t.Helper()
	if err := unix.Syncfs(int(v.Tree().Fd())); err != nil && !errors.Is(err, unix.EBADF) { // an O_PATH descriptor
		t.Fatal(err)
	}
	f, err := os.Open(v.Device())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestScratchIsTheFunctionsAndEncrypted(t *testing.T) { eachWay(t, scratchIsTheFunctions) }

func scratchIsTheFunctions(t *testing.T, b *bench, r *Runtime, w way) {
	const size = 24 << 20
	store := b.store(t)
	v := volume(t, store, size)
	spec := b.spec(t, r, b.ours(t, r))
	spec.Mounts = []runtime.Mount{{Tree: v.Tree(), Target: "/scratch"}}
	s, run := w.begin(t, b, r, spec)
	if got := run("ls", "/scratch"); !strings.Contains(got, "/scratch 40700 1000:1000") {
		t.Errorf("scratch inside: %s", got)
	}
	const canary = "canary-in-the-scratch-of-a-sandbox"
	if got := run("put", "/scratch/canary-file-name", canary, "600"); !strings.Contains(got, "exit status 0") {
		t.Fatal(got)
	}
	d := disk(t, v)
	for _, word := range []string{canary, "canary-file-name"} {
		if bytes.Contains(d, []byte(word)) {
			t.Errorf("%q is on the disk in clear", word)
		}
	}
	if got := run("cat", "/scratch/canary-file-name"); !strings.HasPrefix(got, canary) {
		t.Errorf("read back inside: %.60q", got)
	}
	if got := run("script", "/scratch/program"); !strings.Contains(got, "permission denied") {
		t.Errorf("a program in scratch: %s", got)
	}
	if got := run("remove", "/scratch/program"); !strings.Contains(got, "exit status 0") {
		t.Error(got)
	}
	var filled int64
	out := run("fill", "/scratch/fill")
	if _, err := fmt.Sscanf(out, "filled %d", &filled); err != nil || filled > size || filled < size-scratch.Overhead(size)-64<<10 || !strings.Contains(out, "no space left") {
		t.Errorf("filling %d bytes: %s", size, out)
	}
	if used, err := v.Used(); err != nil || used < filled || used > size {
		t.Errorf("used %d, %v", used, err)
	}
	if err := s.Remove(t.Context(), 0); err != nil {
		t.Error(err)
	}
	if err := v.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	if live, err := store.Live(); err != nil || len(live) != 0 {
		t.Errorf("after removal: %+v, %v", live, err)
	}
}

// The daemon that made it is gone, and so are its descriptors: the sandbox has the
// volume alone, and takes it along.
func TestScratchOutlivesTheDaemonAndEndsWithTheSandbox(t *testing.T) {
	eachWay(t, scratchOutlivesTheDaemon)
}

func scratchOutlivesTheDaemon(t *testing.T, b *bench, r *Runtime, w way) {
	store := b.store(t)
	v, err := store.Create(t.Context(), scratch.MinBytes)
	if err != nil {
		t.Fatal(err)
	}
	spec := b.spec(t, r, b.ours(t, r))
	spec.Mounts = []runtime.Mount{{Tree: v.Tree(), Target: "/scratch"}}
	s, run := w.begin(t, b, r, spec)
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if got := run("put", "/scratch/x", "word", "1000"); !strings.Contains(got, "exit status 0") {
		t.Error(got)
	}
	if live, err := store.Live(); err != nil || len(live) != 1 || live[0].Bytes != scratch.MinBytes {
		t.Errorf("volumes in use: %+v, %v", live, err)
	}
	r = b.openWith(t, r.cfg)
	found, err := r.Recover(t.Context())
	if err != nil || len(found) != 1 || found[0].ID() != s.ID() {
		t.Fatalf("recovered %v, %v", found, err)
	}
	if err := found[0].Remove(t.Context(), 0); err != nil {
		t.Error(err)
	}
}

func TestMountsKeepToTheirPlace(t *testing.T) {
	b := need(t)
	r := b.open(t)
	v := volume(t, b.store(t), scratch.MinBytes)
	img := b.ours(t, r)
	for name, m := range map[string][]runtime.Mount{
		"over /proc":      {{Tree: v.Tree(), Target: "/proc"}},
		"in /tmp":         {{Tree: v.Tree(), Target: "/tmp/x"}},
		"relative":        {{Tree: v.Tree(), Target: "x"}},
		"the root":        {{Tree: v.Tree(), Target: "/"}},
		"over the agent":  {{Tree: v.Tree(), Target: api.AgentRunDir}},
		"over secrets":    {{Tree: v.Tree(), Target: "/var/openfaas"}},
		"in each other":   {{Tree: v.Tree(), Target: "/a"}, {Tree: v.Tree(), Target: "/a/b"}},
		"without a mount": {{Target: "/a"}},
	} {
		spec := b.spec(t, r, img)
		spec.Mounts = m
		if _, err := r.Create(t.Context(), spec); !errors.Is(err, &api.Error{Code: api.CodeInvalid}) {
			t.Errorf("%s: %v, want invalid", name, err)
		}
	}
	// A directory that is no mount is not given away.
	plain, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	spec := b.spec(t, r, img)
	spec.Mounts = []runtime.Mount{{Tree: plain, Target: "/a"}}
	if _, err := r.Create(t.Context(), spec); err == nil {
		t.Error("a directory of the host became a mount")
	}
	if points, err := mountsBelow(r.cfg.RunDir + "/sandboxes"); err != nil || len(points) != 0 {
		t.Errorf("mounts that remain: %q, %v", points, err)
	}
}

// A mount that comes once the sandbox is there, and before its function is.
func TestScratchIsMountedLater(t *testing.T) { eachWay(t, scratchIsMountedLater) }

func scratchIsMountedLater(t *testing.T, b *bench, r *Runtime, w way) {
	v := volume(t, b.store(t), scratch.MinBytes)
	spec := b.spec(t, r, b.ours(t, r))
	spec.Resources.Scratch = scratch.MinBytes
	spec.Resources.WriteBps = 2 << 20
	s, run := w.begin(t, b, r, spec)
	mounter := s.(runtime.Mounter)
	for name, m := range map[string]runtime.Mount{
		"nowhere":   {Tree: v.Tree(), Target: "/not-there"},
		"over proc": {Tree: v.Tree(), Target: "/proc"},
		"nothing":   {Target: runtime.ScratchPath},
	} {
		if err := mounter.Mount(t.Context(), m); err == nil {
			t.Errorf("%s: it was mounted", name)
		}
	}
	if !r.compose.detached {
		t.Log("on this kernel a mount is good for one try")
		v = volume(t, b.store(t), scratch.MinBytes)
	}
	if err := mounter.Mount(t.Context(), runtime.Mount{Tree: v.Tree(), Target: runtime.ScratchPath}); err != nil {
		t.Fatal(err)
	}
	if got := run("ls", runtime.ScratchPath); !strings.Contains(got, "/scratch 40700 1000:1000") {
		t.Errorf("inside: %s", got)
	}
	out := run("put", "/scratch/x", "0123456789abcdef", fmt.Sprint(3<<20/16))
	var ms int64
	if _, err := fmt.Sscanf(out, "ms %d", &ms); err != nil || ms < 1200 {
		t.Errorf("3 MiB at 2 MiB/s: %s", out)
	}
	if got := run("script", "/scratch/program"); !strings.Contains(got, "permission denied") {
		t.Errorf("a program in scratch: %s", got)
	}
	if err := s.Remove(t.Context(), 0); err != nil {
		t.Error(err)
	}
	if err := mounter.Mount(t.Context(), runtime.Mount{Tree: v.Tree(), Target: runtime.ScratchPath}); !errors.Is(err, runtime.ErrGone) {
		t.Errorf("after its end: %v, want ErrGone", err)
	}
}

func TestIOLimitsHoldForScratch(t *testing.T) { eachWay(t, ioLimitsHoldForScratch) }

func ioLimitsHoldForScratch(t *testing.T, b *bench, r *Runtime, w way) {
	if r.device == (cgroups.Device{}) {
		t.Fatal("the run directory is on no block device")
	}
	v := volume(t, b.store(t), 64<<20)
	m := runtime.Mount{Tree: v.Tree(), Target: runtime.ScratchPath}
	spec := b.spec(t, r, b.ours(t, r))
	spec.Mounts = []runtime.Mount{m}
	spec.Resources.ReadBps, spec.Resources.WriteBps = 4<<20, 2<<20
	s, run := w.begin(t, b, r, spec)
	box := s.(*Sandbox)
	if n := len(box.outerLimits().IO); n != 2 {
		t.Fatalf("%d devices are limited, want the disk and the volume", n)
	}
	if err := box.group.Verify(box.outerLimits()); err != nil {
		t.Error(err)
	}
	took := func(out string) (ms int64) {
		t.Helper()
		_, at, _ := strings.Cut(out, "ms ")
		if _, err := fmt.Sscan(at, &ms); err != nil {
			t.Fatalf("%q: %v", out, err)
		}
		return ms
	}
	// 4 MiB at 2 MiB/s, and at 4 MiB/s.
	if ms := took(run("put", "/scratch/x", "0123456789abcdef", fmt.Sprint(4<<20/16))); ms < 1700 {
		t.Errorf("4 MiB were written in %d ms, at 2 MiB/s", ms)
	}
	if ms := took(run("take", "/scratch/x")); ms < 850 {
		t.Errorf("4 MiB were read in %d ms, at 4 MiB/s", ms)
	}
	if err := s.Remove(t.Context(), 0); err != nil {
		t.Error(err)
	}
}
