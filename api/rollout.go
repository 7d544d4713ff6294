package api

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
// percent by revision, 100 in all.
type Traffic struct {
	Percent map[string]int `json:"percent"`
}
