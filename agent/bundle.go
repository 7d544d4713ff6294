package agent

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/emmansun/gmsm/sm3"
	"github.com/fxamacker/cbor/v2"

	"github.com/faasd-sec/faasd-sec/agent/launcher"
	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// maxEnv bounds a bundle's environment, encoded; with the image's it must fit
// one message to the launcher.
const maxEnv = 96 << 10

// takeBundle opens a sealed bundle as it comes, has the launcher unpack it and
// returns its environment. Nothing of it runs before this returns nil, and it
// does so only if the whole bundle verified and its digest is the descriptor's.
// It unpacks while it verifies, into the function's own memory: a bundle is too
// large to be held here, and what was unpacked of a refused one ends with the
// sandbox.
func takeBundle(ctx context.Context, cfg *Config, n *binding, l *launcher.Launcher, sealedBundle io.Reader) (map[string]string, error) {
	opener, err := unseal.NewOpener(unseal.Config{Keys: n.keys, Clock: cfg.Now})
	if err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	msg, err := opener.Open(sealedBundle, unseal.Expect{Role: sealed.RoleBundle, Name: n.name,
		Context: n.revision, Senders: unseal.Only(n.owner)})
	if err != nil {
		return nil, badBundle(err)
	}
	defer msg.Close()
	plain, err := msg.Stream()
	if err != nil {
		return nil, badBundle(err)
	}
	digest := sm3.New()
	body := io.TeeReader(plain, digest)
	var nonce [sealed.BundleNonce]byte
	if _, err := io.ReadFull(body, nonce[:]); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = &sealed.Error{Code: sealed.CodeFormat, Detail: "the bundle is shorter than the bytes before its tar"}
		}
		return nil, badBundle(err)
	}
	w, r, err := pipeTo(true)
	if err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	unpacked := make(chan error, 1)
	go func() {
		err := l.Unpack(ctx, r, launcher.UnpackOptions{CodeDir: n.desc.Config.BundleMount, SecretsDir: cfg.SecretsDir})
		_ = r.Close() // the launcher has its own: when it gave up, our writing must end too
		unpacked <- err
	}()
	env, readErr := splitEnv(io.TeeReader(body, w))
	_ = w.Close()
	if err := <-unpacked; err != nil {
		// The launcher's reason comes first: our writing fails because of it.
		return nil, badBundle(err)
	}
	if readErr != nil {
		return nil, badBundle(readErr)
	}
	if want := n.desc.Config.Bundle; subtle.ConstantTimeCompare(digest.Sum(nil), want[:]) != 1 {
		return nil, api.Errorf(api.CodeStaleRevision, "the bundle's digest is not the one in the descriptor")
	}
	return env, nil
}

// badBundle is a refusal without a reason, for the node sees it: an envelope's
// code says nothing of the content, but names of files and variables would. The
// reason is the cause, which goes to the owner's log.
func badBundle(err error) error {
	msg := "the sealed bundle was refused; the owner's log says why"
	if code := sealed.CodeOf(err); code != "" {
		msg = "the sealed bundle does not open: " + string(code)
	}
	e := api.Wrap(api.CodeStartFailed, err, msg)
	e.Field, e.Remedy = "bundle", "build and deploy the function again"
	return e
}

// splitEnv reads a bundle's tar to its end and returns the "env" entry.
func splitEnv(r io.Reader) (map[string]string, error) {
	env := map[string]string{}
	tr := tar.NewReader(r)
	for seen := false; ; {
		h, err := tr.Next()
		if err == io.EOF {
			_, err = io.Copy(io.Discard, r)
			return env, err
		}
		if err != nil {
			return nil, err
		}
		if strings.TrimPrefix(h.Name, "./") != "env" {
			continue
		}
		if seen || h.Typeflag != tar.TypeReg || h.Size > maxEnv {
			return nil, fmt.Errorf("env must be one plain file of at most %d bytes", maxEnv)
		}
		seen = true
		b, err := io.ReadAll(tr)
		if err != nil {
			return nil, err
		}
		if env, err = decodeEnv(b); err != nil {
			return nil, err
		}
	}
}

// decodeEnv reads the deterministic CBOR map from text to text.
func decodeEnv(b []byte) (map[string]string, error) {
	defer clear(b)
	mode, err := cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden,
		TagsMd: cbor.TagsForbidden, MaxMapPairs: 4096}.DecMode()
	if err != nil {
		return nil, fmt.Errorf("env: %w", err)
	}
	var env map[string]string
	if err := mode.Unmarshal(b, &env); err != nil {
		return nil, fmt.Errorf("env: %w", err)
	}
	// One map has one encoding (docs/envelope.md): what decodes but would be
	// written differently was not made by the format.
	det, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		return nil, fmt.Errorf("env: %w", err)
	}
	again, err := det.Marshal(env)
	if err != nil {
		return nil, fmt.Errorf("env: %w", err)
	}
	defer clear(again)
	if env == nil || !bytes.Equal(again, b) {
		return nil, errors.New("env: not deterministic CBOR")
	}
	for k, v := range env {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.ContainsRune(v, 0) {
			return nil, fmt.Errorf("env: %q is not a name with a value", k)
		}
	}
	return env, nil
}
