package image

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/faasd-sec/faasd-sec/api"
)

// layer is a compressed tar that is being written: the same additions give the
// same bytes.
type layer struct {
	path string
	file *os.File
	gz   *gzip.Writer
	tar  *tar.Writer
	err  error // of opening the file
}

// newLayer begins a layer; its file is made with the first entry.
func newLayer(path string) *layer { return &layer{path: path} }

func (l *layer) empty() bool { return l.file == nil && l.err == nil }

func (l *layer) begin() error {
	if l.tar != nil || l.err != nil {
		return l.err
	}
	if l.file, l.err = os.OpenFile(l.path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600); l.err != nil {
		l.err = fmt.Errorf("build: %w", l.err)
		return l.err
	}
	// The fast level: registries and nodes are on the same network, and the
	// time of a build is what its author waits for.
	l.gz, l.err = gzip.NewWriterLevel(l.file, gzip.BestSpeed)
	if l.err != nil {
		return l.err
	}
	l.tar = tar.NewWriter(l.gz)
	return nil
}

// finish closes the layer and opens it for reading.
func (l *layer) finish() (v1.Layer, error) {
	if err := errors.Join(l.tar.Close(), l.gz.Close(), l.file.Close()); err != nil {
		return nil, fmt.Errorf("build: write layer: %w", err)
	}
	l.file = nil
	out, err := tarball.LayerFromFile(l.path, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, fmt.Errorf("build: read layer: %w", err)
	}
	return out, nil
}

// abort closes what finish did not. The file goes with its directory.
func (l *layer) abort() {
	if l.file != nil {
		l.file.Close()
	}
}

// header is an entry with everything fixed that could differ between builds.
func header(name string, kind byte, mode int64) *tar.Header {
	return &tar.Header{Typeflag: kind, Name: strings.TrimPrefix(name, "/"), Mode: mode, ModTime: epoch, Format: tar.FormatPAX}
}

func (l *layer) addDir(name string, mode int64) error {
	if err := l.begin(); err != nil {
		return err
	}
	return l.tar.WriteHeader(header(name+"/", tar.TypeDir, mode))
}

func (l *layer) addBytes(name string, b []byte, mode int64) error {
	if err := l.begin(); err != nil {
		return err
	}
	h := header(name, tar.TypeReg, mode)
	h.Size = int64(len(b))
	if err := l.tar.WriteHeader(h); err != nil {
		return err
	}
	_, err := l.tar.Write(b)
	return err
}

// addFile adds a file of the builder's own.
func (l *layer) addFile(from, name string, mode int64) error {
	f, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("build: %w", err)
	}
	defer f.Close()
	return l.addOpen(f, name, mode)
}

func (l *layer) addOpen(f fs.File, name string, mode int64) error {
	if err := l.begin(); err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("build: %s: %w", name, err)
	}
	h := header(name, tar.TypeReg, mode)
	h.Size = st.Size()
	if err := l.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("build: %s: %w", name, err)
	}
	if n, err := io.Copy(l.tar, io.LimitReader(f, h.Size)); err != nil || n != h.Size {
		return fmt.Errorf("build: %s changed while it was read: %w", name, errors.Join(err, io.ErrUnexpectedEOF))
	}
	return nil
}

