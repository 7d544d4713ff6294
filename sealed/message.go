package sealed

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/faasd-sec/faasd-sec/sealed/internal/keysched"
	"github.com/faasd-sec/faasd-sec/sealed/internal/wire"
)

// Link is a request's export secret (export32), and the link that its reply's
// key is derived from: only one who knows it can seal or open that reply. The
// zero value means "none". It is a secret and prints as a placeholder.
type Link [32]byte

// Format implements fmt.Formatter: no verb prints the secret.
func (l Link) Format(f fmt.State, _ rune) { io.WriteString(f, "sealed.Link(secret)") }

// LogValue implements slog.LogValuer.
func (l Link) LogValue() slog.Value { return slog.StringValue("sealed.Link(secret)") }

// MarshalText refuses: a link belongs in no document.
func (l Link) MarshalText() ([]byte, error) { return nil, errors.New("sealed: a link is a secret") }

// IsZero reports whether l is no link.
func (l Link) IsZero() bool { return l == Link{} }

// MessageHeader is what of a message is in clear.
type MessageHeader struct {
	ID      ID
	Issued  uint64 // unix milliseconds
	Expires uint64 // unix milliseconds
	Flags   Flags
	Salt    [24]byte
	Grant   Digest // of the grant it stands under
	Commit  [32]byte
}

func messageHeader(m *wire.Message) MessageHeader {
	return MessageHeader{
		ID: m.ID, Issued: m.Issued, Expires: m.Expires, Flags: Flags(m.Flags),
		Salt: m.Salt, Grant: m.Grant, Commit: m.Commit,
	}
}

// ParseMessageHeader decodes the header that stands behind a grant of the given
// role, and refuses a malformed one. b has its 125 bytes at least.
func ParseMessageHeader(b []byte, role Role) (MessageHeader, error) {
	if len(b) < wire.MessageSize {
		return MessageHeader{}, refuse(CodeTruncated, "ends inside the message header")
	}
	m, wrong := wire.ParseMessage(b, uint8(role))
	if wrong != "" {
		return MessageHeader{}, refuse(CodeFormat, wrong)
	}
	return messageHeader(&m), nil
}

// MessageParams are a message's header fields. Issued is required.
type MessageParams struct {
	ID     ID            // zero draws one; a reply must carry its request's
	Issued time.Time     // the sender's clock now, kept in milliseconds
	Life   time.Duration // until the message expires; zero means DefaultLife
	Flags  Flags         // role 1 only
	Link   Link          // role 2 only, and there required
}

func (p *MessageParams) check(g *GrantHeader) error {
	if p.Life == 0 {
		p.Life = DefaultLife
	}
	limit := MaxLife
	if p.Flags&FlagQueued != 0 {
		limit = MaxQueuedLife
	}
	issued := p.Issued.UnixMilli()
	switch {
	case p.Flags&^knownFlags != 0:
		return fmt.Errorf("flags: %#x has unknown bits", uint8(p.Flags))
	case p.Flags != 0 && g.Role != RoleRequest:
		return fmt.Errorf("flags: a %s has none", g.Role)
	case p.Life < time.Millisecond || p.Life > limit:
		return fmt.Errorf("life: %s, want 1ms..%s", p.Life, limit)
	case issued < 0 || !issuedInside(uint64(issued), g.NotBefore, g.NotAfter):
		return errors.New("issued: outside the grant's window; make a new grant")
	case p.Link.IsZero() == (g.Role == RoleReply):
		return fmt.Errorf("link: set %t in a %s, want %t", !p.Link.IsZero(), g.Role, g.Role == RoleReply)
	case p.ID.IsZero() && g.Role == RoleReply:
		return errors.New("id: a reply carries its request's")
	}
	return nil
}

// Covers reports whether a message issued at this time, in unix milliseconds,
// lies in the grant's window.
func (h *GrantHeader) Covers(issuedMS uint64) bool {
	return issuedInside(issuedMS, h.NotBefore, h.NotAfter)
}

// issuedInside reports not_before·1000 <= issued <= not_after·1000 without a
// product that could overflow.
func issuedInside(issuedMS, notBefore, notAfter uint64) bool {
	s, rest := issuedMS/1000, issuedMS%1000
	return notBefore <= s && (s < notAfter || s == notAfter && rest == 0)
}

// opening is a message whose header is made and whose records are to come, with
// room to work. It is pooled and holds secrets: free it.
type opening struct {
	header MessageHeader
	bound  [wire.BoundSize]byte
	keys   keysched.Keys
	link   Link     // role 2: the request's
	nonce  [12]byte // of the record that is being sealed
	drawn  [len(ID{}) + saltRandom]byte
	salt   [saltFixed + 64]byte // an instance id of up to 48 bytes fits
	head   [512]byte            // most heads fit; a longer one is allocated
}

var openings = sync.Pool{New: func() any { return new(opening) }}

func (o *opening) free() {
	*o = opening{}
	openings.Put(o)
}

func (g *Grant) open(p MessageParams) (*opening, error) {
	if g.refs.Load() <= 0 {
		return nil, errors.New("sealed: seal: the grant was released")
	}
	if err := p.check(&g.header); err != nil {
		return nil, fmt.Errorf("sealed: seal: %w", err)
	}
	issued := uint64(p.Issued.UnixMilli())
	if issued > math.MaxInt64-uint64(MaxQueuedLife/time.Millisecond) {
		return nil, errors.New("sealed: seal: issued: lies too far ahead")
	}
	o := openings.Get().(*opening)
	if err := g.begin(o, &p, issued); err != nil {
		o.free()
		return nil, err
	}
	return o, nil
}

// begin makes o's header and keys. What is random of a message is drawn at once,
// for this message alone: nothing of it is kept that a clone could use again.
func (g *Grant) begin(o *opening, p *MessageParams, issued uint64) error {
	drawn := o.drawn[:]
	if !p.ID.IsZero() {
		drawn = drawn[:saltRandom]
	}
	if _, err := io.ReadFull(g.random, drawn); err != nil {
		return fmt.Errorf("sealed: seal: draw the id and the salt: %w", err)
	}
	id := p.ID
	if id.IsZero() {
		id, drawn = ID(drawn), drawn[len(id):]
	}
	m := wire.Message{ID: id, Issued: issued, Expires: issued + uint64(p.Life/time.Millisecond), Flags: uint8(p.Flags), Grant: g.digest}
	g.salts.fill(&m.Salt, o.salt[:0], g.schedule.Seed(), drawn)
	m.AppendBound(o.bound[:0])
	var link *[keysched.LinkSize]byte
	if g.header.Role == RoleReply {
		o.link = p.Link
		link = (*[keysched.LinkSize]byte)(&o.link)
	}
	if err := g.schedule.Derive(&o.keys, o.bound[:], link); err != nil {
		return fmt.Errorf("sealed: seal: %w", err)
	}
	m.Commit = o.keys.Commit
	o.header = messageHeader(&m)
	return nil
}

// appendPrefix appends GRANT and MESSAGE.
func (o *opening) appendPrefix(dst []byte, g *Grant) []byte {
	dst = append(dst, g.bytes...)
	dst = append(dst, o.bound[:]...)
	return append(dst, o.keys.Commit[:]...)
}

// export returns what a request's reply is bound to; zero in other roles.
func (o *opening) export() Link { return o.keys.Export }
