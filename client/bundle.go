package client

import (
	"archive/tar"
	"bytes"
	"crypto/hmac"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/emmansun/gmsm/sm3"
	"github.com/fxamacker/cbor/v2"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// Limits of a bundle, which agents enforce too.
const (
	MaxBundle       = 256 << 20 // bytes of all files
	MaxBundleFiles  = 20000
	MaxBundleEnv    = 96 << 10 // bytes, encoded
	MaxBundleSecret = 1 << 20  // bytes of one secret
)

// Bundle is what a function gets besides its image: nobody but its agent and its
// owner reads it.
type Bundle struct {
	Dir     string            // its files go to Deployment.BundlePath; empty for none
	Env     map[string]string // the function's environment
	Secrets map[string][]byte // files in /var/openfaas/secrets
}

func (b *Bundle) empty() bool { return b.Dir == "" && len(b.Env) == 0 && len(b.Secrets) == 0 }

// writeTar writes the bundle's archive (docs/envelope.md). Equal content gives
// equal bytes: entries are sorted, and owners and times are left out.
func (b *Bundle) writeTar(w io.Writer) error {
	tw := tar.NewWriter(w)
	if len(b.Env) > 0 {
		mode, err := cbor.CoreDetEncOptions().EncMode()
		if err != nil {
			return fmt.Errorf("client: bundle: %w", err)
		}
		env, err := mode.Marshal(b.Env)
		if err != nil {
			return fmt.Errorf("client: bundle: encode the environment: %w", err)
		}
		defer clear(env)
		if len(env) > MaxBundleEnv {
			return api.Invalid("environment", "put large values into the bundle's files", fmt.Sprintf("%d bytes, at most %d", len(env), MaxBundleEnv))
		}
		if err := writeEntry(tw, "env", 0o400, env); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(b.Secrets)) {
		if v := b.Secrets[name]; len(v) > MaxBundleSecret {
			return api.Invalid("secrets."+name, "put it into the bundle's files", fmt.Sprintf("%d bytes, at most %d", len(v), MaxBundleSecret))
		} else if err := writeEntry(tw, "secrets/"+name, 0o400, v); err != nil {
			return err
		}
	}
	if b.Dir != "" {
		if err := writeDir(tw, b.Dir); err != nil {
			return err
		}
	}
	if err := tw.Close(); err != nil {
		return fmt.Errorf("client: bundle: %w", err)
	}
	return nil
}

func writeEntry(tw *tar.Writer, name string, mode int64, content []byte) error {
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content))}); err != nil {
		return fmt.Errorf("client: bundle: %s: %w", name, err)
	}
	if _, err := tw.Write(content); err != nil {
		return fmt.Errorf("client: bundle: %s: %w", name, err)
	}
	return nil
}

// writeDir walks in lexical order. The root confines it, so that a link that is
// swapped in meanwhile cannot add a file from elsewhere.
func writeDir(tw *tar.Writer, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return &api.Error{Code: api.CodeInvalid, Field: "sealed.bundle", Err: err, Message: "cannot open the directory " + dir,
			Remedy: "create it, or correct the path, which is relative to function.yml"}
	}
	defer root.Close()
	var files, size int64
	return fs.WalkDir(root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("client: bundle: %w", err)
		}
		if name == "." {
			return nil
		}
		info, err := e.Info()
		if err != nil {
			return fmt.Errorf("client: bundle: %w", err)
		}
		if files++; files > MaxBundleFiles {
			return api.Invalid("sealed.bundle", "pack fewer files", fmt.Sprintf("more than %d files and directories", MaxBundleFiles))
		}
		if size += info.Size(); size > MaxBundle {
			return api.Invalid("sealed.bundle", "move public parts into the image", fmt.Sprintf("more than %d bytes", MaxBundle))
		}
		return writeFSEntry(tw, root, name, info)
	})
}

func writeFSEntry(tw *tar.Writer, root *os.Root, name string, info fs.FileInfo) error {
	h := &tar.Header{Name: path.Join("code", filepath.ToSlash(name))}
	switch {
	case info.IsDir():
		h.Typeflag, h.Mode = tar.TypeDir, 0o755
		h.Name += "/"
	case info.Mode().IsRegular():
		// Of the permissions only "executable" is kept: a checkout's umask must
		// not change the revision.
		h.Typeflag, h.Mode, h.Size = tar.TypeReg, 0o644, info.Size()
		if info.Mode()&0o111 != 0 {
			h.Mode = 0o755
		}
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := root.Readlink(name)
		if err != nil {
			return fmt.Errorf("client: bundle: %w", err)
		}
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, target, 0o777
	default:
		return api.Invalid("sealed.bundle", "remove it from the directory", name+" is neither a file, a directory nor a link")
	}
	if err := tw.WriteHeader(h); err != nil {
		return fmt.Errorf("client: bundle: %s: %w", name, err)
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	f, err := root.Open(name)
	if err != nil {
		return fmt.Errorf("client: bundle: %w", err)
	}
	defer f.Close()
	if _, err := io.CopyN(tw, f, h.Size); err != nil {
		return fmt.Errorf("client: bundle: %s changed while it was read: %w", name, err)
	}
	return nil
}

// measured is a bundle with what it will be known by.
type measured struct {
	*Bundle
	nonce  [sealed.BundleNonce]byte
	digest sealed.Digest
}

// measure reads the bundle once for its digest. The nonce is HMAC-SM3 of the
// archive's digest under a key derived from the function's signing key: nobody
// else can confirm a guess at the content, yet deploying the same content again
// keeps the revision, and running sandboxes with it.
func (b *Bundle) measure(signing *unseal.PrivateKey) (*measured, error) {
	plain := sm3.New()
	if err := b.writeTar(plain); err != nil {
		return nil, err
	}
	scalar := signing.Scalar()
	defer clear(scalar)
	label := hmac.New(sm3.New, scalar)
	label.Write([]byte("faasd-sec/v1 bundle nonce\x00"))
	key := label.Sum(nil)
	defer clear(key)
	mac := hmac.New(sm3.New, key)
	mac.Write(plain.Sum(nil))
	m := &measured{Bundle: b}
	copy(m.nonce[:], mac.Sum(nil))
	h := sm3.New()
	h.Write(m.nonce[:])
	if err := b.writeTar(h); err != nil {
		return nil, err
	}
	copy(m.digest[:], h.Sum(nil))
	return m, nil
}

// seal writes the sealed bundle. A directory that changes meanwhile is noticed.
func (m *measured) seal(w io.Writer, g *sealed.Grant, p sealed.MessageParams) error {
	out, err := g.Seal(w, p)
	if err != nil {
		return fmt.Errorf("client: seal the bundle: %w", err)
	}
	defer out.Abort()
	check := sm3.New()
	both := io.MultiWriter(out, check)
	if _, err := both.Write(m.nonce[:]); err != nil {
		return fmt.Errorf("client: seal the bundle: %w", err)
	}
	if err := m.writeTar(both); err != nil {
		return err
	}
	if !bytes.Equal(check.Sum(nil), m.digest[:]) {
		return errors.New("client: the bundle's directory changed while it was sealed: deploy again")
	}
	if err := out.Close(); err != nil {
		return fmt.Errorf("client: seal the bundle: %w", err)
	}
	return nil
}
