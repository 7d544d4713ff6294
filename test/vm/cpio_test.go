package vm

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// archive writes an initramfs: a cpio archive in the "newc" format, as the kernel
// reads it (Documentation/driver-api/early-userspace/buffer-format.rst).
type archive struct {
	w    io.Writer
	ino  int
	dirs map[string]bool
}

func newArchive(w io.Writer) *archive { return &archive{w: w, dirs: map[string]bool{".": true}} }

// entry writes one header and its content, each padded to four bytes.
func (a *archive) entry(name string, mode uint32, size int64, content io.Reader) error {
	a.ino++
	head := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.ino, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name)+1, 0, name)
	if _, err := io.WriteString(a.w, head+zeros(len(head))); err != nil {
		return err
	}
	if n, err := io.Copy(a.w, content); err != nil || n != size {
		return fmt.Errorf("%s: %d of %d bytes: %w", name, n, size, err)
	}
	_, err := io.WriteString(a.w, zeros(int(size%4)))
	return err
}

func zeros(n int) string { return "\x00\x00\x00"[:(4-n%4)%4] }

// parents writes the directories above name that are not there yet.
func (a *archive) parents(name string) error {
	dir := path.Dir(name)
	if a.dirs[dir] {
		return nil
	}
	if err := a.parents(dir); err != nil {
		return err
	}
	a.dirs[dir] = true
	return a.entry(dir, 0o040755, 0, strings.NewReader(""))
}

// file puts a file of this machine into the archive, followed where it is a link.
func (a *archive) file(name, from string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := a.parents(name); err != nil {
		return err
	}
	return a.entry(name, 0o100000|uint32(info.Mode()&fs.ModePerm), info.Size(), f)
}

// text puts a file of this content into it, link a symbolic link.
func (a *archive) text(name, content string) error { return a.small(name, 0o100644, content) }
func (a *archive) link(name, to string) error      { return a.small(name, 0o120777, to) }

func (a *archive) small(name string, mode uint32, content string) error {
	if err := a.parents(name); err != nil {
		return err
	}
	return a.entry(name, mode, int64(len(content)), strings.NewReader(content))
}

func (a *archive) close() error { return a.entry("TRAILER!!!", 0, 0, strings.NewReader("")) }
