package unseal

import (
	"io"
	"time"

	"github.com/faasd-sec/faasd-sec/sealed"
)

// SenderPolicy decides who may send. *sealed.Policy is one.
type SenderPolicy interface {
	// AllowSender is asked for the fingerprint of the grant's signing key.
	AllowSender(sealed.Fingerprint) bool
}

// Only admits one signing key.
func Only(key sealed.PublicKey) SenderPolicy { panic("unseal") }

// Expect is what a reader of roles 1 and 3 to 7 takes.
type Expect struct {
	Role      sealed.Role
	Name      string        // "function.namespace"; compared byte for byte
	AnyName   bool          // role 5 only: the body says which function, and must match
	Context   sealed.Digest // the revision; zero in roles 4 and 5
	Senders   SenderPolicy
	MaxQueued time.Duration // longest life of a queued request, 0 refuses them
}

// ExpectReply is what a caller takes as its request's reply.
type ExpectReply struct {
	ID      sealed.ID        // the request's
	Link    sealed.Link      // the request's
	Name    string           // the request's
	Context sealed.Digest    // the request's
	Sender  sealed.PublicKey // the signing key in the verified descriptor
}

// Config makes an Opener.
type Config struct {
	Keys   *KeySet           // required
	Cache  *Cache            // nil keeps nothing: every message costs public-key operations
	Replay *sealed.ReplaySet // required for roles 1, 5 and 6
	Clock  func() time.Time  // nil means time.Now
}

// Opener opens messages. It is safe for concurrent use.
type Opener struct{}

// NewOpener checks cfg.
func NewOpener(cfg Config) (*Opener, error) { panic("unseal") }

// Open reads and checks grant and message header, all checks of the format in
// their order, and in role 1 the first record with the head. It refuses with a
// *sealed.Error; an error of r itself is returned wrapped. The caller ends the
// message with Close.
func (o *Opener) Open(r io.Reader, want Expect) (*Message, error) { panic("unseal") }

// ExpectReply prepares for the one reply of a request.
func (o *Opener) ExpectReply(want ExpectReply) (*PendingReply, error) { panic("unseal") }

// OpenBundle opens a bundle (role 3), reads it to its end (at most max bytes)
// and returns the tar after its digest matched. want.Context is the revision of
// the verified descriptor, and digest its bundle digest.
func (o *Opener) OpenBundle(r io.Reader, want Expect, digest sealed.Digest, max int64) (tar []byte, err error) {
	panic("unseal")
}

// PendingReply opens one reply, once. It is safe for concurrent use.
type PendingReply struct{}

// Open opens the reply and reads its first record. A second reply whose
// commitment matches is refused with CodeReplay.
func (p *PendingReply) Open(r io.Reader) (*Message, error) { panic("unseal") }

// Discard wipes the link.
func (p *PendingReply) Discard() { panic("unseal") }

// SpoolFunc makes an empty spool for one message's ciphertext. A spool that is
// an io.Closer is closed.
type SpoolFunc func() (io.ReadWriteSeeker, error)

// Message is an opened message whose body is still to be read. It is not safe
// for concurrent use.
type Message struct {
	Grant  sealed.GrantHeader
	Header sealed.MessageHeader
}

// Link returns a request's export secret, to seal the reply with.
func (m *Message) Link() sealed.Link { panic("unseal") }

// RequestHead returns a request's head: after Hold, or at once if the message
// carries sealed.FlagEarlyInput; else it refuses.
func (m *Message) RequestHead() (sealed.RequestHead, error) { panic("unseal") }

// ReplyHead returns a reply's head.
func (m *Message) ReplyHead() (sealed.ReplyHead, error) { panic("unseal") }

// Body returns the body as the message's flags allow: for a request without
// sealed.FlagEarlyInput it is Hold, else Stream.
func (m *Message) Body(spool SpoolFunc) (io.Reader, error) { panic("unseal") }

// Stream returns a reader of verified records, in constant memory; it ends in
// io.EOF only after the final record and the end of the transport body were
// seen. A request without sealed.FlagEarlyInput refuses.
func (m *Message) Stream() (io.Reader, error) { panic("unseal") }

// Hold reads and verifies the whole message before it returns: up to 1 MiB is
// kept decrypted, the rest as ciphertext in a spool and decrypted again on
// reading. A nil spool refuses bodies beyond 1 MiB.
func (m *Message) Hold(spool SpoolFunc) (io.Reader, error) { panic("unseal") }

// ReadAll is Hold for a body of at most max bytes; the bytes are the caller's.
func (m *Message) ReadAll(max int64) ([]byte, error) { panic("unseal") }

// Complete reports whether the final record was verified.
func (m *Message) Complete() bool { panic("unseal") }

// Close wipes the message's key and gives its buffers back.
func (m *Message) Close() error { panic("unseal") }

// CacheConfig bounds a Cache; see DefaultCacheConfig.
type CacheConfig struct {
	Size      int // grants
	PerSender int // grants of one signing key
}

// DefaultCacheConfig is 1,024 grants, 32 per sender.
func DefaultCacheConfig() CacheConfig { panic("unseal") }

// Cache keeps opened grants. It is safe for concurrent use.
type Cache struct{}

// NewCache checks cfg.
func NewCache(cfg CacheConfig) (*Cache, error) { panic("unseal") }

// Clear wipes all entries: when a key retires or a policy changes.
func (c *Cache) Clear() { panic("unseal") }
