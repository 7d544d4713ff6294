package api

// Content types.
const (
	ContentTypeSealed  = "application/vnd.faasd-sec.sealed" // a sealed message, docs/envelope.md
	ContentTypeFrames  = "application/vnd.faasd-sec.frames" // u32 big-endian length, then that many bytes, repeated
	ContentTypeProblem = "application/problem+json"
	ContentTypeJSON    = "application/json"
	ContentTypeLines   = "application/x-ndjson" // one JSON object to a line
)

// Header names of the platform. None carries anything of a sealed payload.
const (
	HeaderCallID        = "X-Call-Id"            // kept when the caller sends one, else drawn
	HeaderServedBy      = "X-Served-By"          // id of the node that served
	HeaderDuration      = "X-Duration-Seconds"   // in the coordinator, decimal seconds
	HeaderRefused       = "X-Faasd-Sec-Refused"  // set by a node: this Code, and no byte reached an agent
	HeaderLoad          = "X-Faasd-Sec-Load"     // set by a node: its NodeLoad as JSON, when it changed
	HeaderUnopened      = "X-Faasd-Sec-Unopened" // set by an agent on a refusal: the message was not accepted and is not remembered
	HeaderTicket        = "X-Faasd-Sec-Ticket"   // an admission made beforehand for a large body
	HeaderStart         = "X-Faasd-Sec-Start"    // "warm", "pooled" or "cold": a sandbox was there; one waited for a function; neither
	HeaderStated        = "X-Faasd-Sec-Stated"   // from a coordinator: sequence of the function's traffic statement, while it offers one
	HeaderManifest      = "X-Faasd-Sec-Manifest" // from a caller: its sealed manifest, base64url without padding
	HeaderTime          = "X-Faasd-Sec-Time"     // coordinator to node: the sender's clock, unix milliseconds
	HeaderNeeds         = "X-Faasd-Sec-Needs"    // from a coordinator to a node: the task's Needs as JSON
	HeaderNeedPrefix    = "X-Faasd-Sec-Need-"    // from a caller to the sealing proxy beside it, which hands it on sealed alone; a field's name follows
	HeaderForwardedHost = "X-Forwarded-Host"     // of a plain call: the host that its caller asked for
	HeaderInternal      = "X-OpenFaaS-Internal"  // on a reply to a plain call: the platform's own words, not the function's
	HeaderTrace         = "Traceparent"          // W3C Trace Context, of whoever traces
	HeaderTarget        = "X-Faasd-Sec-Target"   // of a plain function's request on its way: path and query for the function
	HeaderFunctionErr   = "X-Faasd-Sec-Error"    // inside a sealed reply's head, and on a plain function's reply: a Code of the platform's own
)

// Paths that a node serves to coordinators, over mutual TLS.
const (
	NodePathInvoke    = "/v1/invoke/"    // POST NAME?rev=HEX&seq=N, sealed body
	NodePathPlain     = "/v1/plain/"     // any method, NAME?rev=HEX&seq=N, a plain function's request; see HeaderTarget
	NodePathAdmit     = "/v1/admit/"     // POST NAME?rev=HEX&seq=N, replies Ticket
	NodePathRevisions = "/v1/revisions/" // PUT HEX[?prefetch=1][&keep=HEX], body Revision; all others of the function but those kept are forgotten
	NodePathFunctions = "/v1/functions/" // DELETE NAME[?keep=HEX&keep=HEX]: stop its sandboxes but those of these revisions
	NodePathLogs      = "/v1/logs/"      // GET NAME?follow=1&after=N, replies frames of LogFrame
	NodePathDrain     = "/v1/drain"      // PUT: take nothing new until DELETE, over restarts too
	NodePathSandboxes = "/v1/sandboxes"  // GET ?function=NAME, replies []SandboxStatus
)

// NodeQueryKeep names a revision that serves; it may be repeated.
const NodeQueryKeep = "keep"

// NodeQueryPrefetch asks a node that is told a revision to pull its image too.
const NodeQueryPrefetch = "prefetch"

// Paths that the coordinator serves to callers and owners.
const (
	GatewayPathInvoke    = "/function/"    // POST NAME[.NAMESPACE], sealed body
	GatewayPathFunctions = "/v1/functions" // GET list; GET/PUT/DELETE /NAME, GET /NAME?brief=1; GET /NAME/logs
	GatewayPathNodes     = "/v1/nodes"     // GET
	GatewayPathBroker    = "/v1/broker"    // GET BrokerInfo
	GatewayPathDeposits  = "/v1/deposits"  // POST, a sealed key deposit, relayed to the broker
	GatewayPathJoin      = "/v1/join"      // POST JoinRequest; on the cluster listener, without a certificate
	GatewayPathRenew     = "/v1/renew"     // POST JoinRequest without token; on the cluster listener, from nodes
	GatewayPathRegistry  = "/v2/"          // OCI distribution, signed requests only

	GatewayPathManifestKey = "/v1/manifest-key" // GET ManifestKeys
	GatewayPathWaiting     = "/v1/waiting"      // GET []WaitingTask; DELETE /ID, signed by its initiator or the function's owner
	GatewayPathTasks       = "/v1/tasks"        // GET ?function=NAME&node=ID&history=1: TaskList; GET /ID/placement, signed by the same: Placement
)

