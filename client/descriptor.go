package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// descriptorLife is how long a verified descriptor is used before the gateway is
// asked again. A change is noticed sooner: what is sealed for an old revision or
// key is refused, and that fetches the new one.
const descriptorLife = 10 * time.Minute

// function is a verified descriptor with what is derived from it. It is
// immutable.
type function struct {
	name     api.FunctionName
	desc     *sealed.Descriptor
	signed   []byte // desc
	revision sealed.Digest
	owner    sealed.Fingerprint
	fetched  time.Time
	warm     atomic.Int64 // unix milliseconds of the last answer from a warm sandbox

	split  *split // of the current descriptor; nil where it takes all calls
	latest uint64 // highest sequence of a current descriptor that was seen
	stated uint64 // highest sequence of a traffic statement that was seen

	believed atomic.Uint64 // version of the pins by which owner was believed
	heard    atomic.Uint64 // highest sequence of one that a gateway told of
	asked    atomic.Uint64 // of these, the one that it was asked for
}

// life is how long a message to f should be good. Readers remember each message
// for so long, within a bound, so that calls to a warm function in quick
// succession are given less than one that may have to wait for a start.
func (f *function) life(now time.Time) time.Duration {
	if age := now.UnixMilli() - f.warm.Load(); age >= 0 && age < warmFor.Milliseconds() {
		return warmLife
	}
	return sealed.DefaultLife
}

// hearAfter bounds how often a gateway's word, which nobody signs, has the
// descriptor fetched.
const hearAfter = time.Second

// hear keeps a gateway's word that there is a traffic statement with this sequence.
func (c *Client) hear(name api.FunctionName, sequence uint64) {
	c.mu.Lock()
	f := c.known[name]
	c.mu.Unlock()
	if f != nil && sequence > f.heard.Load() {
		f.heard.Store(sequence) // of two at once either will do
	}
}

const (
	warmFor  = 5 * time.Second // after an answer from a warm sandbox
	warmLife = 30 * time.Second
)

// function returns the verified descriptor of name, from memory if it is recent.
func (c *Client) function(ctx context.Context, name api.FunctionName) (*function, error) {
	c.mu.Lock()
	f := c.known[name]
	c.mu.Unlock()
	if f != nil && c.believes(f) {
		now := c.cfg.Now()
		if age := now.Sub(f.fetched); age >= 0 && age < descriptorLife && (f.split == nil || f.split.t.Live(now) == nil) {
			if heard := f.heard.Load(); heard <= f.stated || age < hearAfter || f.asked.Swap(heard) >= heard {
				return f, nil
			}
			if fresh, err := c.fetch(ctx, name); err == nil {
				return fresh, nil
			}
			return f, nil // nobody signed what the gateway told
		}
	}
	return c.fetch(ctx, name)
}

// believes reports whether f's owner is still the one that counts, after a change
// of the pins.
func (c *Client) believes(f *function) bool {
	v := c.cfg.Pins.version()
	if f.believed.Load() == v {
		return true
	}
	if _, firstUse, err := c.owner(f.name, f.owner); err != nil || firstUse {
		return false
	}
	f.believed.Store(v)
	return true
}

// fetch asks the gateway and verifies the answer.
func (c *Client) fetch(ctx context.Context, name api.FunctionName) (*function, error) {
	var st api.FunctionStatus
	err := c.do(ctx, call{method: http.MethodGet, path: api.GatewayPathFunctions + "/" + string(name),
		query: url.Values{api.GatewayQueryBrief: {"1"}}}, &st)
	if err != nil {
		return nil, err
	}
	f, err := c.verify(name, st)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.known[name]
	if err := f.follows(old); err != nil {
		return nil, err
	}
	if old != nil && old.owner == f.owner {
		f.latest, f.stated = max(f.latest, old.latest), max(f.stated, old.stated)
		f.heard.Store(old.heard.Load())
		f.asked.Store(old.asked.Load())
	}
	c.known[name] = f
	return f, nil
}

// errPlain marks what fails because the function is a plain one.
var errPlain = errors.New("client: a plain function")

