package api

// MaxManifestHeader bounds HeaderManifest, in bytes: with the other headers it
// must fit into what a gateway reads of them.
const MaxManifestHeader = 12 << 10

// ManifestKeys are the keys to which a cluster's manifests are sealed, the one
// to seal to first. A gateway is not trusted for that: who opens manifests signs
// each key with its identity.
type ManifestKeys struct {
	Identity string        `json:"identity"` // point, hex: signs Keys, and is what callers pin
	Keys     []ManifestKey `json:"keys"`
}

// ManifestKey is one of them.
type ManifestKey struct {
	Public    string `json:"public"`     // point, hex
	NotBefore uint64 `json:"not_before"` // unix seconds
	NotAfter  uint64 `json:"not_after"`  // unix seconds
	Signature []byte `json:"signature"`  // see manifest.Key
}

// WaitingTask is one task that found no place yet. It says nothing of what the
// task needs.
type WaitingTask struct {
	ID       string       `json:"id"` // the manifest's task, or the call's id where there is no manifest
	Function FunctionName `json:"function"`
	Priority int          `json:"priority"`
	Since    int64        `json:"since"`    // unix milliseconds
	Deadline int64        `json:"deadline"` // unix milliseconds, after which it is refused
}

// Placement explains where a task was placed, or why nowhere. Only who sent the
// task and the function's owner see it.
type Placement struct {
	ID       string           `json:"id"`
	Function FunctionName     `json:"function"`
	At       int64            `json:"at"`             // unix milliseconds of the last attempt
	Attempts int              `json:"attempts"`       // rounds over the nodes
	Node     string           `json:"node,omitempty"` // that took it
	Code     Code             `json:"code,omitempty"` // why none did, or how it was lost
	Nodes    []NodeConsidered `json:"nodes"`          // in the last round
	Omitted  int              `json:"omitted,omitempty"`
}

// NodeConsidered is one node of a Placement.
type NodeConsidered struct {
	Node    string `json:"node"`
	Outcome string `json:"outcome"`          // "taken", "refused" by the node, or "unfit" by what is known of it
	Reason  string `json:"reason,omitempty"` // the node's Code, or the resource or condition that it lacks
}

// Outcomes of a NodeConsidered.
const (
	OutcomeTaken   = "taken"
	OutcomeRefused = "refused"
	OutcomeUnfit   = "unfit"
)
