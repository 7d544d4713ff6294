package scratch

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	blockSize     = 4096
	bytesPerInode = 16 << 10 // one inode of 256 bytes for as much space
)

// features of the file system. It has no journal: after a crash nobody mounts it
// again.
const features = "none,extent,filetype,sparse_super2,large_file,dir_index,ext_attr,metadata_csum,64bit,flex_bg,dir_nlink,extra_isize,encrypt"

// format makes an ext4 of the whole file. Nothing is discarded, which would give
// the reserved blocks back; tables of inodes are left as they are, since blocks
// that were allocated and never written read as zeros.
func (s *Store) format(ctx context.Context, f *os.File) error {
	cmd := exec.CommandContext(ctx, s.mke2fs, "-q", "-F", "-t", "ext4", "-b", strconv.Itoa(blockSize), "-I", "256", "-i", strconv.Itoa(bytesPerInode), "-m", "0",
		"-O", features, "-E", "nodiscard,lazy_itable_init=1,root_owner=0:0", "/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{f}
	cmd.Env = []string{"MKE2FS_CONFIG=/dev/null", "LC_ALL=C"} // no defaults of the host
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mke2fs: %w: %.200s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Overhead is how many bytes of a volume of this size its file system may need
// for itself: tables of inodes, bitmaps and group descriptors, and what ext4 keeps
// for its own growth, a fiftieth and 16 MiB at most.
func Overhead(bytes int64) int64 {
	return bytes/bytesPerInode*256 + bytes/512 + min(bytes/50, 16<<20) + 1<<20
}

// mountVolume is a detached mount of the ext4 on a loop device. It is never
// attached to the host's tree.
func mountVolume(device string) (int, error) {
	ctx, err := unix.Fsopen("ext4", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open ext4: %w", err)
	}
	defer unix.Close(ctx)
	if err := unix.FsconfigSetString(ctx, "source", device); err != nil {
		return -1, fmt.Errorf("mount %s: %w%s", device, err, complaint(ctx))
	}
	for _, flag := range []string{"nodiscard", "noinit_itable"} {
		if err := unix.FsconfigSetFlag(ctx, flag); err != nil {
			return -1, fmt.Errorf("mount %s: option %s: %w%s", device, flag, err, complaint(ctx))
		}
	}
	if err := unix.FsconfigSetString(ctx, "errors", "remount-ro"); err != nil {
		return -1, fmt.Errorf("mount %s: option errors: %w%s", device, err, complaint(ctx))
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return -1, fmt.Errorf("mount %s: %w%s", device, err, complaint(ctx))
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC|unix.MOUNT_ATTR_NOATIME)
	if err != nil {
		return -1, fmt.Errorf("mount %s: %w%s", device, err, complaint(ctx))
	}
	return fd, nil
}

// complaint is what the kernel wrote into the context's message log.
func complaint(ctx int) string {
	buf := make([]byte, 512)
	var out []string
	for {
		n, err := unix.Read(ctx, buf)
		if err != nil || n <= 0 {
			break
		}
		out = append(out, strings.TrimSpace(string(buf[:n])))
	}
	if len(out) == 0 {
		return ""
	}
	return " (kernel: " + strings.Join(out, "; ") + ")"
}

// checkSize reads back from the mounted file system that it is as large as what
// was reserved, but for its own overhead.
func checkSize(fd int, l loop, bytes int64) error {
	super := make([]byte, 1024)
	if _, err := l.dev.ReadAt(super, 1024); err != nil {
		return fmt.Errorf("read the superblock: %w", err)
	}
	// struct ext4_super_block: s_blocks_count_lo at 4, _hi at 0x150, s_log_block_size at 0x18.
	blocks := int64(binary.LittleEndian.Uint32(super[4:])) | int64(binary.LittleEndian.Uint32(super[0x150:]))<<32
	size := int64(1024) << binary.LittleEndian.Uint32(super[0x18:])
	if blocks*size > bytes || blocks*size < bytes-32<<20 || size != blockSize {
		return fmt.Errorf("the file system has %d blocks of %d bytes, not %d bytes", blocks, size, bytes)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return fmt.Errorf("read the size back: %w", err)
	}
	if got := int64(st.Blocks) * st.Bsize; got > bytes || got < bytes-Overhead(bytes) {
		return fmt.Errorf("the file system offers %d bytes of %d", got, bytes)
	}
	return nil
}
