package sealed

import (
	"crypto"
	"io"
	"time"
)

// Mode says how the agent talks to the function's process.
type Mode string

// The modes.
const (
	ModeHTTP        Mode = "http"
	ModeSerializing Mode = "serializing"
	ModeStreaming   Mode = "streaming"
)

// Descriptor is what a function's owner signs about it: callers seal by it,
// agents and key brokers enforce it.
type Descriptor struct {
	Name      string // of the function
	Namespace string
	Sequence  uint64 // grows with every descriptor of a function: guards against rollback
	Issued    uint64 // unix seconds
	Config    Config // code and configuration: the revision covers this and the name

	BundleBlob   string          // "sha256:…" of the sealed bundle, or empty
	SigningKey   PublicKey       // the function's; signs replies and logs
	Decryption   []DecryptionKey // 1..3
	Suites       []uint16        // accepted, ascending
	LogRecipient PublicKey       // the owner's decryption key, or zero for no log
	MaxQueuedMS  uint64          // longest life of a queued request, 0 refuses them
	ImageRef     string          // a hint where to pull the image
}

// Config is the revisioned part of a Descriptor.
type Config struct {
	Image       string   // "sha256:…", the OCI digest
	Bundle      Digest   // SM3(32 random bytes || tar); zero for no bundle
	Mode        Mode     //
	Argv        []string // empty means the image's own
	Upstream    string   // "http://127.0.0.1:8080" or "unix"
	BundleMount string   // absolute path, or empty for none
	ReadMS      uint64   // timeouts in milliseconds; 0 is the runtime's default
	WriteMS     uint64
	ExecMS      uint64
	StartMS     uint64
	MaxInFlight uint64 // 0 is the runtime's default
	Resources   Resources
	IdleMS      uint64            // 0 is the runtime's default
	Labels      map[string]string // placement constraints
	Policy      Policy
}

// Resources are limits; 0 means unset.
type Resources struct {
	CPUMillis   uint64 // thousandths of a core
	MemoryBytes uint64
	PIDs        uint64
	TmpBytes    uint64
	IOReadBPS   uint64 // bytes per second
	IOWriteBPS  uint64 // bytes per second
}

// Policy says who may call and who may receive the keys. The zero value admits
// nobody.
type Policy struct {
	Callers     []Fingerprint // of signing keys, ascending
	AnyCaller   bool          // admits everybody; Callers is then empty
	Attestation []string      // accepted evidence types, ascending
	Broker      PublicKey     // the key broker's signing key, or zero
}

// DecryptionKey is a key callers seal to, in its time.
type DecryptionKey struct {
	Key       PublicKey
	NotBefore uint64 // unix seconds
	NotAfter  uint64 // unix seconds
}

// AllowSender reports whether a caller with this signing key may call.
func (p *Policy) AllowSender(f Fingerprint) bool { panic("sealed") }

// FullName returns "name.namespace".
func (d *Descriptor) FullName() string { return d.Name + "." + d.Namespace }

// Revision returns the digest of name and Config.
func (d *Descriptor) Revision() (Digest, error) { panic("sealed") }

// Validate checks every field and names the first one that is wrong.
func (d *Descriptor) Validate() error { panic("sealed") }

// KeyAt returns the key to seal to at t: the live one that lives longest.
func (d *Descriptor) KeyAt(t time.Time) (PublicKey, error) { panic("sealed") }

// Sign validates d and encodes it signed by its owner.
func (d *Descriptor) Sign(random io.Reader, owner crypto.Signer) ([]byte, error) { panic("sealed") }

// SignedDescriptor is a parsed descriptor whose signature is not yet trusted.
type SignedDescriptor struct{}

// ParseDescriptor decodes strictly. It does not verify.
func ParseDescriptor(b []byte) (*SignedDescriptor, error) { panic("sealed") }

// ClaimedOwner returns the signing key the descriptor names: for trust on first
// use, and to pick the pin.
func (s *SignedDescriptor) ClaimedOwner() PublicKey { panic("sealed") }

// Unverified returns the content, which anybody may have made.
func (s *SignedDescriptor) Unverified() *Descriptor { panic("sealed") }

// Verify returns the content if the owner with this pinned fingerprint signed it.
func (s *SignedDescriptor) Verify(owner Fingerprint) (*Descriptor, error) { panic("sealed") }
