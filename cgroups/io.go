package cgroups

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Device is a whole block device.
type Device struct{ Major, Minor uint32 }

// String is "major:minor".
func (d Device) String() string { return fmt.Sprintf("%d:%d", d.Major, d.Minor) }

// DeviceOf is the whole block device under the file system that holds path:
// the disk where that is a partition, since the kernel limits disks. A path on
// tmpfs, btrfs or a network has no such device, which is an error.
func DeviceOf(path string) (Device, error) { return deviceOf("/sys", path) }

func deviceOf(sys, path string) (Device, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Device{}, fmt.Errorf("find the device of %s: %w", path, err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return Device{}, fmt.Errorf("find the device of %s: no device number", path)
	}
	d := Device{Major: unix.Major(st.Dev), Minor: unix.Minor(st.Dev)}
	node := filepath.Join(sys, "dev/block", d.String())
	dir, err := filepath.EvalSymlinks(node)
	if err != nil {
		return Device{}, fmt.Errorf("%s is on no block device (%s): %w", path, d, err)
	}
	if !exists(filepath.Join(dir, "partition")) {
		return d, nil
	}
	b, err := os.ReadFile(filepath.Join(filepath.Dir(dir), "dev"))
	if err != nil {
		return Device{}, fmt.Errorf("find the disk of partition %s: %w", d, err)
	}
	if _, err := fmt.Sscanf(string(b), "%d:%d", &d.Major, &d.Minor); err != nil {
		return Device{}, fmt.Errorf("find the disk of partition %s: %q: %w", d, b, err)
	}
	return d, nil
}

// v1's files for reads and writes.
const (
	v1Read  = "blkio.throttle.read_bps_device"
	v1Write = "blkio.throttle.write_bps_device"
)

func (g Group) applyIO(l IOLimit) error {
	if g.fs.mode == V2 {
		return write(g.file(BlockIO, "io.max"), fmt.Sprintf("%s rbps=%s wbps=%s", l.Device, orMax(l.ReadBps), orMax(l.WriteBps)))
	}
	if g.fs.dir(BlockIO, g.path) == "" {
		return fmt.Errorf("controller %q is not mounted", BlockIO)
	}
	// On v1 a rate of 0 takes the device's rule away.
	if err := write(g.file(BlockIO, v1Read), fmt.Sprintf("%s %d", l.Device, l.ReadBps)); err != nil {
		return err
	}
	return write(g.file(BlockIO, v1Write), fmt.Sprintf("%s %d", l.Device, l.WriteBps))
}

func (g Group) verifyIO(l IOLimit) error {
	if g.fs.mode == V2 {
		got, err := g.deviceLine("io.max", l.Device)
		if err != nil {
			return err
		}
		for _, want := range []string{"rbps=" + orMax(l.ReadBps), "wbps=" + orMax(l.WriteBps)} {
			// A device without any limit has no line at all.
			if !containsWord(got, want) && !(got == "" && strings.HasSuffix(want, "=max")) {
				return &Mismatch{File: g.file(BlockIO, "io.max"), Wanted: l.Device.String() + " " + want, Got: got}
			}
		}
		return nil
	}
	for _, f := range []struct {
		name string
		want int64
	}{{v1Read, l.ReadBps}, {v1Write, l.WriteBps}} {
		got, err := g.deviceLine(f.name, l.Device)
		if err != nil {
			return err
		}
		want := strconv.FormatInt(f.want, 10)
		if got != want && !(got == "" && f.want == 0) {
			return &Mismatch{File: g.file(BlockIO, f.name), Wanted: l.Device.String() + " " + want, Got: got}
		}
	}
	return nil
}

// deviceLine is what a file of lines "major:minor value" says of one device,
// "" if nothing.
func (g Group) deviceLine(name string, d Device) (string, error) {
	s, err := g.read(BlockIO, name)
	if err != nil {
		return "", fmt.Errorf("read back: %w", err)
	}
	for line := range strings.Lines(s) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), d.String()+" "); ok {
			return strings.TrimSpace(rest), nil
		}
	}
	return "", nil
}

func orMax(n int64) string {
	if n == 0 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}
