package api

import "hash/fnv"

// States of a Rollout.
const (
	RolloutRolling = "rolling" // the new revision starts; the old one serves
	RolloutDone    = "done"
	RolloutFailed  = "failed" // the old one goes on serving
)

// Rollout is how a function came, comes or did not come from one revision to
// another.
type Rollout struct {
	State   string `json:"state"`
	From    string `json:"from"` // revision, hex
	To      string `json:"to"`   // revision, hex
	Started int64  `json:"started"`
	Ended   int64  `json:"ended,omitempty"` // unix milliseconds, as Started
	Code    Code   `json:"code,omitempty"`  // why it failed
	Reason  string `json:"reason,omitempty"`
}

// RevisionStatus is one revision of a function that serves, or did.
type RevisionStatus struct {
	Revision  string `json:"revision"` // hex
	Sequence  uint64 `json:"sequence"`
	Image     string `json:"image"`      // repository@digest
	UpdatedAt int64  `json:"updated_at"` // unix seconds
	State     string `json:"state"`      // one of Revision…
	Percent   int    `json:"percent,omitempty"`
	Replicas  int    `json:"replicas,omitempty"`

	Descriptor []byte `json:"descriptor,omitempty"` // signed; none of a plain function
	ImageRef   string `json:"image_ref,omitempty"`
	BundleRef  string `json:"bundle_ref,omitempty"`
}

// States of a revision.
const (
	RevisionCurrent  = "current"
	RevisionStarting = "starting" // is to follow the current one once it is ready
	RevisionBeside   = "beside"   // takes a share of the calls
	RevisionDraining = "draining" // serves what was sealed for it, for a moment yet
	RevisionPast     = "past"
)

// Rollback is the body of POST /v1/functions/NAME/rollback, for plain functions;
// the owner of a sealed one signs the old content anew.
type Rollback struct {
	Revision string `json:"revision"` // hex; "" for the one before
}

// Traffic is the body of POST /v1/functions/NAME/traffic: shares of the calls in
// percent by revision, 100 in all, of a plain function; the owner's signed
// statement of them, docs/envelope.md, of a sealed one.
type Traffic struct {
	Percent   map[string]int `json:"percent,omitempty"`
	Statement []byte         `json:"statement,omitempty"`
}

// CallSlot spreads ids of calls evenly over 0 to 99: where calls are divided, one
// goes to the revision whose share its slot is in.
func CallSlot(id string) int {
	h := fnv.New64a()
	_, _ = h.Write([]byte(id)) // never fails
	x := h.Sum64()
	// FNV's last bytes do not reach its high bits: those of SplitMix64's end do.
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	x ^= x >> 31
	return int(x % 100)
}
