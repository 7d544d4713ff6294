package keybroker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/attest"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// Secrets of plain functions are kept as keys are: a file for each, sealed under
// the broker's storage key, in a directory for each namespace. Who puts them, a
// coordinator, has seen them and forgets them; no coordinator reads them back. They
// are released to sandboxes of plain functions, against the evidence that keys are
// released against, sealed to the sandbox's own key.
//
// A plain function has no owner who could say which machines may have its secrets:
// every enrolled node that shows evidence gets those of the namespace it asks for.

const (
	secretsDir   = "secrets"
	secretPrefix = "s."
)

// secretPath is safe for every namespace and name that was checked.
func (v *vault) secretPath(namespace, name string) string {
	return filepath.Join(v.dir, secretsDir, namespace, secretPrefix+name)
}

func secretAAD(namespace, name string) []byte {
	return []byte(vaultMagic + secretsDir + "/" + namespace + "/" + name)
}

// checkSecret checks both parts of a secret's name.
func checkSecret(namespace, name string) error {
	if _, err := api.ParseFunctionName("x." + namespace); err != nil {
		return err
	}
	return api.CheckSecretName(name)
}

// PutSecret keeps a secret in the place of what was there; when it returns nil, the
// secret survives a loss of power. The caller wipes value.
func (b *Broker) PutSecret(namespace, name string, value []byte) error {
	err := b.vault.putSecret(namespace, name, value)
	b.decided("put secret", namespace, err, "secret", name)
	return err
}

func (v *vault) putSecret(namespace, name string, value []byte) error {
	if err := checkSecret(namespace, name); err != nil {
		return err
	}
	if len(value) == 0 || len(value) > api.MaxSecrets {
		return api.Invalid("value", fmt.Sprintf("send 1 to %d bytes", api.MaxSecrets), fmt.Sprintf("it has %d bytes", len(value)))
	}
	nonce := make([]byte, v.aead.NonceSize())
	if _, err := io.ReadFull(v.random, nonce); err != nil {
		return fmt.Errorf("keybroker: draw a nonce: %w", err)
	}
	sealedValue := v.aead.Seal(append([]byte(vaultMagic), nonce...), nonce, value, secretAAD(namespace, name))
	v.mu.Lock()
	defer v.mu.Unlock()
	path := v.secretPath(namespace, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("keybroker: vault: %w", err)
	}
	return writeFile(path, sealedValue)
}

// DeleteSecret removes a secret; CodeNotFound if there is none.
func (b *Broker) DeleteSecret(namespace, name string) error {
	err := checkSecret(namespace, name)
	if err == nil {
		b.vault.mu.Lock()
		err = os.Remove(b.vault.secretPath(namespace, name))
		b.vault.mu.Unlock()
		if errors.Is(err, fs.ErrNotExist) {
			err = noSecret(namespace, name)
		}
	}
	b.decided("delete secret", namespace, err, "secret", name)
	return err
}

// Secrets are the names of a namespace's secrets, sorted.
func (b *Broker) Secrets(namespace string) ([]string, error) {
	if err := checkSecret(namespace, "x"); err != nil {
		return nil, err
	}
	b.vault.mu.RLock()
	defer b.vault.mu.RUnlock()
	entries, err := os.ReadDir(filepath.Join(b.vault.dir, secretsDir, namespace))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("keybroker: vault: %w", err)
	}
	out := []string{}
	for _, e := range entries {
		if name, ok := strings.CutPrefix(e.Name(), secretPrefix); ok {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out, nil
}

func noSecret(namespace, name string) error {
	return &api.Error{Code: api.CodeNotFound, Field: "secret", Message: "there is no secret " + name + " in " + namespace, Remedy: "create it: faas-cli secret create " + name}
}

// secret reads one. The caller wipes it.
func (v *vault) secret(namespace, name string) ([]byte, error) {
	if err := checkSecret(namespace, name); err != nil {
		return nil, err
	}
	v.mu.RLock()
	b, err := os.ReadFile(v.secretPath(namespace, name))
	v.mu.RUnlock()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, noSecret(namespace, name)
	}
	if err != nil {
		return nil, fmt.Errorf("keybroker: vault: %w", err)
	}
	n := len(vaultMagic) + v.aead.NonceSize()
	if len(b) < n || !bytes.HasPrefix(b, []byte(vaultMagic)) {
		return nil, fmt.Errorf("keybroker: vault: secret %s of %s is not a file of this version", name, namespace)
	}
	value, err := v.aead.Open(nil, b[len(vaultMagic):n], b[n:], secretAAD(namespace, name))
	if err != nil {
		return nil, fmt.Errorf("keybroker: vault: secret %s of %s was changed, or is another broker's", name, namespace)
	}
	return value, nil
}

