package scratch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// loop is a loop device that is ours. The kernel lets go of its file when the
// last one who has it open or mounted is gone.
type loop struct {
	dev    *os.File
	number int
	use    int64 // which of the device's uses it is, as the kernel counts them
}

func (l loop) path() string { return "/dev/loop" + strconv.Itoa(l.number) }

// attach puts a loop device over the whole of f.
func attach(ctx context.Context, f *os.File, bytes int64) (loop, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return loop{}, fmt.Errorf("%w: loop devices (CONFIG_BLK_DEV_LOOP): %w", ErrUnsupported, err)
	}
	defer control.Close()
	for {
		if err := ctx.Err(); err != nil {
			return loop{}, fmt.Errorf("find a free loop device: %w", err)
		}
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return loop{}, fmt.Errorf("find a free loop device: %w", err)
		}
		l := loop{number: n}
		if l.dev, err = os.OpenFile(l.path(), os.O_RDWR, 0); err != nil {
			return loop{}, fmt.Errorf("open a loop device: %w", err)
		}
		// Direct, so that the host's cache does not hold what the volume's own holds.
		err = unix.IoctlLoopConfigure(int(l.dev.Fd()), &unix.LoopConfig{
			Fd: uint32(f.Fd()), Size: blockSize, Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO}})
		if errors.Is(err, unix.EBUSY) { // somebody else was faster
			_ = l.dev.Close()
			continue
		}
		if err == nil {
			err = l.check(bytes)
		}
		if err != nil {
			_ = l.dev.Close()
			return loop{}, fmt.Errorf("configure %s: %w", l.path(), err)
		}
		return l, nil
	}
}

// check reads back that the device goes with its last user and has the size that
// was reserved.
func (l *loop) check(bytes int64) error {
	info, err := unix.IoctlLoopGetStatus64(int(l.dev.Fd()))
	if err != nil {
		return err
	}
	if info.Flags&unix.LO_FLAGS_AUTOCLEAR == 0 {
		return errors.New("the kernel would not release it by itself")
	}
	if l.use, err = useOf(l.number); err != nil {
		return err
	}
	got, err := sizeOf(l.number)
	if err != nil {
		return err
	}
	if got != bytes {
		return fmt.Errorf("it has %d bytes, not %d", got, bytes)
	}
	return nil
}

// sizeOf is the size of a loop device in bytes.
func sizeOf(n int) (int64, error) {
	v, err := attribute(n, "size")
	return v * 512, err
}

// useOf changes whenever a loop device gets or loses its file. Linux 5.15.
func useOf(n int) (int64, error) { return attribute(n, "diskseq") }

func attribute(n int, name string) (int64, error) {
	b, err := os.ReadFile(filepath.Join("/sys/block", "loop"+strconv.Itoa(n), name))
	if err != nil {
		return 0, fmt.Errorf("%s of a loop device: %w", name, err)
	}
	v, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s of a loop device: %w", name, err)
	}
	return v, nil
}

// Live is a volume as the kernel has it.
type Live struct {
	Device string // "/dev/loop3"
	Bytes  int64
}

// Live lists the volumes of this store that somebody holds, those of an earlier
// life of the daemon included.
func (s *Store) Live() ([]Live, error) {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, fmt.Errorf("list loop devices: %w", err)
	}
	dir, err := filepath.EvalSymlinks(s.cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("list loop devices: %w", err)
	}
	var out []Live
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // released meanwhile
		}
		// "DIR/#1234 (deleted)"
		if name, ok := strings.CutPrefix(string(b), dir+"/"); !ok || !strings.HasPrefix(name, "#") || strings.Contains(name, "/") {
			continue
		}
		n, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(filepath.Dir(filepath.Dir(f))), "loop"))
		if err != nil {
			return nil, fmt.Errorf("list loop devices: %w", err)
		}
		size, err := sizeOf(n)
		if err != nil || size == 0 {
			continue
		}
		out = append(out, Live{Device: "/dev/loop" + strconv.Itoa(n), Bytes: size})
	}
	return out, nil
}
