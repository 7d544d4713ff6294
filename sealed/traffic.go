package sealed

import (
	"crypto"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed/internal/dcbor"
	"github.com/faasd-sec/faasd-sec/sealed/internal/der"
)

// Limits of a traffic statement.
const (
	MaxTrafficLife = 7 * 24 * time.Hour // from issued to expires
	MaxShares      = 4
	maxTraffic     = 1024 // bytes of the encoded payload
	trafficMagic   = "FST1"
	// MaxSignedTraffic is the most bytes of a signed traffic statement.
	MaxSignedTraffic = containerBefore + maxTraffic + containerAfter + der.MaxSignature
)

// Traffic is what a function's owner signs to have more than its latest
// descriptor used for a while: key brokers release the keys of the descriptors
// that it names, and callers divide their calls among them. While none is live,
// the latest descriptor alone counts.
type Traffic struct {
	Name      string // of the function
	Namespace string
	// Sequence comes from the same count as the sequences of the function's
	// descriptors: what has the highest one was said last.
	Sequence uint64
	Issued   uint64  // unix seconds
	Expires  uint64  // unix seconds, at most MaxTrafficLife later
	Shares   []Share // 1..4, by their sequence; 100 percent in all
}

// Share is the part of one descriptor.
type Share struct {
	Revision Digest
	Sequence uint64 // the descriptor's: two of one revision can have different keys
	Percent  uint64 // of the calls; 0: none, but its keys are released
}

// FullName returns "name.namespace".
func (t *Traffic) FullName() string { return t.Name + "." + t.Namespace }

// Latest is the share of the latest descriptor that t names.
func (t *Traffic) Latest() *Share { return &t.Shares[len(t.Shares)-1] }

// Find returns the share of a descriptor, nil where t does not name it.
func (t *Traffic) Find(revision Digest, sequence uint64) *Share {
	for i := range t.Shares {
		if s := &t.Shares[i]; s.Revision == revision && s.Sequence == sequence {
			return s
		}
	}
	return nil
}

// Choose returns the share that a call with this id belongs to: always the same
// for the same id. A validated statement has one for every id.
func (t *Traffic) Choose(call string) *Share {
	slot := uint64(api.CallSlot(call))
	for i := range t.Shares {
		if slot < t.Shares[i].Percent {
			return &t.Shares[i]
		}
		slot -= t.Shares[i].Percent
	}
	return t.Latest()
}

// Live refuses, with CodeWindow, a statement that is not yet or not any more to be
// gone by.
func (t *Traffic) Live(now time.Time) error {
	switch at := now.Unix(); {
	case at < 0 || t.Issued > uint64(at) && t.Issued-uint64(at) > uint64(MaxClockLead/time.Second):
		return refuse(CodeWindow, "the traffic statement was issued in the future")
	case uint64(at) >= t.Expires:
		return refuse(CodeWindow, "the traffic statement expired")
	}
	return nil
}

// Validate checks every field and names the first one that is wrong.
func (t *Traffic) Validate() error {
	if err := t.validate(); err != nil {
		return fmt.Errorf("sealed: traffic: %w", err)
	}
	return nil
}

func (t *Traffic) validate() error {
	switch {
	case !dnsLabel(t.Name):
		return fmt.Errorf("name: %q is not a DNS label", t.Name)
	case !dnsLabel(t.Namespace):
		return fmt.Errorf("namespace: %q is not a DNS label", t.Namespace)
	case t.Expires <= t.Issued || t.Expires-t.Issued > uint64(MaxTrafficLife/time.Second):
		return fmt.Errorf("expires: want a time after issued and at most %s after it", MaxTrafficLife)
	case len(t.Shares) < 1 || len(t.Shares) > MaxShares:
		return fmt.Errorf("shares: %d of them, want 1..%d", len(t.Shares), MaxShares)
	}
	sum := uint64(0)
	for i, s := range t.Shares {
		switch {
		case s.Revision.IsZero():
			return fmt.Errorf("share %d: revision: is all zero", i)
		case s.Sequence == 0:
			return fmt.Errorf("share %d: sequence: 0; descriptors begin with 1", i)
		case i > 0 && s.Sequence <= t.Shares[i-1].Sequence:
			return fmt.Errorf("share %d: sequence: not ascending", i)
		case s.Percent > 100:
			return fmt.Errorf("share %d: percent: %d", i, s.Percent)
		}
		for j := range i {
			if t.Shares[j].Revision == s.Revision {
				return fmt.Errorf("share %d: revision: repeats that of share %d", i, j)
			}
		}
		sum += s.Percent
	}
	if sum != 100 {
		return fmt.Errorf("shares: %d percent, want 100", sum)
	}
	if t.Sequence <= t.Latest().Sequence {
		return errors.New("sequence: not above those of the descriptors it names")
	}
	return nil
}

