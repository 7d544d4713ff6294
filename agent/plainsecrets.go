package agent

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/hex"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"github.com/faasd-sec/faasd-sec/agent/launcher"
	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// takeSecrets waits for a plain function's secrets, which the key broker sealed to
// this sandbox's key, and has the launcher write them where the function finds
// them: in memory, readable by the function alone.
func (a *Agent) takeSecrets(ctx context.Context, n *binding) error {
	var frame []byte
	select {
	case c := <-a.keys:
		if p := c.Refused; p != nil {
			return &api.Error{Code: p.Code, Message: p.Detail, Field: p.Field, Remedy: p.Remedy}
		}
		frame = c.Keys.Sealed
	case <-ctx.Done():
		return waited(ctx, "for the function's secrets")
	}
	secrets, err := openSecrets(&a.cfg, a.ephemeral, n, frame)
	if err != nil {
		return err
	}
	defer func() {
		for _, v := range secrets {
			clear(v)
		}
	}()
	w, r, err := pipeTo(true)
	if err != nil {
		return fmt.Errorf("secrets: %w", err)
	}
	unpacked := make(chan error, 1)
	go func() {
		err := a.launcher.Unpack(ctx, r, launcher.UnpackOptions{SecretsDir: a.cfg.SecretsDir})
		_ = r.Close() // the launcher has its own
		unpacked <- err
	}()
	tw := tar.NewWriter(w)
	var writeErr error
	for _, name := range n.plain.Function.Secrets {
		v, ok := secrets[name]
		if !ok {
			writeErr = api.Errorf(api.CodeKeyRefused, "secret %s was not released", name)
			break
		}
		if writeErr = tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "secrets/" + name, Size: int64(len(v)), Mode: 0o400}); writeErr == nil {
			_, writeErr = tw.Write(v)
		}
		if writeErr != nil {
			break
		}
	}
	if writeErr == nil {
		writeErr = tw.Close()
	}
	_ = w.Close()
	if err := <-unpacked; err != nil {
		return api.Wrap(api.CodeStartFailed, err, "the secrets could not be written: "+err.Error())
	}
	return writeErr
}

// openSecrets opens a release of secrets: a map from name to value.
func openSecrets(cfg *Config, ephemeral *unseal.PrivateKey, n *binding, frame []byte) (map[string][]byte, error) {
	raw, err := hex.DecodeString(n.plain.Broker)
	if err != nil || len(raw) != len(sealed.PublicKey{}) {
		return nil, api.Errorf(api.CodeKeyRefused, "the node names no key broker that releases secrets")
	}
	keys, err := unseal.NewKeySet(unseal.Key{Decrypter: ephemeral})
	if err != nil {
		return nil, fmt.Errorf("secrets: %w", err)
	}
	replay, err := sealed.NewReplaySet(sealed.ReplayConfig{Size: 16, Clock: cfg.Now})
	if err != nil {
		return nil, fmt.Errorf("secrets: %w", err)
	}
	opener, err := unseal.NewOpener(unseal.Config{Keys: keys, Replay: replay, Clock: cfg.Now})
	if err != nil {
		return nil, fmt.Errorf("secrets: %w", err)
	}
	msg, err := opener.Open(bytes.NewReader(frame), unseal.Expect{Role: sealed.RoleRelease, Name: n.name,
		Context: n.revision, Senders: unseal.Only(sealed.PublicKey(raw))})
	if err != nil {
		return nil, refusedKeys(err)
	}
	defer msg.Close()
	body, err := msg.ReadAll(api.MaxSecrets + 64<<10)
	if err != nil {
		return nil, refusedKeys(err)
	}
	defer clear(body)
	var out map[string][]byte
	if err := cbor.Unmarshal(body, &out); err != nil {
		return nil, refusedKeys(err)
	}
	return out, nil
}
