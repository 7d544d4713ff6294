package api

// Needs is what one task asks of the node that runs it, as the coordinator
// learned it from a sealed manifest. It travels between coordinator and node,
// under their mutual TLS, and nowhere else.
type Needs struct {
	Task      string     `json:"task,omitempty"` // id in hex, 32 digits; what a node does for one is idempotent by it
	Resources Resources  `json:"resources"`      // limits as well as reservations
	Ports     []PortNeed `json:"ports,omitempty"`
	Allow     []string   `json:"allow,omitempty"`    // what it may open, each as Reach writes it; none: what the node lets functions open
	Apart     bool       `json:"apart,omitempty"`    // no second sandbox of the function on this node
	Priority  int        `json:"priority,omitempty"` // 0 (lowest) to 9
	Deadline  int64      `json:"deadline,omitempty"` // unix milliseconds by which the task must have ended, 0 for none
}

// Protocols of a PortNeed.
const (
	ProtocolTCP = "tcp"
	ProtocolUDP = "udp"
)

// PortNeed asks for ports of the host.
type PortNeed struct {
	Protocol string `json:"protocol"`         // ProtocolTCP or ProtocolUDP
	Number   int    `json:"number,omitempty"` // this one; 0 for any of the node's range
	Count    int    `json:"count"`            // how many; 1 where Number is given
}

// Requirement is a condition on one label of a node.
type Requirement struct {
	Key   string `json:"key"`
	Op    string `json:"op"` // OpEquals, OpDiffers, OpExists or OpAbsent
	Value string `json:"value,omitempty"`
}

// Operators of a Requirement.
const (
	OpEquals  = "="       // the label is there with this value
	OpDiffers = "!="      // it is absent, or has another value
	OpExists  = "exists"  // it is there
	OpAbsent  = "!exists" // it is not
)
