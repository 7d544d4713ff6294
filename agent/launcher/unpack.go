package launcher

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

// UnpackOptions say where a bundle's files go and how much they may be.
type UnpackOptions struct {
	CodeDir    string // for "code/…"; must exist and be writable
	SecretsDir string // for "secrets/NAME"
	MaxBytes   int64  // of all files together; 0: DefaultMaxBytes
	MaxFiles   int64  // files, directories and links; 0: DefaultMaxFiles
}

// Limits of a bundle.
const (
	DefaultMaxBytes = 256 << 20
	DefaultMaxFiles = 20000
	maxSecret       = 1 << 20 // bytes, the size of the secrets' file system
	maxPath         = 1024    // bytes of a name in the archive
)

// Unpack writes the "code/" and "secrets/" parts of a bundle's tar. Anything
// that could reach outside its directory is refused, not skipped: absolute
// names, "..", links that lead out, devices, pipes, names used twice and
// entries of a kind we do not know. Every file is opened through an os.Root, so
// that a link made by an earlier entry leads nowhere else either.
func Unpack(r io.Reader, o UnpackOptions) error {
	if o.MaxBytes <= 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	if o.MaxFiles <= 0 {
		o.MaxFiles = DefaultMaxFiles
	}
	u := &unpacker{left: o.MaxBytes, entries: o.MaxFiles}
	defer u.close()
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			_, err = io.Copy(io.Discard, r) // let the writer finish its padding
			return err
		}
		if err != nil {
			return fmt.Errorf("bundle: %w", err)
		}
		if u.entries--; u.entries < 0 {
			return fmt.Errorf("bundle: over %d entries", o.MaxFiles)
		}
		if err := u.entry(tr, h, o); err != nil {
			return fmt.Errorf("bundle entry %q: %w", clip(h.Name), err)
		}
	}
}

type unpacker struct {
	code, secrets *os.Root
	left, entries int64
}

func (u *unpacker) close() {
	for _, r := range []*os.Root{u.code, u.secrets} {
		if r != nil {
			_ = r.Close()
		}
	}
}

func (u *unpacker) entry(r io.Reader, h *tar.Header, o UnpackOptions) error {
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	top, rest, _ := strings.Cut(name, "/")
	switch top {
	case "env":
		return nil // the agent's: it has read it already
	case "code":
		if o.CodeDir == "" {
			return errors.New("there is code but no path to put it: set bundle_path")
		}
		if u.code, err = openRoot(u.code, o.CodeDir); err != nil {
			return err
		}
		if rest == "" {
			return nil
		}
		return u.file(u.code, rest, r, h)
	case "secrets":
		if u.secrets, err = openRoot(u.secrets, o.SecretsDir); err != nil {
			return err
		}
		if rest == "" {
			return nil
		}
		if strings.Contains(rest, "/") || h.Typeflag != tar.TypeReg || h.Size > maxSecret {
			return fmt.Errorf("a secret is one plain file of at most %d bytes, right under secrets/", maxSecret)
		}
		h.Mode = 0o400
		return u.file(u.secrets, rest, r, h)
	}
	return errors.New("only code/, secrets/ and env are known")
}

// file makes one entry below root.
func (u *unpacker) file(root *os.Root, name string, r io.Reader, h *tar.Header) error {
	if dir := path.Dir(name); dir != "." {
		if err := root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		err := root.Mkdir(name, 0o755)
		if errors.Is(err, os.ErrExist) {
			return nil
		}
		return err
	case tar.TypeReg:
		if h.Size < 0 || h.Size > u.left {
			return fmt.Errorf("the files are over the limit of bytes by this one of %d", h.Size)
		}
		u.left -= h.Size
		return writeFile(root, name, r, h)
	case tar.TypeSymlink:
		if !inside(name, h.Linkname) {
			return fmt.Errorf("the link leads outside, to %q", clip(h.Linkname))
		}
		return root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		target, err := cleanName(h.Linkname)
		if err != nil {
			return err
		}
		target, ok := strings.CutPrefix(target, "code/")
		if !ok {
			return errors.New("a hard link must lead to an entry under code/")
		}
		return root.Link(target, name)
	}
	return fmt.Errorf("entries of type %q are refused", h.Typeflag)
}

func writeFile(root *os.Root, name string, r io.Reader, h *tar.Header) (retErr error) {
	// O_EXCL: an archive with a name twice is not one that we made. No bits
	// beyond the plain nine: set-id and sticky have no business here.
	f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, os.FileMode(h.Mode)&0o777)
	if err != nil {
		return err
	}
	defer func() {
		if err := f.Close(); retErr == nil {
			retErr = err
		}
	}()
	if _, err := io.Copy(f, r); err != nil {
		return err
	}
	// Interpreters compare times with those in their compiled files.
	return root.Chtimes(name, h.ModTime, h.ModTime)
}

func openRoot(have *os.Root, dir string) (*os.Root, error) {
	if have != nil {
		return have, nil
	}
	return os.OpenRoot(dir)
}

// cleanName accepts relative names without "." and ".." parts, NUL or
// backslash, and removes a directory's last slash.
func cleanName(name string) (string, error) {
	n := strings.TrimSuffix(strings.TrimPrefix(name, "./"), "/")
	if n == "" || len(n) > maxPath || strings.HasPrefix(n, "/") || strings.ContainsAny(n, "\x00\\") || path.Clean(n) != n {
		return "", errors.New("the name is empty, absolute, too long or not plain")
	}
	for part := range strings.SplitSeq(n, "/") {
		if part == ".." || part == "." {
			return "", errors.New("the name has a '..' part")
		}
	}
	return n, nil
}

// inside reports whether a symbolic link at name stays below the top.
func inside(name, target string) bool {
	if target == "" || path.IsAbs(target) || strings.ContainsRune(target, 0) {
		return false
	}
	p := path.Join(path.Dir(name), target)
	return p != ".." && !strings.HasPrefix(p, "../")
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}
