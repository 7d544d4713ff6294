package api

// Paths of a coordinator's cluster listener that serve other coordinators.
const (
	GatewayPathJoinCoordinator = "/v1/join-coordinator" // POST CoordinatorJoin; without a certificate
	GatewayPathReplicate       = "/v1/replicate"        // POST Replicate, from coordinators
	GatewayPathWaits           = "/v1/waits"            // GET []Waits, from coordinators
	GatewayPathDemand          = "/v1/demand/"          // GET NAME, Told, from coordinators
)

// MaxWaits bounds the revisions that a coordinator tells Waits of: those of which
// most calls wait.
const MaxWaits = 1024

// Waits is how many calls of one revision wait for room in a coordinator, which
// nobody else knows of.
type Waits struct {
	Revision string `json:"revision"` // hex
	Calls    int    `json:"calls"`    // 1 or more; those in sandboxes of a task's own are not counted
}

// Told is what one coordinator alone knows of the demand for a function.
type Told struct {
	Waiting  *int `json:"waiting"`          // calls that wait for room there; never absent, so that silence is not taken for none
	Controls bool `json:"controls"`         // it is the one that controls replicas
	Wanted   *int `json:"wanted,omitempty"` // replicas, as it decided last; absent until it has, and where it does not control
}

// CoordinatorJoin asks to be one of the cluster's coordinators.
type CoordinatorJoin struct {
	Token string `json:"token"`
	ID    string `json:"id"`
	Peer  string `json:"peer"` // host:port under which others reach its store
}

// CoordinatorJoined is all that a coordinator holds. It is a secret: with the
// authority's key its holder enrols whom it likes.
type CoordinatorJoined struct {
	CA         []byte            `json:"ca"`     // PEM
	CAKey      []byte            `json:"ca_key"` // PEM
	Cluster    string            `json:"cluster"`
	GossipKeys []string          `json:"gossip_keys"` // hex; the first one seals
	Owners     []string          `json:"owners"`
	Seeds      []string          `json:"seeds"`   // gossip addresses
	Members    map[string]string `json:"members"` // of the store, the new one among them: name to host:port
}

// Replicate asks a coordinator to have a manifest with all it refers to, or a
// blob, in its registry, and to answer once it is on its disk.
type Replicate struct {
	Repository string `json:"repository"`
	Digest     string `json:"digest"`
	Blob       bool   `json:"blob"` // a blob, not a manifest
	From       string `json:"from"` // host:port of a coordinator that has it
}