// Sign validates t and encodes it signed by the function's owner.
func (t *Traffic) Sign(random io.Reader, owner crypto.Signer) ([]byte, error) {
	if err := t.Validate(); err != nil {
		return nil, err
	}
	key, err := signerKey(owner)
	if err != nil {
		return nil, fmt.Errorf("sealed: traffic: owner: %w", err)
	}
	b, err := signContainer(random, owner, key, trafficMagic, LabelTraffic, t.appendPayload(nil), maxTraffic)
	if err != nil {
		return nil, fmt.Errorf("sealed: traffic: %w", err)
	}
	return b, nil
}

func (t *Traffic) appendPayload(b []byte) []byte {
	key := func(k uint64) { b = dcbor.AppendUint(b, k) }
	b = dcbor.AppendMap(b, 7)
	key(1)
	b = dcbor.AppendUint(b, 1)
	key(2)
	b = dcbor.AppendText(b, t.Name)
	key(3)
	b = dcbor.AppendText(b, t.Namespace)
	key(4)
	b = dcbor.AppendUint(b, t.Sequence)
	key(5)
	b = dcbor.AppendUint(b, t.Issued)
	key(6)
	b = dcbor.AppendUint(b, t.Expires)
	key(7)
	b = dcbor.AppendArray(b, len(t.Shares))
	for i := range t.Shares {
		s := &t.Shares[i]
		b = dcbor.AppendMap(b, 3)
		key(1)
		b = dcbor.AppendBytes(b, s.Revision[:])
		key(2)
		b = dcbor.AppendUint(b, s.Sequence)
		key(3)
		b = dcbor.AppendUint(b, s.Percent)
	}
	return b
}

// SignedTraffic is a parsed statement whose signature is not yet trusted.
type SignedTraffic struct {
	t *Traffic
	c *container
}

// ParseTraffic decodes strictly: one statement has one encoding, up to its
// signature. It does not verify, and knows of no time: see Traffic.Live. It keeps
// no reference to b.
func ParseTraffic(b []byte) (*SignedTraffic, error) {
	c, err := parseContainer(append([]byte(nil), b...), trafficMagic, maxTraffic)
	if err != nil {
		return nil, fmt.Errorf("sealed: traffic: %w", err)
	}
	t := new(Traffic)
	r := dcbor.NewDecoder(c.payload)
	r.Field("payload").MapOf(7)
	if v := r.Key(1, "version").Uint(); r.Err() == nil && v != 1 {
		r.Fail("%d is unknown, want 1", v)
	}
	t.Name = r.Key(2, "name").Text(maxLabel)
	t.Namespace = r.Key(3, "namespace").Text(maxLabel)
	t.Sequence = r.Key(4, "sequence").Uint()
	t.Issued = r.Key(5, "issued").Uint()
	t.Expires = r.Key(6, "expires").Uint()
	for range r.Key(7, "shares").Array(MaxShares) {
		var s Share
		r.Field("shares").MapOf(3)
		r.Key(1, "revision").Fixed(s.Revision[:])
		s.Sequence = r.Key(2, "descriptor's sequence").Uint()
		s.Percent = r.Key(3, "percent").Uint()
		t.Shares = append(t.Shares, s)
	}
	if err := r.End(); err != nil {
		return nil, fmt.Errorf("sealed: traffic: %w", err)
	}
	if err := t.Validate(); err != nil {
		return nil, err
	}
	return &SignedTraffic{t: t, c: c}, nil
}

// Unverified returns the content, which anybody may have made.
func (s *SignedTraffic) Unverified() *Traffic { return s.t }

// Verify returns the statement if the owner with this pinned fingerprint signed
// it; errors.Is(err, CodeSender): another owner; CodeSignature: a forged one.
func (s *SignedTraffic) Verify(owner Fingerprint) (*Traffic, error) {
	if err := s.c.verify(owner, LabelTraffic, "traffic statement"); err != nil {
		return nil, err
	}
	return s.t, nil
}
