package runtimetest

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	goruntime "runtime"
	"slices"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// File is one entry of a layer. Parents are made with mode 0755.
type File struct {
	Path string // without a leading slash
	Body []byte
	Mode int64  // permission bits, setuid included; 0 is 0755
	Link string // makes a symbolic link to it
	Dir  bool
	UID  int
	Dev  bool // makes the character device 1:1, /dev/mem
}

// Archive is an OCI image layout as a tar file, made without a registry, and
// the digest of its only image. Layers are given lowest first.
func Archive(config ocispec.ImageConfig, layers ...[]File) (archive []byte, dgst string, err error) {
	var blobs []File
	blob := func(mediaType string, body []byte) ocispec.Descriptor {
		sum := sha256.Sum256(body)
		name := hex.EncodeToString(sum[:])
		path := "blobs/sha256/" + name
		if !slices.ContainsFunc(blobs, func(f File) bool { return f.Path == path }) {
			blobs = append(blobs, File{Path: path, Body: body, Mode: 0o644})
		}
		return ocispec.Descriptor{MediaType: mediaType, Digest: digest.NewDigestFromEncoded(digest.SHA256, name), Size: int64(len(body))}
	}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	img := ocispec.Image{Config: config, RootFS: ocispec.RootFS{Type: "layers"}}
	img.Architecture, img.OS = goruntime.GOARCH, "linux"
	for _, files := range layers {
		body, err := tarOf(files)
		if err != nil {
			return nil, "", err
		}
		d := blob(ocispec.MediaTypeImageLayer, body)
		manifest.Layers = append(manifest.Layers, d)
		img.RootFS.DiffIDs = append(img.RootFS.DiffIDs, d.Digest)
	}
	cfg, err := json.Marshal(img)
	if err != nil {
		return nil, "", fmt.Errorf("encode image configuration: %w", err)
	}
	manifest.Config = blob(ocispec.MediaTypeImageConfig, cfg)
	m, err := json.Marshal(manifest)
	if err != nil {
		return nil, "", fmt.Errorf("encode manifest: %w", err)
	}
	d := blob(ocispec.MediaTypeImageManifest, m)
	index, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{d}})
	if err != nil {
		return nil, "", fmt.Errorf("encode index: %w", err)
	}
	archive, err = tarOf(append(blobs,
		File{Path: ocispec.ImageIndexFile, Body: index, Mode: 0o644},
		File{Path: ocispec.ImageLayoutFile, Body: []byte(`{"imageLayoutVersion":"1.0.0"}`), Mode: 0o644}))
	return archive, d.Digest.String(), err
}

func tarOf(files []File) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Name: f.Path, Mode: f.Mode, Uid: f.UID, Gid: f.UID, Typeflag: tar.TypeReg, Size: int64(len(f.Body))}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		switch {
		case f.Link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.Link
		case f.Dir:
			h.Typeflag, h.Name = tar.TypeDir, f.Path+"/"
		case f.Dev:
			h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, 1, 1
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("layer entry %s: %w", f.Path, err)
		}
		if _, err := w.Write(f.Body); err != nil {
			return nil, fmt.Errorf("layer entry %s: %w", f.Path, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("end of layer: %w", err)
	}
	return buf.Bytes(), nil
}