// verify checks a status' descriptor against the pinned owner.
func (c *Client) verify(name api.FunctionName, st api.FunctionStatus) (*function, error) {
	if len(st.Descriptor) == 0 {
		return nil, &api.Error{Code: api.CodeInvalid, Field: "function",
			Message: name.Short() + " is a plain function: it has no descriptor to seal by", Remedy: "call it without sealing, or deploy it sealed", Err: errPlain}
	}
	signed, err := sealed.ParseDescriptor(st.Descriptor)
	if err != nil {
		return nil, api.Wrap(api.CodeUnavailable, err, "the gateway's descriptor of "+name.Short()+" does not parse")
	}
	version := c.cfg.Pins.version()
	owner, firstUse, err := c.owner(name, signed.ClaimedOwner().Fingerprint())
	if err != nil {
		return nil, err
	}
	f, err := c.signedBy(owner, name, st.Descriptor)
	if err != nil {
		return nil, err
	}
	if firstUse { // only now: nobody is pinned for a signature that does not hold
		if err := c.cfg.Pins.SetOwner(c.gateway.String(), string(name), owner); err != nil {
			return nil, err
		}
	}
	f.believed.Store(version)
	if f.split, err = c.splitOf(f, st); err != nil {
		return nil, err
	}
	if f.split != nil {
		f.stated = f.split.t.Sequence
	}
	return f, nil
}

// signedBy parses a descriptor of name and verifies it as owner's.
func (c *Client) signedBy(owner sealed.Fingerprint, name api.FunctionName, b []byte) (*function, error) {
	signed, err := sealed.ParseDescriptor(b)
	if err != nil {
		return nil, api.Wrap(api.CodeUnavailable, err, "the gateway's descriptor of "+name.Short()+" does not parse")
	}
	desc, err := signed.Verify(owner)
	if err != nil {
		return nil, api.Wrap(api.CodeForbidden, err, "the descriptor of "+name.Short()+" is not signed by its owner")
	}
	if desc.FullName() != string(name) {
		return nil, &api.Error{Code: api.CodeForbidden, Field: "function",
			Message: fmt.Sprintf("the gateway answered with the descriptor of %s", desc.FullName())}
	}
	rev, err := desc.Revision()
	if err != nil {
		return nil, fmt.Errorf("client: revision of %s: %w", name, err)
	}
	return &function{name: name, desc: desc, signed: b, revision: rev, owner: owner, fetched: c.cfg.Now(), latest: desc.Sequence}, nil
}

// owner decides whose signature counts: the pinned owner's; without a pin our
// own, since nobody else can make it; on first use whoever claims to be.
func (c *Client) owner(name api.FunctionName, claimed sealed.Fingerprint) (_ sealed.Fingerprint, firstUse bool, err error) {
	gateway := c.gateway.String()
	pinned, ok := c.cfg.Pins.Owner(gateway, name)
	if !ok || pinned != claimed {
		c.cfg.Pins.again()
		pinned, ok = c.cfg.Pins.Owner(gateway, name)
	}
	if ok {
		if pinned != claimed {
			return pinned, false, &api.Error{Code: api.CodeForbidden, Field: "owner",
				Message: fmt.Sprintf("%s is signed by %s, and %s is pinned as its owner", name.Short(), claimed, pinned),
				Remedy:  "ask its owner; if the change is meant: faasd-sec key trust owner " + string(name) + " FINGERPRINT"}
		}
		return pinned, false, nil
	}
	if c.cfg.Identity != nil && c.cfg.Identity.SigningKey().Fingerprint() == claimed {
		return claimed, false, nil
	}
	if !c.cfg.TrustOnFirstUse {
		return claimed, false, &api.Error{Code: api.CodeForbidden, Field: "owner",
			Message: fmt.Sprintf("nobody is pinned as the owner of %s; the gateway says %s", name.Short(), claimed),
			Remedy:  fmt.Sprintf("compare the fingerprint with its owner, then: faasd-sec key trust owner %s %s", name, claimed)}
	}
	return claimed, true, nil
}
