package manifest

import (
	"crypto"
	"fmt"
	"io"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// Life is how long a sealed manifest opens: as long as any message may.
const Life = sealed.MaxLife

// Seal seals m for the function name to the cluster's manifest key, signed by
// signer, who is the initiator. A grant serves one manifest. A nil random means
// crypto/rand.
func Seal(m *Manifest, to sealed.PublicKey, signer crypto.Signer, name api.FunctionName, now time.Time, random io.Reader) ([]byte, error) {
	if m.Task.IsZero() {
		return nil, api.Invalid("task", "draw one with sealed.NewID", "no task id")
	}
	body, err := m.Encode()
	if err != nil {
		return nil, err
	}
	return seal(body, to, signer, name, now, random)
}

// SealBounds seals a function's bounds to the cluster's manifest key, signed by
// the function's owner.
func SealBounds(b *Bounds, to sealed.PublicKey, owner crypto.Signer, name api.FunctionName, now time.Time, random io.Reader) ([]byte, error) {
	body, err := b.Encode()
	if err != nil {
		return nil, err
	}
	return seal(body, to, owner, name, now, random)
}

func seal(body []byte, to sealed.PublicKey, signer crypto.Signer, name api.FunctionName, now time.Time, random io.Reader) ([]byte, error) {
	defer clear(body)
	g, err := sealed.NewGrant(sealed.GrantParams{Role: sealed.RoleManifest, Recipient: to, Sender: signer, Name: string(name),
		NotBefore: now, NotAfter: now.Add(Life), Random: random})
	if err != nil {
		return nil, fmt.Errorf("manifest: seal: %w", err)
	}
	defer g.Release()
	out, err := g.Append(nil, sealed.MessageParams{Issued: now, Life: Life}, body)
	if err != nil {
		return nil, fmt.Errorf("manifest: seal: %w", err)
	}
	return out, nil
}
