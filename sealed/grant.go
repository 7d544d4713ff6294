package sealed

import (
	"crypto"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/sm3"

	"github.com/faasd-sec/faasd-sec/sealed/internal/der"
	"github.com/faasd-sec/faasd-sec/sealed/internal/keysched"
	"github.com/faasd-sec/faasd-sec/sealed/internal/wire"
)

// GrantHeader is what of a grant is in clear.
type GrantHeader struct {
	Suite     uint16
	Role      Role
	Recipient KeyID
	Sender    PublicKey // the sender's signing key
	ReplyKey  PublicKey // the decryption key that replies are sealed to, or zero
	Context   Digest    // the revision, or zero in roles 4 and 5
	NotBefore uint64    // unix seconds
	NotAfter  uint64    // unix seconds
	Name      string    // "function.namespace"
}

// HeaderOf converts a decoded grant; only this module can make one.
func HeaderOf(g *wire.Grant) GrantHeader {
	return GrantHeader{
		Suite: g.Suite, Role: Role(g.Role), Recipient: g.Recipient, Sender: g.Sender, ReplyKey: g.ReplyKey,
		Context: g.Context, NotBefore: g.NotBefore, NotAfter: g.NotAfter, Name: g.Name,
	}
}

// GrantParams say what a new grant is for.
type GrantParams struct {
	Role      Role
	Recipient PublicKey     // the reader's decryption key
	Sender    crypto.Signer // the sender's SM2 signing key; given e = SM3(Z_A || M)
	ReplyKey  PublicKey     // role 1: the sender's decryption key, or zero for no reply; else zero
	Context   Digest        // the revision; zero in roles 4 and 5
	Name      string        // "function.namespace"
	NotBefore time.Time     // whole seconds, rounded down
	NotAfter  time.Time     // whole seconds, rounded down; at most an hour later in roles 1, 2, 4, 5, 6
	Random    io.Reader     // for the seed, the encryption, the signature and salts; nil means crypto/rand
	Salts     *Salts        // nil means the process's own
}

// Grant is a sender's grant with its seed. It is safe for concurrent use.
type Grant struct {
	header    GrantHeader
	bytes     []byte
	digest    Digest
	recipient PublicKey
	schedule  *keysched.Schedule
	random    io.Reader
	salts     *Salts
	refs      atomic.Int64 // the last Release wipes the schedule
}

// NewGrant makes a grant; it costs an SM2 encryption and a signature. The
// caller ends it with Release.
func NewGrant(p GrantParams) (*Grant, error) {
	if err := p.check(); err != nil {
		return nil, fmt.Errorf("sealed: new grant: %w", err)
	}
	if p.Random == nil {
		p.Random = rand.Reader
	}
	if p.Salts == nil {
		p.Salts = processSalts()
	}
	sender, err := signerKey(p.Sender)
	if err != nil {
		return nil, fmt.Errorf("sealed: new grant: sender: %w", err)
	}
	if sender == p.ReplyKey {
		return nil, errors.New("sealed: new grant: the reply key is the sender's signing key; use one key to sign and another to decrypt")
	}
	w := wire.Grant{
		Suite: SuiteSM, Role: uint8(p.Role), Recipient: p.Recipient.KeyID(), Sender: sender, ReplyKey: p.ReplyKey,
		Context: p.Context, NotBefore: uint64(p.NotBefore.Unix()), NotAfter: uint64(p.NotAfter.Unix()), Name: p.Name,
	}

	var seed [keysched.SeedSize]byte
	defer clear(seed[:])
	if _, err := io.ReadFull(p.Random, seed[:]); err != nil {
		return nil, fmt.Errorf("sealed: new grant: draw the seed: %w", err)
	}
	to, err := p.Recipient.ecdsa()
	if err != nil {
		return nil, fmt.Errorf("sealed: new grant: recipient: %w", err)
	}
	if w.Enc, err = sm2.EncryptASN1(p.Random, to, seed[:]); err != nil {
		return nil, fmt.Errorf("sealed: new grant: encrypt the seed: %w", err)
	}
	if !der.IsSeed(w.Enc) {
		return nil, errors.New("sealed: new grant: the encrypted seed is not in strict DER")
	}
	b := w.AppendUnsigned(make([]byte, 0, wire.GrantFixed+len(p.Name)+2+der.MaxSeed+1+der.MaxSignature))
	sig, signed, err := Sign(p.Random, p.Sender, LabelGrant, b)
	if err != nil {
		return nil, fmt.Errorf("sealed: new grant: %w", err)
	}
	if signed != sender {
		return nil, errors.New("sealed: new grant: the signer changed its key meanwhile")
	}
	b = append(append(b, byte(len(sig))), sig...)

	g := &Grant{
		header: HeaderOf(&w), bytes: b, digest: sm3.Sum(b), recipient: p.Recipient,
		schedule: keysched.New(b, p.Recipient[:], &seed, LinksOf(p.Role)),
		random:   p.Random, salts: p.Salts,
	}
	g.refs.Store(1)
	return g, nil
}

func (p *GrantParams) check() error {
	if !p.Role.Valid() {
		return fmt.Errorf("role %d is unknown", p.Role)
	}
	if p.Recipient.IsZero() {
		return errors.New("recipient: no key given")
	}
	if !p.ReplyKey.IsZero() {
		if p.Role != RoleRequest {
			return fmt.Errorf("reply key: a %s has none", p.Role)
		}
		if _, err := p.ReplyKey.ecdsa(); err != nil {
			return fmt.Errorf("reply key: %w", err)
		}
	}
	if p.Context.IsZero() == p.Role.HasContext() {
		return fmt.Errorf("context: set %t in a %s, want %t", !p.Context.IsZero(), p.Role, p.Role.HasContext())
	}
	if !wire.ValidName(p.Name) {
		return errors.New(`name: want "function.namespace" of a-z, 0-9 and -`)
	}
	from, to := p.NotBefore.Unix(), p.NotAfter.Unix()
	switch {
	case from < 0:
		return errors.New("not before: lies before 1970")
	case to < from:
		return errors.New("not after: lies before not before")
	case p.Role.ShortWindow() && to-from > int64(MaxGrantWindow/time.Second):
		return fmt.Errorf("window: %d s in a %s, at most %s", to-from, p.Role, MaxGrantWindow)
	}
	return nil
}

// signerKey asks a signer for its public key, by the short way where it has one.
func signerKey(s crypto.Signer) (PublicKey, error) {
	if s == nil {
		return PublicKey{}, errors.New("no signing key given")
	}
	if k, ok := s.(interface{ PublicKey() PublicKey }); ok {
		return k.PublicKey(), nil
	}
	return PublicKeyOf(s.Public())
}

// Header returns the clear part.
func (g *Grant) Header() GrantHeader { return g.header }

// Recipient returns the reader's key.
func (g *Grant) Recipient() PublicKey { return g.recipient }

// Digest returns SM3 of the encoded grant.
func (g *Grant) Digest() Digest { return g.digest }

// SealedLen returns the size of a whole message whose plaintext (head included)
// has n bytes and was never flushed.
func (g *Grant) SealedLen(n int64) int64 {
	records := max(1, (n+MaxRecord-1)/MaxRecord)
	return int64(len(g.bytes)) + wire.MessageSize + n + records*(wire.RecordHeader+wire.Tag)
}

// Release gives a reference back, exactly once for each NewGrant and each
// GrantCache.Get; the last one wipes the seed. Writers already started go on.
func (g *Grant) Release() {
	if g.refs.Add(-1) == 0 {
		g.schedule.Wipe()
	}
}

func (g *Grant) retain() { g.refs.Add(1) }
