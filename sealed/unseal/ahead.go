package unseal

import (
	"bytes"
	"slices"
	"sync"
	"time"

	"github.com/emmansun/gmsm/sm3"

	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/internal/wire"
)

const (
	maxAhead  = 4           // grants that wait for a first message at once
	aheadLife = time.Minute // how long one of them may be used
)

// Ahead is a grant that was opened before any message under it came, so that the
// first one costs no public-key operation. It is no entry of the Cache: whoever
// made the grant has yet to show, by a commitment, that it knows the seed.
type Ahead struct {
	from  *candidates
	entry *entry
	until uint64 // unix milliseconds
}

// candidates are what Prepare made and nobody has used or discarded. Each holds
// the reference that its entry was made with.
type candidates struct {
	mu   sync.Mutex
	list []*Ahead // oldest first
}

// Prepare makes the checks of a grant that need no message, with want's side of
// them, and opens it. The first message under the very same bytes takes what was
// made and makes every check that can age, or is its own, again: key, name,
// revision, times, sender, commitment, replay. A grant that is refused here
// leaves nothing behind; its message is refused with the reason that applies.
//
// What nobody takes is wiped by Discard, and where others come to wait or its
// time is over.
func (o *Opener) Prepare(grant []byte, want Expect) (*Ahead, error) {
	if err := want.check(); err != nil {
		return nil, err
	}
	if n, have, bad := wire.Extent(grant); bad || !have || n != len(grant) || n > sealed.MaxPeek {
		return nil, refuse(sealed.CodeFormat, "is not one grant")
	}
	parsed, e, err := parse(grant, sm3.Sum(grant))
	if err != nil {
		return nil, err
	}
	h, now := &e.header, o.now()
	key := o.cfg.Keys.live(h.Recipient, now)
	switch {
	case h.Role != want.Role:
		return nil, refuse(sealed.CodeFormat, "role is "+h.Role.String()+", want "+want.Role.String())
	case key == nil:
		return nil, refuse(sealed.CodeUnknownKey, "sealed to no live key of this reader")
	case !want.AnyName && h.Name != want.Name:
		return nil, refuse(sealed.CodeWrongFunction, "name is "+h.Name)
	case h.Context != want.Context:
		return nil, refuse(sealed.CodeStaleRevision, "revision is "+h.Context.String())
	case h.NotAfter < now/1000 || h.NotBefore > now/1000+uint64(sealed.MaxClockLead/time.Second):
		return nil, refuse(sealed.CodeWindow, "the grant's window is not now")
	case !sealed.Verify(h.Sender, parsed.Sig, sealed.LabelGrant, grant[:len(grant)-len(parsed.Sig)-1]):
		return nil, refuse(sealed.CodeSignature, "the grant's signature does not verify")
	case !want.Senders.AllowSender(e.fingerprint):
		return nil, refuse(sealed.CodeSender, "sender "+e.fingerprint.String()+" is not admitted")
	}
	if e.schedule, err = unsealSeed(key, grant, parsed.Enc, h.Role); err != nil {
		return nil, err
	}
	a := &Ahead{from: &o.ahead, entry: e, until: now + uint64(aheadLife/time.Millisecond)}
	o.ahead.add(a)
	return a, nil
}

// Header is the clear part of the grant, whose signature was verified.
func (a *Ahead) Header() sealed.GrantHeader { return a.entry.header }

// Discard wipes what no message took. It may be called at any time, and again.
func (a *Ahead) Discard() {
	if a.from.remove(a) {
		a.entry.release()
	}
}

// add keeps a, and gives up the oldest where there are too many.
func (c *candidates) add(a *Ahead) {
	c.mu.Lock()
	var old *Ahead
	if len(c.list) >= maxAhead {
		old = c.list[0]
		c.list = slices.Delete(c.list, 0, 1)
	}
	c.list = append(c.list, a)
	c.mu.Unlock()
	if old != nil {
		old.entry.release()
	}
}

// remove reports whether a was there.
func (c *candidates) remove(a *Ahead) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.Index(c.list, a)
	if i < 0 {
		return false
	}
	c.list = slices.Delete(c.list, i, i+1)
	return true
}

// take returns the entry made of these very bytes, with its reference, or nil.
// As in the Cache the claimed digest only finds it. It is gone for all others,
// whatever becomes of the message: there is one try.
func (c *candidates) take(digest sealed.Digest, grant []byte, now func() uint64) *entry {
	c.mu.Lock()
	i := slices.IndexFunc(c.list, func(a *Ahead) bool {
		return a.entry.digest == digest && bytes.Equal(a.entry.grant, grant)
	})
	if i < 0 {
		c.mu.Unlock()
		return nil
	}
	a := c.list[i]
	c.list = slices.Delete(c.list, i, i+1)
	c.mu.Unlock()
	if now() > a.until {
		a.entry.release()
		return nil
	}
	return a.entry
}
