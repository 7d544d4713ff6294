package scratch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// childDir makes the test's program a child that is to be killed.
const childDir = "FAASD_SEC_SCRATCH_CHILD"

func open(t testing.TB) *Store {
	t.Helper()
	if os.Getuid() != 0 {
		unavailable(t, "needs root")
	}
	s, err := Open(t.Context(), Config{Dir: t.TempDir(), Timeout: 20 * time.Second})
	if errors.Is(err, ErrUnsupported) {
		unavailable(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if left, err := s.Live(); err != nil || len(left) != 0 {
			t.Errorf("left behind: %+v, %v", left, err)
		}
	})
	return s
}

func unavailable(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("REQUIRE_ALL") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}

func create(t testing.TB, s *Store, size int64) *Volume {
	t.Helper()
	v, err := s.Create(t.Context(), size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, v) })
	return v
}

func remove(t testing.TB, v *Volume) {
	t.Helper()
	if v.dir == nil {
		return
	}
	if err := v.Remove(context.Background()); err != nil {
		t.Error(err)
	}
}

// write makes a file in the volume.
func write(t testing.TB, v *Volume, name string, content []byte) {
	t.Helper()
	fd, err := unix.Openat(int(v.tree.Fd()), name, unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if _, err := f.Write(content); err != nil {
		t.Fatal(err)
	}
}

// raw reads what is on the device, past every cache of the file system's files.
func raw(t testing.TB, v *Volume) []byte {
	t.Helper()
	if err := unix.Syncfs(int(v.dir.Fd())); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(v.Device())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil || int64(len(b)) != v.Bytes() {
		t.Fatalf("read %d bytes of %s: %v", len(b), v.Device(), err)
	}
	return b
}

func TestNeitherContentsNorNamesReachTheDisk(t *testing.T) {
	s := open(t)
	v := create(t, s, MinBytes)
	const name, canary = "patient-4711-file-name-canary", "the-canary-that-nobody-may-read"
	write(t, v, name, bytes.Repeat([]byte(canary), 4000))
	disk := raw(t, v)
	for _, word := range []string{canary, name, name[:16], canary[:16]} {
		if bytes.Contains(disk, []byte(word)) {
			t.Errorf("%q is on the disk", word)
		}
	}
	// The search finds what is there: the directory that is not encrypted is.
	if !bytes.Contains(disk, []byte(dataDir)) {
		t.Error("the search of the disk finds nothing at all")
	}
	remove(t, v)

	// A copy of the disk, mounted without the key, gives nothing away.
	f, err := s.reserve(MinBytes)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(disk, 0); err != nil {
		t.Fatal(err)
	}
	l, err := attach(t.Context(), f, MinBytes)
	if err != nil {
		t.Fatal(err)
	}
	defer l.dev.Close()
	fd, err := mountVolume(l.path())
	if err != nil {
		t.Fatal(err)
	}
	root := os.NewFile(uintptr(fd), "copy")
	defer root.Close()
	dfd, err := unix.Openat(fd, dataDir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	dir := os.NewFile(uintptr(dfd), dataDir)
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil || len(names) != 1 || strings.Contains(names[0], "patient") {
		t.Fatalf("names without the key: %q, %v", names, err)
	}
	if _, err := unix.Openat(dfd, names[0], unix.O_RDONLY|unix.O_CLOEXEC, 0); !errors.Is(err, unix.ENOKEY) {
		t.Errorf("open without the key: %v, want ENOKEY", err)
	}
	if _, err := unix.Openat(dfd, "new", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600); !errors.Is(err, unix.ENOKEY) {
		t.Errorf("create without the key: %v, want ENOKEY", err)
	}
}

func TestAVolumeIsWhatWasReserved(t *testing.T) {
	s := open(t)
	for _, size := range []int64{MinBytes, 40_000_001, 160 << 20} {
		f, err := s.reserve(size - size%blockSize)
		if err != nil {
			t.Fatal(err)
		}
		v, err := s.build(t.Context(), f, size-size%blockSize)
		if err != nil {
			t.Fatal(err)
		}
		blocks := func() int64 {
			var st unix.Stat_t
			if err := unix.Fstat(int(f.Fd()), &st); err != nil {
				t.Fatal(err)
			}
			return st.Blocks * 512
		}
		before := blocks()
		// Fill it to the end, which comes where it should, twice.
		for range 2 {
			got := fill(t, v)
			if got > size || got < size-Overhead(size) {
				t.Errorf("%d bytes fit into a volume of %d", got, size)
			}
			if used, err := v.Used(); err != nil || used < got || used > size {
				t.Errorf("used %d, %v, with %d written", used, err, got)
			}
			if err := unix.Unlinkat(int(v.tree.Fd()), "fill", 0); err != nil {
				t.Fatal(err)
			}
			if err := unix.Syncfs(int(v.dir.Fd())); err != nil {
				t.Fatal(err)
			}
		}
		// The reserved blocks were not given back to the host meanwhile. A block that
		// says where they are may have come.
		if after := blocks(); after < before || after > before+1<<20 {
			t.Errorf("the file has %d bytes of blocks, had %d", after, before)
		}
		remove(t, v)
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// fill writes one file until there is no space, and says how much it took.
func fill(t testing.TB, v *Volume) int64 {
	t.Helper()
	fd, err := unix.Openat(int(v.tree.Fd()), "fill", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var total int64
	buf := bytes.Repeat([]byte("x"), 1<<20)
	for {
		n, err := unix.Write(fd, buf)
		total += int64(max(n, 0))
		if errors.Is(err, unix.ENOSPC) {
			return total
		}
		if err != nil {
			t.Fatal(err)
		}
		if total > 1<<34 {
			t.Fatal("no end")
		}
	}
}

func TestNothingIsPromisedThatTheDiskDoesNotHave(t *testing.T) {
	s := open(t)
	free, err := s.Free()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(t.Context(), min(free+1<<30, MaxBytes)); !errors.Is(err, ErrFull) {
		t.Errorf("more than there is: %v, want ErrFull", err)
	}
	s.cfg.Floor = free + 1<<40
	if _, err := s.Create(t.Context(), MinBytes); !errors.Is(err, ErrFull) {
		t.Errorf("below the floor: %v, want ErrFull", err)
	}
	s.cfg.Floor = 0
	for _, size := range []int64{-1, 0, 4095, MinBytes - 1, MaxBytes + blockSize} {
		if v, err := s.Create(t.Context(), size); err == nil {
			t.Errorf("a volume of %d bytes", size)
			remove(t, v)
		}
	}
}

func TestAFileSystemThatCannotReserveIsRefused(t *testing.T) {
	if _, err := Open(t.Context(), Default(filepath.Join("/dev/shm", fmt.Sprintf("scratch-test-%d", os.Getpid())))); !errors.Is(err, ErrUnsupported) {
		t.Errorf("scratch in memory: %v, want ErrUnsupported", err)
	}
	_ = os.Remove(filepath.Join("/dev/shm", fmt.Sprintf("scratch-test-%d", os.Getpid())))
}

func TestRemovalDropsTheKeyAndTheDevice(t *testing.T) {
	s := open(t)
	v := create(t, s, MinBytes)
	write(t, v, "held", bytes.Repeat([]byte("secret"), 1000))
	fd, err := unix.Openat(int(v.tree.Fd()), "held", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	s.cfg.Timeout = 100 * time.Millisecond
	if err := v.Remove(t.Context()); err == nil {
		t.Error("a volume was removed under an open file, and said to be gone")
	}
	if err := unix.Close(fd); err != nil {
		t.Fatal(err)
	}
	s.cfg.Timeout = 20 * time.Second
	if err := v.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	if err := v.Remove(t.Context()); err != nil {
		t.Errorf("again: %v", err)
	}
	if use, err := useOf(v.device.number); err != nil || use == v.device.use {
		t.Errorf("the device is still in this use: %d, %v", use, err)
	}
}

func TestNothingOfTheKeyStaysInMemory(t *testing.T) {
	s := open(t)
	v := create(t, s, MinBytes)
	b, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	// Its page was given back after it was wiped: no page of this process is locked.
	st, err := os.ReadFile("/proc/self/status")
	if err != nil || !strings.Contains(string(st), "VmLck:\t       0 kB") {
		t.Errorf("locked memory remains: %v\n%s", err, b)
	}
	if has, err := keyPresent(v.dir, v.key); err != nil || !has {
		t.Errorf("the kernel has the key: %v, %v", has, err)
	}
}

// The daemon is killed while it has a volume, and at random moments before.
func TestNothingRemainsOfAKilledDaemon(t *testing.T) {
	if dir := os.Getenv(childDir); dir != "" {
		s, err := Open(context.Background(), Config{Dir: dir, Timeout: 20 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("open")
		for { // until it is killed
			if _, err := s.Create(context.Background(), MinBytes); err != nil {
				t.Fatal(err)
			}
			fmt.Println("have")
		}
	}
	s := open(t)
	for round := range 8 {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestNothingRemainsOfAKilledDaemon$")
		cmd.Env = append(os.Environ(), childDir+"="+s.cfg.Dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 4096)
		for seen := ""; strings.Count(seen, "have") < 1+round%3; { // then somewhere in the next one
			n, err := out.Read(buf)
			if err != nil {
				t.Fatal(err, seen)
			}
			seen += string(buf[:n])
		}
		if live, err := s.Live(); err != nil || len(live) == 0 {
			t.Errorf("the child's volumes are not seen: %v, %v", live, err)
		}
		time.Sleep(time.Duration(round) * 2 * time.Millisecond) // another moment of its work each time
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was killed
		deadline := time.Now().Add(10 * time.Second)
		for {
			live, err := s.Live()
			if err != nil {
				t.Fatal(err)
			}
			if len(live) == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("after the kill: %+v", live)
			}
			time.Sleep(5 * time.Millisecond)
		}
		if err := s.sweep(); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(s.cfg.Dir); err != nil || len(left) != 0 {
			t.Errorf("in the directory: %v, %v", left, err)
		}
	}
}

func TestAKeeperGivesEachSandboxOne(t *testing.T) {
	s := open(t)
	k := NewKeeper(s)
	refused := errors.New("refused")
	if err := k.Give(t.Context(), "a", MinBytes, func(*os.File) error { return refused }); !errors.Is(err, refused) {
		t.Errorf("a mount that fails: %v", err)
	}
	if live, err := s.Live(); err != nil || len(live) != 0 {
		t.Errorf("after it: %+v, %v", live, err)
	}
	give := func(id string) error {
		return k.Give(t.Context(), id, MinBytes, func(tree *os.File) error {
			if tree == nil {
				t.Error("no mount")
			}
			return nil
		})
	}
	if err := errors.Join(give("a"), give("b")); err != nil {
		t.Fatal(err)
	}
	if err := give("a"); err == nil {
		t.Error("a second one for one sandbox")
	}
	if used, err := k.Used("a"); err != nil || used <= 0 || used > MinBytes {
		t.Errorf("used %d, %v", used, err)
	}
	for range 2 {
		if err := errors.Join(k.Take(t.Context(), "a"), k.Take(t.Context(), "b"), k.Take(t.Context(), "unknown")); err != nil {
			t.Error(err)
		}
	}
	if err := give("a"); err != nil {
		t.Error(err)
	}
	if err := k.Take(t.Context(), "a"); err != nil {
		t.Error(err)
	}
}

func TestManyAtOnce(t *testing.T) {
	s := open(t)
	errs := make(chan error)
	const n = 12
	for range n {
		go func() {
			v, err := s.Create(t.Context(), MinBytes)
			if err == nil {
				err = v.Remove(t.Context())
			}
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func BenchmarkVolume(b *testing.B) {
	s := open(b)
	for _, size := range []int64{16 << 20, 256 << 20, 1 << 30, 8 << 30} {
		b.Run(fmt.Sprintf("%dMiB", size>>20), func(b *testing.B) {
			var made, dropped []time.Duration
			for b.Loop() {
				start := time.Now()
				v, err := s.Create(b.Context(), size)
				if err != nil {
					b.Fatal(err)
				}
				made = append(made, time.Since(start))
				start = time.Now()
				if err := v.Remove(b.Context()); err != nil {
					b.Fatal(err)
				}
				dropped = append(dropped, time.Since(start))
			}
			for name, d := range map[string][]time.Duration{"create": made, "remove": dropped} {
				slices.Sort(d)
				b.ReportMetric(d[0].Seconds()*1000, name+"-min-ms")
				b.ReportMetric(d[len(d)/2].Seconds()*1000, name+"-median-ms")
			}
		})
	}
}
