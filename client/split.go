package client

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// split is a verified traffic statement with the descriptors that take a share. It
// is immutable.
type split struct {
	t  *sealed.Traffic
	of map[uint64]*function // by the descriptor's sequence; all whose share is not 0
}

// at is the descriptor that a call is sealed by: f, or the one whose share the
// call's id is in while a statement is live.
func (f *function) at(call string, now time.Time) *function {
	if f.split == nil || f.split.t.Live(now) != nil {
		return f
	}
	return f.split.of[f.split.t.Choose(call).Sequence]
}

// chosen is f.at for a request, which it gives an id where that decides.
func (c *Client) chosen(f *function, req *Request) *function {
	if f.split != nil && req.CallID == "" {
		var raw [12]byte
		_, _ = rand.Read(raw[:]) // never fails
		req.CallID = hex.EncodeToString(raw[:])
	}
	return f.at(req.CallID, c.cfg.Now())
}

// splitOf verifies the traffic statement of a status, whose descriptor is f's. It
// gives none where there is none, or none any more.
func (c *Client) splitOf(f *function, st api.FunctionStatus) (*split, error) {
	if len(st.Traffic) == 0 {
		return nil, nil
	}
	signed, err := sealed.ParseTraffic(st.Traffic)
	if err != nil {
		return nil, api.Wrap(api.CodeUnavailable, err, "the gateway's traffic statement of "+f.name.Short()+" does not parse")
	}
	t, err := signed.Verify(f.owner)
	if err != nil {
		return nil, api.Wrap(api.CodeForbidden, err, "the traffic statement of "+f.name.Short()+" is not signed by its owner")
	}
	if t.FullName() != string(f.name) {
		return nil, &api.Error{Code: api.CodeForbidden, Field: "traffic",
			Message: fmt.Sprintf("the gateway answered with the traffic statement of %s", t.FullName())}
	}
	if t.Live(c.cfg.Now()) != nil {
		return nil, nil
	}
	s := &split{t: t, of: make(map[uint64]*function)}
	for _, share := range t.Shares {
		if share.Percent == 0 {
			continue
		}
		d, err := c.named(f, st, share)
		if err != nil {
			return nil, err
		}
		d.stated = t.Sequence // nobody else has d yet
		s.of[share.Sequence] = d
	}
	return s, nil
}

// named finds the descriptor that a verified statement names, and verifies it: an
// older one than others are known counts as long as the statement does.
func (c *Client) named(f *function, st api.FunctionStatus, s sealed.Share) (*function, error) {
	if f.desc.Sequence == s.Sequence && f.revision == s.Revision {
		return f, nil
	}
	for _, r := range st.Serving {
		if r.Sequence != s.Sequence || r.Revision != s.Revision.String() {
			continue
		}
		d, err := c.signedBy(f.owner, f.name, r.Descriptor)
		if err != nil {
			return nil, err
		}
		if d.desc.Sequence == s.Sequence && d.revision == s.Revision {
			return d, nil
		}
	}
	return nil, &api.Error{Code: api.CodeUnavailable, Field: "traffic",
		Message: fmt.Sprintf("the gateway does not offer descriptor %d of %s, which its owner's traffic statement names", s.Sequence, f.name.Short()),
		Remedy:  "the owner divides the calls again (faasd-sec traffic)"}
}

// follows refuses a descriptor that is older than what is known, and a statement
// that is.
func (f *function) follows(old *function) error {
	if old == nil || old.owner != f.owner {
		return nil
	}
	refuse := func(what string, offered, seen uint64) error {
		return &api.Error{Code: api.CodeConflict, Field: "sequence",
			Message: fmt.Sprintf("the gateway offers %s %d of %s after %d was seen", what, offered, f.name.Short(), seen),
			Remedy:  "the cluster lost or withholds a deployment: deploy again"}
	}
	// Descriptors count up. Were an older one taken, who serves the gateway could
	// bring back a key or a policy that its owner withdrew.
	if old.latest > f.desc.Sequence {
		return refuse("descriptor", f.desc.Sequence, old.latest)
	}
	if f.split != nil && f.split.t.Sequence < max(old.latest, old.stated) {
		return refuse("traffic statement", f.split.t.Sequence, max(old.latest, old.stated))
	}
	return nil
}
