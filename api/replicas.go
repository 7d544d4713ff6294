package api

// NodePathReplicas is where a node tells coordinators of its replicas and takes
// their orders: GET [?cpu=1], replies []ReplicaStatus; PUT /NAME?rev=HEX&seq=N with
// a ReplicaOrder, replies ReplicaReply.
const NodePathReplicas = "/v1/replicas"

// NodeQueryCPU asks for the CPU time of replicas too, which costs a look at each.
const NodeQueryCPU = "cpu"

// HeaderExisting comes from a coordinator with an invocation for which no sandbox
// may be made: the function has as many as it may. The node finds a slot in one
// that is there, or refuses.
const HeaderExisting = "X-Faasd-Sec-Existing"

// SetReplicas is the body of POST /v1/functions/NAME/scale.
type SetReplicas struct {
	Replicas int `json:"replicas"`
}

// ReplicaStatus is what a node has of one revision of a function: the sandboxes
// that serve it by its descriptor or settings alone.
type ReplicaStatus struct {
	Function  FunctionName `json:"function"`
	Revision  string       `json:"revision"` // hex
	Sequence  uint64       `json:"sequence"`
	Ready     int          `json:"ready"`              // those that stand frozen included
	Starting  int          `json:"starting,omitempty"` // not ready yet
	Retiring  int          `json:"retiring,omitempty"` // that end after their invocations under way
	InFlight  int          `json:"in_flight,omitempty"`
	Slots     int          `json:"slots"`            // invocations that one takes at once
	Served    uint64       `json:"served,omitempty"` // invocations that began since the daemon did
	CPUMicros int64        `json:"cpu_us,omitempty"` // of those that run
	// Failed counts the starts that failed since the last that did not, with the
	// last one's reason.
	Failed int    `json:"failed,omitempty"`
	Code   Code   `json:"code,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// ReplicaOrder is how many replicas of a revision a node is to keep. Orders are
// repeated: a node that hears none for HoldMs goes by its own habits again.
type ReplicaOrder struct {
	Hold   int   `json:"hold"`    // replicas kept, and made where they are missing
	Firm   int   `json:"firm"`    // of these, kept whatever comes; idle ones of the others make room for others' invocations
	First  bool  `json:"first"`   // the revision has had no replica yet: as for an invocation, idle ones that are not firm make room
	Stop   int   `json:"stop"`    // at most so many beyond Hold are stopped, after their invocations under way
	HoldMs int64 `json:"hold_ms"` // milliseconds
}

// ReplicaReply is what a node made of an order. It does not wait for starts.
type ReplicaReply struct {
	Held    int    `json:"held"`              // ready, or starting
	Refused Code   `json:"refused,omitempty"` // why there are not as many as were ordered
	Reason  string `json:"reason,omitempty"`
}
