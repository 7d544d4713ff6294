package sealed

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/emmansun/gmsm/sm3"
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

// Config is the revisioned part of a Descriptor. A function's root file system
// is read-only whatever it says; environment and secrets are in the bundle.
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
func (p *Policy) AllowSender(f Fingerprint) bool {
	return p.AnyCaller || slices.Contains(p.Callers, f)
}

// FullName returns "name.namespace".
func (d *Descriptor) FullName() string { return d.Name + "." + d.Namespace }

// Revision returns the digest of name and Config: the context of grants. Keys
// and the rest are not part of it, so rotation does not change it.
func (d *Descriptor) Revision() (Digest, error) {
	if err := d.Validate(); err != nil {
		return Digest{}, err
	}
	return sm3.Sum(d.appendRevisioned(nil)), nil
}

// CheckSuites refuses a descriptor that does not list the one suite there is here:
// a suite that its owner left out is not fallen back to.
func (d *Descriptor) CheckSuites() error {
	if !slices.Contains(d.Suites, SuiteSM) {
		return fmt.Errorf("sealed: descriptor: suites: %s takes %#x, and this release speaks %#04x alone; use a later one", d.FullName(), d.Suites, SuiteSM)
	}
	return nil
}

// KeyAt returns the key to seal to at t: of the live ones, that which lives
// longest. It is an error where the descriptor takes no suite that is sealed here.
func (d *Descriptor) KeyAt(t time.Time) (PublicKey, error) {
	if err := d.CheckSuites(); err != nil {
		return PublicKey{}, err
	}
	now := t.Unix()
	var best *DecryptionKey
	for i := range d.Decryption {
		k := &d.Decryption[i]
		if now >= 0 && k.NotBefore <= uint64(now) && uint64(now) <= k.NotAfter && (best == nil || k.NotAfter > best.NotAfter) {
			best = k
		}
	}
	if best == nil {
		return PublicKey{}, fmt.Errorf("sealed: descriptor: keys: none of %s is live now; fetch a newer descriptor", d.FullName())
	}
	return best.Key, nil
}

// Follows says whether d may replace old: the same function, and not older. It
// guards against a store that shows an old descriptor again. An equal sequence
// is accepted only for the same revision.
func (d *Descriptor) Follows(old *Descriptor) error {
	if d.FullName() != old.FullName() {
		return errors.New("sealed: descriptor: name: concerns another function")
	}
	if d.Sequence < old.Sequence {
		return fmt.Errorf("sealed: descriptor: sequence: %d, but %d was seen before", d.Sequence, old.Sequence)
	}
	if d.Sequence == old.Sequence {
		a, err := d.Revision()
		if err != nil {
			return err
		}
		b, err := old.Revision()
		if err != nil {
			return err
		}
		if a != b {
			return fmt.Errorf("sealed: descriptor: sequence: %d was given to two revisions", d.Sequence)
		}
	}
	return nil
}
