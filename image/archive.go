package image

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Image is an image whose parts may lie in files that Close gives back.
type Image struct {
	v1.Image
	close func() error
}

// DigestString is the manifest's digest, "sha256:…".
func (i *Image) DigestString() (string, error) {
	h, err := i.Image.Digest()
	if err != nil {
		return "", fmt.Errorf("digest of image: %w", err)
	}
	return h.String(), nil
}

// Close gives files back. The image cannot be read any more.
func (i *Image) Close() error {
	if i.close == nil {
		return nil
	}
	return i.close()
}

// Names of annotations in an archive's index: the OCI one, and containerd's.
const (
	annotationTag  = "org.opencontainers.image.ref.name"
	annotationName = "io.containerd.image.name"
)

// maxArchiveJSON bounds the small files of an archive in bytes.
const maxArchiveJSON = 4 << 20

// Save writes the image as an OCI layout in a tar, named "repository:tag" for
// those who import it, replacing path as a whole or not at all.
func (i *Image) Save(path, name string) (retErr error) {
	f, err := os.CreateTemp(dirOf(path), ".image-")
	if err != nil {
		return fmt.Errorf("save image: %w", err)
	}
	defer func() {
		if retErr != nil {
			f.Close()
			os.Remove(f.Name())
			retErr = fmt.Errorf("save image to %s: %w", path, retErr)
		}
	}()
	w := &archiveWriter{tar: tar.NewWriter(f), seen: map[string]bool{}}
	if err := w.writeImage(i.Image, name); err != nil {
		return err
	}
	if err := errors.Join(w.tar.Close(), f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func dirOf(path string) string {
	if i := strings.LastIndexByte(path, '/'); i > 0 {
		return path[:i]
	}
	if strings.HasPrefix(path, "/") {
		return "/"
	}
	return "."
}

type archiveWriter struct {
	tar  *tar.Writer
	seen map[string]bool // blobs, as two layers may be one
}

func (w *archiveWriter) writeImage(img v1.Image, name string) error {
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	if err := w.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	for _, l := range layers {
		if err := w.layer(l); err != nil {
			return err
		}
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return err
	}
	ch, err := img.ConfigName()
	if err != nil {
		return err
	}
	manifest, err := img.RawManifest()
	if err != nil {
		return err
	}
	desc, err := partial.Descriptor(img)
	if err != nil {
		return err
	}
	tag := name[strings.LastIndexByte(name, ':')+1:]
	desc.Annotations = map[string]string{annotationTag: tag, annotationName: name}
	index, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{*desc}})
	if err != nil {
		return err
	}
	return errors.Join(w.file(blobName(ch), config), w.file(blobName(desc.Digest), manifest), w.file("index.json", index))
}

func blobName(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }

func (w *archiveWriter) file(name string, b []byte) error {
	if w.seen[name] {
		return nil
	}
	w.seen[name] = true
	h := header(name, tar.TypeReg, 0o644)
	h.Size = int64(len(b))
	if err := w.tar.WriteHeader(h); err != nil {
		return err
	}
	_, err := w.tar.Write(b)
	return err
}

func (w *archiveWriter) layer(l v1.Layer) error {
	d, err := l.Digest()
	if err != nil {
		return err
	}
	if w.seen[blobName(d)] {
		return nil
	}
	w.seen[blobName(d)] = true
	h := header(blobName(d), tar.TypeReg, 0o644)
	if h.Size, err = l.Size(); err != nil {
		return err
	}
	body, err := l.Compressed()
	if err != nil {
		return err
	}
	defer body.Close()
	if err := w.tar.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(w.tar, body)
	return err
}

// OpenArchive opens an OCI layout in a tar, as Save writes it, or the output
// of docker save. Layers are read from the file when they are needed.
func OpenArchive(path string) (*Image, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open image archive: %w", err)
	}
	img, err := openOCI(f)
	if errors.Is(err, errNoLayout) {
		f.Close()
		docker, derr := tarball.ImageFromPath(path, nil)
		if derr != nil {
			return nil, fmt.Errorf("open image archive %s: neither an OCI layout nor docker save: %w", path, derr)
		}
		return &Image{Image: docker}, nil
	} else if err != nil {
		f.Close()
		return nil, fmt.Errorf("open image archive %s: %w", path, err)
	}
	return &Image{Image: img, close: f.Close}, nil
}