// GatewayQueryBrief asks for one function without its sandboxes and demand: no
// other member is asked about it then.
const GatewayQueryBrief = "brief"

// Paths that the key broker serves over mutual TLS.
const (
	BrokerPathInfo     = "/v1/broker"   // GET, any role
	BrokerPathDeposits = "/v1/deposits" // POST sealed role 5, from coordinators
	BrokerPathAttest   = "/v1/attest"   // POST AttestRequest, from nodes
	BrokerPathSecrets  = "/v1/secrets/" // GET NAMESPACE: names; PUT the value, DELETE NAMESPACE/NAME; from coordinators
	BrokerPathRelease  = "/v1/release"  // POST ReleaseRequest, from nodes
)

// Ticket is a node's promise to hold one slot in a running sandbox for a short
// while, so that a large body is sent only once it is sure to be taken.
type Ticket struct {
	Ticket  string `json:"ticket"`
	Expires int64  `json:"expires"` // unix milliseconds
}

// Revision is what a node must know to run one revision of a function. Of a sealed
// one only the descriptor is authoritative; it is signed by the owner and the
// agent checks it again.
type Revision struct {
	Descriptor []byte `json:"descriptor,omitempty"` // the signed descriptor, docs/envelope.md
	ImageRef   string `json:"image"`                // where to pull the image named by digest in the descriptor, or in Plain
	BundleRef  string `json:"bundle,omitempty"`     // repository of the sealed bundle blob, empty if none
	// Bounds are what tasks may ask for, sealed by the owner to the cluster's
	// manifest key. Coordinators take them; nodes are never given them.
	Bounds []byte `json:"bounds,omitempty"`
	// Labels and Annotations are for people and for what schedules and lists. They
	// are in clear, and not part of what is signed with the function; nodes are
	// never given them.
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	// Restore is of a revision that is signed anew: its bounds, scale, labels and
	// annotations are those it had.
	Restore bool `json:"restore,omitempty"`
	// Scale is how many replicas the owner wants; nil: on demand. Nobody has to trust
	// it: it is not part of what is signed with the function.
	Scale *Scale `json:"scale,omitempty"`
	// Traffic is the owner's signed statement that the revisions which serve may go
	// on having replicas until this one does. Coordinators take it; nodes are never
	// given it.
	Traffic []byte `json:"traffic,omitempty"`
	// Plain is there instead of Descriptor for a plain function. Of what an owner
	// sends in it to deploy one the Function alone counts.
	Plain *PlainRevision `json:"plain,omitempty"`
}

// PlainRevision is one revision of a plain function.
type PlainRevision struct {
	Name     FunctionName `json:"name"`
	Sequence uint64       `json:"sequence"` // grows with every deployment
	Image    string       `json:"image"`    // digest, "sha256:…": what the reference meant when it was deployed
	Function Plain        `json:"function"`
	Broker   string       `json:"broker,omitempty"` // point, hex: who signs the release of its secrets; empty where it has none
}

// MaxSecrets bounds the secrets of one plain function, all together, in bytes.
const MaxSecrets = 512 << 10

// FunctionStatus is one function as the gateway lists it. It holds what the
// operator may see and no more.
type FunctionStatus struct {
	Name      FunctionName     `json:"name"`
	Revision  string           `json:"revision"` // hex
	Owner     string           `json:"owner"`    // fingerprint, hex
	Image     string           `json:"image"`    // repository@digest
	Mode      string           `json:"mode"`     // of a sealed function; ModePlain for all others
	Sealed    bool             `json:"sealed"`
	Resources Resources        `json:"resources"`
	Sequence  uint64           `json:"sequence"`
	UpdatedAt int64            `json:"updated_at"` // unix seconds
	Replicas  int              `json:"replicas"`   // sandboxes that run or start, by their nodes' word; with GatewayQueryBrief the nodes that have any, by gossip
	Available int              `json:"available"`  // of these, ready
	Scale     *Scale           `json:"scale,omitempty"`
	Rollout   *Rollout         `json:"rollout,omitempty"` // the last one
	Serving   []RevisionStatus `json:"serving,omitempty"` // where there is more than one revision
	Set       *int             `json:"set,omitempty"`     // replicas, by hand, until the load asks for another number
	Sandboxes []SandboxStatus  `json:"sandboxes,omitempty"`
	// Demand is what all coordinators know of it; only in the reply for one function,
	// and not with GatewayQueryBrief.
	Demand *Demand `json:"demand,omitempty"`
	// Descriptor is the signed descriptor; only in the reply for one function.
	Descriptor []byte `json:"descriptor,omitempty"`
	// Traffic is the owner's signed statement that divides the calls of a sealed
	// function, where there is one; only in the reply for one function.
	Traffic []byte `json:"traffic,omitempty"`
	Plain   *Plain `json:"plain,omitempty"` // as deployed, of a plain function
	// Labels and Annotations are a sealed function's; a plain one's are in Plain.
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	CreatedAt   int64             `json:"created_at,omitempty"`
}

