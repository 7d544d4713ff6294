package sealed

import (
	"crypto"
	"io"
	"time"
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
type Grant struct{}

// NewGrant makes a grant; it costs an SM2 encryption and a signature. The
// caller ends it with Release.
func NewGrant(p GrantParams) (*Grant, error) { panic("sealed") }

// Header returns the clear part.
func (g *Grant) Header() GrantHeader { panic("sealed") }

// Digest returns SM3 of the encoded grant.
func (g *Grant) Digest() Digest { panic("sealed") }

// SealedLen returns the size of a whole message whose plaintext (head included)
// has n bytes and was never flushed.
func (g *Grant) SealedLen(n int64) int64 { panic("sealed") }

// Release gives a reference back, exactly once for each NewGrant and each
// GrantCache.Get; the last one wipes the seed. Writers already started go on.
func (g *Grant) Release() { panic("sealed") }

// Salts makes message salts that no clone of the process makes again.
type Salts struct{}

// NewSalts returns a source for a machine or process with the given instance id,
// a value that differs per clone, such as the VM generation id.
func NewSalts(instance []byte) *Salts { panic("sealed") }

// GrantCacheConfig sets a GrantCache's bounds; see DefaultGrantCacheConfig.
type GrantCacheConfig struct {
	Size   int              // grants kept
	Window time.Duration    // of a new grant, at most MaxGrantWindow
	Renew  time.Duration    // a grant is replaced this long before its window ends
	Clock  func() time.Time // nil means time.Now
	Random io.Reader        // nil means crypto/rand
	Salts  *Salts           // nil means the process's own
}

// DefaultGrantCacheConfig keeps 1,024 grants of an hour, renewed 5 minutes early.
func DefaultGrantCacheConfig() GrantCacheConfig { panic("sealed") }

// GrantCache keeps sender-side grants by what they are for. It is safe for
// concurrent use.
type GrantCache struct{}

// NewGrantCache checks cfg.
func NewGrantCache(cfg GrantCacheConfig) (*GrantCache, error) { panic("sealed") }

// Get returns a grant for p, made now or earlier. NotBefore, NotAfter, Random
// and Salts of p are ignored. The caller gives the grant back with Release.
func (c *GrantCache) Get(p GrantParams) (*Grant, error) { panic("sealed") }

// Drop forgets all grants: after a restore from a snapshot, or a change of keys.
func (c *GrantCache) Drop() { panic("sealed") }