// releaseSecrets seals the secrets that a plain function asks for to its sandbox,
// after the checks that a release of keys has, but for those of an owner.
func (b *Broker) releaseSecrets(ctx context.Context, node string, req api.ReleaseRequest, d *decision) (reply api.ReleaseReply, err error) {
	name, err := api.ParseFunctionName(req.Function)
	if err != nil || string(name) != req.Function {
		return reply, api.Invalid("function", "write NAME.NAMESPACE", "it is not a full function name")
	}
	d.function = name
	if d.revision, err = sealed.ParseDigest(req.Revision); err != nil {
		return reply, api.Invalid("revision", "write 64 hex digits", err.Error())
	}
	if d.statement, err = attest.ParseStatement(req.Statement, b.cfg.Now()); err != nil {
		return reply, err
	}
	if d.claims, err = b.cfg.Verifiers.Verify(ctx, req.Statement, req.Evidence, b.cfg.Verifiers.Types()); err != nil {
		return reply, err
	}
	if err := b.checkClaims(d.claims, node); err != nil {
		return reply, err
	}
	if err := b.once.claim(d.statement, name, d.revision); err != nil {
		return reply, err
	}
	values, size := make(map[string][]byte, len(req.Secrets)), 0
	defer func() {
		for _, v := range values {
			clear(v)
		}
	}()
	for _, secret := range req.Secrets {
		v, err := b.vault.secret(name.Namespace(), secret)
		if err != nil {
			return reply, err
		}
		values[secret] = v
		if size += len(v); size > api.MaxSecrets {
			return reply, api.Invalid("secrets", "use fewer or smaller ones", fmt.Sprintf("they are over %d bytes together", api.MaxSecrets))
		}
	}
	mode, err := cbor.EncOptions{}.UserBufferEncMode()
	if err != nil {
		return reply, fmt.Errorf("keybroker: encode secrets: %w", err)
	}
	var body bytes.Buffer
	body.Grow(size + 300*len(values) + 64) // not to grow, which would leave a copy
	if err := mode.MarshalToBuffer(values, &body); err != nil {
		return reply, fmt.Errorf("keybroker: encode secrets: %w", err)
	}
	defer clear(body.Bytes())
	out, err := b.sealRelease(d, body.Bytes())
	return api.ReleaseReply{Sealed: out, Type: d.claims.Type}, err
}

// sealRelease makes one grant for one message: with a shared one, whoever learnt
// the seed of one release could make others.
func (b *Broker) sealRelease(d *decision, body []byte) ([]byte, error) {
	now := b.cfg.Now()
	g, err := sealed.NewGrant(sealed.GrantParams{Role: sealed.RoleRelease, Recipient: d.statement.Ephemeral, Sender: b.cfg.Identity.signer,
		Context: d.revision, Name: string(d.function), NotBefore: now.Add(-time.Minute), NotAfter: now.Add(releaseWindow), Random: b.cfg.Random})
	if err != nil {
		return nil, fmt.Errorf("keybroker: seal a release: %w", err)
	}
	defer g.Release()
	out, err := g.Append(nil, sealed.MessageParams{Issued: now}, body)
	if err != nil {
		return nil, fmt.Errorf("keybroker: seal a release: %w", err)
	}
	return out, nil
}