// addCopy adds what c names, in the order of names.
func (l *layer) addCopy(root *os.Root, c Copy, field string) error {
	st, err := root.Stat(c.Src) // follows a link, though not out of root
	if errors.Is(err, fs.ErrNotExist) {
		return &api.Error{Code: api.CodeInvalid, Field: field + ".src", Err: err,
			Message: fmt.Sprintf("no %q in the build directory", c.Src), Remedy: "check the path; it is relative to the handler's directory"}
	} else if err != nil {
		return &api.Error{Code: api.CodeInvalid, Field: field + ".src", Err: err,
			Message: fmt.Sprintf("%q cannot be read", c.Src), Remedy: "use a file or directory inside the build directory"}
	}
	if !st.IsDir() {
		dst := c.Dst
		if strings.HasSuffix(dst, "/") {
			dst = path.Join(dst, filepath.Base(c.Src))
		}
		return l.addRegular(root, filepath.Clean(c.Src), path.Clean(dst), st, c.Mode, field)
	}
	sub, err := root.OpenRoot(c.Src)
	if err != nil {
		return fmt.Errorf("build: open %s: %w", c.Src, err)
	}
	defer sub.Close()
	return fs.WalkDir(sub.FS(), ".", func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return &api.Error{Code: api.CodeInvalid, Field: field + ".src", Err: err,
				Message: fmt.Sprintf("%q cannot be read", path.Join(c.Src, p)), Remedy: "check its permissions"}
		}
		dst := path.Join(c.Dst, p)
		switch {
		case p == ".":
			if dst == "/" || dst == "/tmp" { // these have modes of their own
				return nil
			}
			return l.addDir(dst, 0o755)
		case e.IsDir() && e.Name() == ".git":
			return fs.SkipDir
		case e.IsDir():
			return l.addDir(dst, 0o755)
		case e.Type() == fs.ModeSymlink:
			return l.addLink(sub, p, dst, field)
		}
		st, err := e.Info()
		if err != nil {
			return fmt.Errorf("build: %w", err)
		}
		return l.addRegular(sub, p, dst, st, c.Mode, field)
	})
}

func (l *layer) addRegular(root *os.Root, src, dst string, st fs.FileInfo, mode uint32, field string) error {
	if !st.Mode().IsRegular() {
		return api.Invalid(field+".src", "copy files and directories alone", fmt.Sprintf("%q is a %s", src, kindOf(st.Mode())))
	}
	if dst == "/" {
		return api.Invalid(field+".dst", "write the file's path in the image, or a directory with a '/' at its end", "a file cannot replace /")
	}
	if mode == 0 {
		// Not the bits as they are: they depend on the umask of who checked
		// the files out, and with them the digest would.
		mode = 0o644
		if st.Mode()&0o100 != 0 {
			mode = 0o755
		}
	}
	f, err := root.Open(src)
	if err != nil {
		return &api.Error{Code: api.CodeInvalid, Field: field + ".src", Err: err,
			Message: fmt.Sprintf("%q cannot be read", src), Remedy: "check its permissions"}
	}
	defer f.Close()
	return l.addOpen(f, dst, int64(mode))
}

// addLink keeps a link that points to something inside of the copied directory.
func (l *layer) addLink(root *os.Root, p, dst, field string) error {
	target, err := root.Readlink(p)
	if err != nil {
		return fmt.Errorf("build: read link %s: %w", p, err)
	}
	if path.IsAbs(target) || !filepath.IsLocal(path.Join(path.Dir(p), target)) {
		return api.Invalid(field+".src", "copy what it points to instead", fmt.Sprintf("the link %q leads out of it, to %q", p, target))
	}
	if err := l.begin(); err != nil {
		return err
	}
	h := header(dst, tar.TypeSymlink, 0o777)
	h.Linkname = target
	return l.tar.WriteHeader(h)
}

func kindOf(m fs.FileMode) string {
	switch {
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeNamedPipe != 0:
		return "named pipe"
	case m&fs.ModeDevice != 0:
		return "device"
	}
	return m.Type().String()
}

// addTar takes over the entries of a tar of the builder's own, in its order,
// with times and owners fixed.
func (l *layer) addTar(from string) error {
	f, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("build: %w", err)
	}
	defer f.Close()
	if err := l.begin(); err != nil {
		return err
	}
	in := tar.NewReader(f)
	for {
		h, err := in.Next()
		if err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("build: read %s: %w", filepath.Base(from), err)
		}
		out := header(strings.TrimPrefix(h.Name, "./"), h.Typeflag, h.Mode)
		out.Linkname, out.Size, out.Uid, out.Gid = h.Linkname, h.Size, h.Uid, h.Gid
		if h.Typeflag == tar.TypeLink {
			out.Linkname = strings.TrimPrefix(h.Linkname, "./")
		}
		if out.Name == "" {
			continue // the root itself
		}
		if err := l.tar.WriteHeader(out); err != nil {
			return fmt.Errorf("build: %s: %w", h.Name, err)
		}
		if _, err := io.Copy(l.tar, in); err != nil {
			return fmt.Errorf("build: %s: %w", h.Name, err)
		}
	}
}