// Demand is what a function is to have and what waits for it, in all coordinators
// of the cluster, as each of them says when it is asked. A number that is not known
// is absent, and never a guess.
type Demand struct {
	OnDemand bool   `json:"on_demand,omitempty"` // no number is wanted: calls have replicas made
	Wanted   *int   `json:"wanted,omitempty"`    // replicas of all its revisions, as the coordinator that controls them decided last
	Waiting  *int   `json:"waiting,omitempty"`   // calls that wait for room
	Unknown  string `json:"unknown,omitempty"`   // why a number is absent, for people
}

// ModePlain is the mode under which plain functions are listed.
const ModePlain = "plain"

// SandboxStatus is one sandbox on one node.
type SandboxStatus struct {
	ID        string       `json:"id"`
	Node      string       `json:"node"`
	Function  FunctionName `json:"function"`
	Revision  string       `json:"revision"`
	State     string       `json:"state"`                  // starting, ready, frozen, stopping, dead
	Start     string       `json:"start,omitempty"`        // StartPooled or StartPlain
	StartWhy  string       `json:"start_reason,omitempty"` // why it is not pooled
	InFlight  int          `json:"in_flight"`
	StartedAt int64        `json:"started_at"`           // unix milliseconds
	StartMs   int64        `json:"start_ms"`             // time from decision to ready
	Evidence  string       `json:"evidence"`             // evidence type its keys were released for
	LastError string       `json:"last_error,omitempty"` // why it ended: a Code and a few words
	Memory    int64        `json:"memory"`               // bytes in use
	CPUMicros int64        `json:"cpu_us"`               // CPU time used
}

// How a sandbox came to its function.
const (
	StartPooled = "pooled" // it waited without one, and the image was mounted into it
	StartPlain  = "plain"  // it was created with the image as its root
)

// LogFrame is one log message of a sandbox, as JSON in a frame. Sealed is a role 7
// message that only the function's owner can open; a plain function has Lines.
type LogFrame struct {
	Node    string `json:"node"`
	Sandbox string `json:"sandbox"`
	Seq     uint64 `json:"seq"` // per node and function, for ?after=
	Sealed  []byte `json:"sealed,omitempty"`

	Lines []LogLine `json:"lines,omitempty"`
}

// BrokerInfo is a key broker's public identity.
type BrokerInfo struct {
	Signing    string   `json:"signing"`    // point, hex; signs releases; named in descriptors
	Decryption string   `json:"decryption"` // point, hex; deposits are sealed to it
	Tiers      []string `json:"tiers"`      // evidence types it can verify
}

// ReleaseRequest asks the broker for a function's keys on behalf of a sandbox.
type ReleaseRequest struct {
	Function  string     `json:"function"`          // full name
	Revision  string     `json:"revision"`          // digest, hex
	Statement []byte     `json:"statement"`         // made by the agent: CBOR of Statement
	Evidence  []Evidence `json:"evidence"`          // made by the node, about the statement
	Secrets   []string   `json:"secrets,omitempty"` // of a plain function, which has no keys: what it asks for instead
}

// AttestRequest shows the broker the statement and evidence of a sandbox that
// waits for a function, so that it can verify them ahead: the same bytes that the
// ReleaseRequest will carry.
type AttestRequest struct {
	Statement []byte     `json:"statement"`
	Evidence  []Evidence `json:"evidence"`
}

// Statement is what a sandbox says of itself; evidence vouches for its digest.
// It names no function, so that it can be made, and vouched for, before the
// sandbox has one: what matters is who can read what is sealed to Ephemeral.
type Statement struct {
	Ephemeral  []byte `cbor:"1,keyasint"` // the sandbox's SM2 decryption point, 65 bytes
	Nonce      []byte `cbor:"2,keyasint"` // 16 random bytes
	IssuedAtMs int64  `cbor:"3,keyasint"` // unix milliseconds
}

// Evidence is one proof, of one type, about a statement.
type Evidence struct {
	Type string `json:"type"` // "node-key", later "tpm", "tdx", "snp"
	Data []byte `json:"data"` // defined by the type
}

// ReleaseReply carries the sealed release (role 6) to the sandbox.
type ReleaseReply struct {
	Sealed []byte `json:"sealed"`
	Type   string `json:"type"` // evidence type that decided
}

// JoinRequest asks the coordinator for a node certificate.
type JoinRequest struct {
	Token string `json:"token"`
	CSR   []byte `json:"csr"` // PKCS#10, DER
}

// JoinReply is what a new node needs to take part.
type JoinReply struct {
	Certificate []byte   `json:"certificate"` // PEM
	CA          []byte   `json:"ca"`          // PEM
	GossipKeys  [][]byte `json:"gossip_keys"` // hex-decoded gossip keys, 32 bytes each; the first one seals
	Seeds       []string `json:"seeds"`       // gossip addresses
	Coordinator string   `json:"coordinator"` // host:port of its mutual-TLS API
	Broker      string   `json:"broker"`      // host:port of the key broker
	Registry    string   `json:"registry"`    // host:port of the registry
}