var errNoLayout = errors.New("no oci-layout file")

func openOCI(f *os.File) (v1.Image, error) {
	files := map[string]*io.SectionReader{}
	in := tar.NewReader(f)
	for {
		h, err := in.Next()
		if err == io.EOF {
			break
		} else if err != nil {
			return nil, err
		}
		if h.Typeflag == tar.TypeReg {
			at, err := f.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			files[strings.TrimPrefix(h.Name, "./")] = io.NewSectionReader(f, at, h.Size)
		}
	}
	if files["oci-layout"] == nil {
		return nil, errNoLayout
	}
	a := &archive{files: files}
	b, err := a.small("index.json")
	if err != nil {
		return nil, err
	}
	var idx v1.IndexManifest
	if err := json.Unmarshal(b, &idx); err != nil {
		return nil, fmt.Errorf("index.json: %w", err)
	}
	if len(idx.Manifests) != 1 || !idx.Manifests[0].MediaType.IsImage() {
		return nil, errors.New("index.json does not name exactly one image")
	}
	a.kind = idx.Manifests[0].MediaType
	if a.manifest, err = a.blob(idx.Manifests[0].Digest); err != nil {
		return nil, err
	}
	if a.parsed, err = v1.ParseManifest(strings.NewReader(string(a.manifest))); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	return partial.CompressedToImage(a)
}

// archive is an image in a tar, for package partial.
type archive struct {
	files    map[string]*io.SectionReader
	kind     types.MediaType
	manifest []byte
	parsed   *v1.Manifest
}

var _ partial.CompressedImageCore = (*archive)(nil)

func (a *archive) MediaType() (types.MediaType, error) { return a.kind, nil }
func (a *archive) RawManifest() ([]byte, error)        { return a.manifest, nil }
func (a *archive) RawConfigFile() ([]byte, error)      { return a.blob(a.parsed.Config.Digest) }

func (a *archive) small(name string) ([]byte, error) {
	s := a.files[name]
	if s == nil {
		return nil, fmt.Errorf("no %s in it", name)
	}
	if s.Size() > maxArchiveJSON {
		return nil, fmt.Errorf("%s has %d bytes", name, s.Size())
	}
	b := make([]byte, s.Size())
	if _, err := s.ReadAt(b, 0); err != nil && err != io.EOF {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return b, nil
}

// blob reads a small blob and checks its digest.
func (a *archive) blob(h v1.Hash) ([]byte, error) {
	b, err := a.small(blobName(h))
	if err != nil {
		return nil, err
	}
	got, _, err := v1.SHA256(strings.NewReader(string(b)))
	if err != nil || got != h {
		return nil, fmt.Errorf("%s has another content", h)
	}
	return b, nil
}

// LayerByDigest finds a layer.
func (a *archive) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	for _, d := range a.parsed.Layers {
		if d.Digest == h {
			s := a.files[blobName(h)]
			if s == nil || s.Size() != d.Size {
				return nil, fmt.Errorf("layer %s is missing or cut off", h)
			}
			return &archiveLayer{desc: d, body: s}, nil
		}
	}
	return nil, fmt.Errorf("no layer %s", h)
}

type archiveLayer struct {
	desc v1.Descriptor
	body *io.SectionReader
}

func (l *archiveLayer) Digest() (v1.Hash, error)            { return l.desc.Digest, nil }
func (l *archiveLayer) Size() (int64, error)                { return l.desc.Size, nil }
func (l *archiveLayer) MediaType() (types.MediaType, error) { return l.desc.MediaType, nil }
func (l *archiveLayer) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(io.NewSectionReader(l.body, 0, l.body.Size())), nil
}
