package unseal

import (
	"bytes"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/emmansun/gmsm/sm3"

	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/internal/der"
	"github.com/faasd-sec/faasd-sec/sealed/internal/keysched"
	"github.com/faasd-sec/faasd-sec/sealed/internal/wire"
)

// Config makes an Opener.
type Config struct {
	Keys   *KeySet           // required
	Cache  *Cache            // nil keeps nothing: every message costs public-key operations
	Replay *sealed.ReplaySet // required for roles 1, 5 and 6
	Clock  func() time.Time  // nil means time.Now
}

// Opener opens messages. It is safe for concurrent use.
type Opener struct {
	cfg   Config
	mark  atomic.Uint64 // the highest time the clock showed, unix milliseconds
	ahead candidates
}

// NewOpener checks cfg.
func NewOpener(cfg Config) (*Opener, error) {
	if cfg.Keys == nil {
		return nil, errors.New("unseal: opener: no keys given")
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	return &Opener{cfg: cfg}, nil
}

// now returns the highest time that this opener's clock or its replay set's ever
// showed: a clock set back opens nothing again.
func (o *Opener) now() uint64 {
	t := uint64(max(0, o.cfg.Clock().UnixMilli()))
	if o.cfg.Replay != nil {
		t = max(t, o.cfg.Replay.Now())
	}
	for {
		old := o.mark.Load()
		if t <= old {
			return old
		}
		if o.mark.CompareAndSwap(old, t) {
			return t
		}
	}
}

// Open reads and checks grant and message header, all checks of the format in
// their order, and in role 1 the first record with the head. It refuses with a
// *sealed.Error; an error of r itself is returned wrapped. The caller ends the
// message with Close. Deadlines are r's.
func (o *Opener) Open(r io.Reader, want Expect) (*Message, error) {
	if err := want.check(); err != nil {
		return nil, err
	}
	if want.Role.Once() && o.cfg.Replay == nil {
		return nil, fmt.Errorf("unseal: open: a %s needs a replay set", want.Role)
	}
	return o.open(r, &expectation{
		role: want.Role, name: want.Name, anyName: want.AnyName, context: want.Context,
		senders: want.Senders, maxQueued: want.MaxQueued,
	})
}

// ExpectReply prepares for the one reply of a request.
func (o *Opener) ExpectReply(want ExpectReply) (*PendingReply, error) {
	if err := want.check(); err != nil {
		return nil, err
	}
	return &PendingReply{opener: o, want: want}, nil
}

// PendingReply opens one reply, once. It is safe for concurrent use, apart from
// Discard.
type PendingReply struct {
	opener *Opener
	want   ExpectReply
	taken  atomic.Bool
}

// Open opens the reply and reads its first record. A second reply whose
// commitment matches is refused with sealed.CodeReplay.
func (p *PendingReply) Open(r io.Reader) (*Message, error) {
	if p.want.Link.IsZero() {
		return nil, errors.New("unseal: open reply: it was discarded")
	}
	return p.opener.open(r, &expectation{
		role: sealed.RoleReply, name: p.want.Name, context: p.want.Context, reply: p,
		link: (*[keysched.LinkSize]byte)(&p.want.Link), id: &p.want.ID,
	})
}

// Discard wipes the link. No Open may be running.
func (p *PendingReply) Discard() { p.want.Link = sealed.Link{} }

// expectation is what one opening compares a message with.
type expectation struct {
	role      sealed.Role
	name      string
	anyName   bool
	context   sealed.Digest
	senders   SenderPolicy // but in role 2
	maxQueued time.Duration
	link      *[keysched.LinkSize]byte // role 2
	id        *sealed.ID               // role 2
	reply     *PendingReply            // role 2
}

// admits reports whether e's sender may send. A reply's is one known key, which
// is compared as it is: the same key has the same fingerprint.
func (w *expectation) admits(e *entry) bool {
	if w.reply != nil {
		return e.header.Sender == w.reply.want.Sender
	}
	return w.senders.AllowSender(e.fingerprint)
}

// claim takes a message that may be opened once.
func (o *Opener) claim(want *expectation, h *sealed.MessageHeader) error {
	switch {
	case want.reply != nil && want.reply.taken.Swap(true):
		return refuse(sealed.CodeReplay, "this request had its reply already")
	case want.role.Once():
		return o.cfg.Replay.Add(h.Grant, h.ID, h.Expires)
	}
	return nil
}

// open makes the checks in the order of the format. Each returns at once, so
// that a message is refused with the first code that applies, and costs no more
// than the checks before it.
func (o *Opener) open(r io.Reader, want *expectation) (_ *Message, retErr error) {
	m := new(Message)
	src := &m.src
	src.init(r)
	defer func() {
		if retErr != nil {
			src.close()
		}
	}()

	// format
	size, err := src.grantSize()
	if err != nil {
		return nil, err
	}
	if err := src.fill(size+wire.MessageSize, "the message header"); err != nil {
		return nil, err
	}
	raw := src.peek(size + wire.MessageSize)
	grant, bound := raw[:size], raw[size:size+wire.BoundSize]
	// Whoever sends the grant of an entry's very bytes under its digest need not
	// have it hashed again: equal bytes have equal digests. All others do.
	digest := sealed.Digest(raw[size+wire.BoundSize-len(sealed.Digest{}) : size+wire.BoundSize])
	e := o.cfg.Cache.get(digest, grant)
	defer func() { e.release() }()
	cached := e != nil
	if !cached {
		e = o.ahead.take(digest, grant, o.now)
	}
	fresh := e == nil
	var parsed wire.Grant
	if fresh {
		digest = sm3.Sum(grant)
		if parsed, e, err = parse(grant, digest); err != nil {
			return nil, err
		}
	}
	if e.header.Role != want.role {
		return nil, refuse(sealed.CodeFormat, "role is "+e.header.Role.String()+", want "+want.role.String())
	}
	header, wrong := sealed.ParseMessageHeader(raw[size:], e.header.Role)
	switch {
	case wrong != nil:
		return nil, wrong
	case header.Grant != digest:
		return nil, refuse(sealed.CodeFormat, "the message stands under another grant")
	case want.id != nil && header.ID != *want.id:
		return nil, refuse(sealed.CodeFormat, "the reply is to another request")
	}

	// unknown_key
	now := o.now()
	key := o.cfg.Keys.live(e.header.Recipient, now)
	if key == nil {
		o.cfg.Cache.forget(digest)
		return nil, refuse(sealed.CodeUnknownKey, "sealed to no live key of this reader")
	}

	// wrong_function, stale_revision
	if !want.anyName && e.header.Name != want.name {
		return nil, refuse(sealed.CodeWrongFunction, "name is "+e.header.Name)
	}
	if e.header.Context != want.context {
		return nil, refuse(sealed.CodeStaleRevision, "revision is "+e.header.Context.String())
	}

	// window
	if err := sealed.CheckWindow(&e.header, &header, want.maxQueued, now); err != nil {
		return nil, err
	}

	// signature
	if fresh {
		unsigned := grant[:len(grant)-len(parsed.Sig)-1]
		if !sealed.Verify(e.header.Sender, parsed.Sig, sealed.LabelGrant, unsigned) {
			return nil, refuse(sealed.CodeSignature, "the grant's signature does not verify")
		}
	}

	// sender
	if !want.admits(e) {
		return nil, refuse(sealed.CodeSender, "sender "+e.fingerprint.String()+" is not admitted")
	}

	// commitment
	if fresh {
		if e.schedule, err = unsealSeed(key, grant, parsed.Enc, e.header.Role); err != nil {
			return nil, err
		}
	}
	var keys keysched.Keys
	defer keys.Wipe()
	if err := e.schedule.Derive(&keys, bound, want.link); err != nil {
		return nil, fmt.Errorf("unseal: open: %w", err)
	}
	if subtle.ConstantTimeCompare(keys.Commit[:], header.Commit[:]) != 1 {
		return nil, refuse(sealed.CodeCommitment, "the commitment does not match")
	}
	// A queued message may come when its grant's window is over: then its grant
	// has no business in the cache any more.
	if ended := now/1000 > e.header.NotAfter; ended && cached {
		o.cfg.Cache.forget(digest)
	} else if !cached && !ended {
		o.cfg.Cache.put(e, now)
	}

	// replay
	if err := o.claim(want, &header); err != nil {
		return nil, err
	}

	aead, err := keys.AEAD()
	if err != nil {
		return nil, fmt.Errorf("unseal: open: %w", err)
	}
	src.skip(size + wire.MessageSize)
	m.Grant, m.Header, m.link = e.header, header, keys.Export
	m.recs = records{src: src, aead: aead, base: keys.Nonce}
	if e.header.Role.HasHead() {
		if err := m.readHead(); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// grantSize reads as much of the grant as it takes to hold it whole.
func (s *source) grantSize() (int, error) {
	need := len(wire.GrantMagic)
	for {
		err := s.fill(need, "the grant")
		if code := sealed.CodeOf(err); err != nil && code != sealed.CodeTruncated {
			return 0, err
		}
		// Bytes that are no envelope are called that, even where they are too few.
		n, have, bad := wire.Extent(s.buf[s.lo:s.hi])
		switch {
		case bad:
			return 0, refuse(sealed.CodeFormat, "does not begin with FSG1")
		case have:
			return n, nil
		case err != nil:
			return 0, err
		}
		need = n
	}
}

// parse decodes a grant that is not in the cache, and checks its points.
func parse(grant []byte, digest sealed.Digest) (wire.Grant, *entry, error) {
	g, wrong := wire.ParseGrant(grant)
	if wrong != "" {
		return g, nil, refuse(sealed.CodeFormat, wrong)
	}
	sender, err := sealed.ParsePublicKey(g.Sender[:])
	if err != nil {
		return g, nil, refuse(sealed.CodeFormat, "sender_pub is not a point on the curve")
	}
	if g.ReplyKey != [65]byte{} {
		if _, err := sealed.ParsePublicKey(g.ReplyKey[:]); err != nil {
			return g, nil, refuse(sealed.CodeFormat, "reply_pub is not a point on the curve")
		}
	}
	e := &entry{digest: digest, grant: bytes.Clone(grant), header: sealed.HeaderOf(&g), fingerprint: sender.Fingerprint()}
	e.refs.Store(1)
	return g, e, nil
}

// unsealSeed decrypts enc and computes the grant's schedule. One refusal covers
// all that can be wrong: which it was would be an oracle.
func unsealSeed(key *liveKey, grant, enc []byte, role sealed.Role) (*keysched.Schedule, error) {
	refused := refuse(sealed.CodeCommitment, "the seed does not decrypt")
	// The library takes other encodings too, whatever it is told: look first.
	if !der.IsSeed(enc) {
		return nil, refused
	}
	plain, err := key.dec.Decrypt(rand.Reader, enc, nil)
	defer clear(plain)
	if err != nil || len(plain) != keysched.SeedSize {
		return nil, refused
	}
	var seed [keysched.SeedSize]byte
	copy(seed[:], plain)
	defer clear(seed[:])
	return keysched.New(grant, key.pub[:], &seed, sealed.LinksOf(role)), nil
}
