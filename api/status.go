package api

// Paths and queries of what is watched.
const (
	NodePathStatus    = "/v1/status"    // GET ?function=NAME&history=1, replies NodeStatus
	NodePathAnomalies = "/v1/anomalies" // GET ?kind=&since=&until=&function=&follow=1, replies events, one JSON object to a line

	GatewayPathAnomalies = "/v1/anomalies" // GET as of a node, and &node=ID; lines of all nodes and of the coordinator

	QueryDetail   = "detail"   // of GatewayPathNodes: ask the nodes, and reply NodeList
	QueryHistory  = "history"  // with the last minutes
	QueryFunction = "function" // full name
	QueryNode     = "node"
	QueryKind     = "kind"   // may be repeated
	QuerySince    = "since"  // unix milliseconds
	QueryUntil    = "until"  // unix milliseconds
	QueryFollow   = "follow" // =1: go on as events come
)

// NodeStatus is what a node says of itself and of what it runs, at one moment.
type NodeStatus struct {
	Node     string       `json:"node"`
	At       int64        `json:"at"` // unix milliseconds of the sample
	Machine  MachineUsage `json:"machine"`
	Reserved Resources    `json:"reserved"` // rounded up to hundredths of Capacity
	Capacity Resources    `json:"capacity"` // lent to functions in all
	Running  int          `json:"running"`  // sandboxes that have a function
	Pooled   int          `json:"pooled"`   // that wait for one
	InFlight int          `json:"in_flight"`
	Draining bool         `json:"draining,omitempty"`
	LogKey   *LogKey      `json:"log_key,omitempty"`
	History  *History     `json:"history,omitempty"`
	Tasks    []TaskStatus `json:"tasks"`
}

// MachineUsage are a machine's counters and rates. A rate is that of the last
// interval.
type MachineUsage struct {
	CPUs            int                 `json:"cpus"`
	CPU             int64               `json:"cpu"` // millicores in use
	Load1           float64             `json:"load1"`
	MemoryTotal     int64               `json:"memory_total"`
	MemoryAvailable int64               `json:"memory_available"`
	DiskSize        int64               `json:"disk_size"` // of the file system with the node's state
	DiskFree        int64               `json:"disk_free"`
	Sockets         int64               `json:"sockets"` // TCP and UDP, in the node's own network namespace
	Pressure        map[string]Pressure `json:"pressure,omitempty"`
	Interfaces      []InterfaceUsage    `json:"interfaces,omitempty"`
}

// Pressure is the share of the last ten seconds, in percent, in which some or all
// tasks waited for a resource.
type Pressure struct {
	Some float64 `json:"some"`
	Full float64 `json:"full"`
}

// InterfaceUsage is the traffic of one network interface.
type InterfaceUsage struct {
	Name   string `json:"name"`
	In     int64  `json:"in"`      // bits per second
	Out    int64  `json:"out"`     // bits per second
	InAll  int64  `json:"in_all"`  // bytes since it is there
	OutAll int64  `json:"out_all"` // bytes
	Drops  int64  `json:"drops"`   // packets, both ways
}

// TaskStatus is one sandbox that has a function, as its node last saw it.
type TaskStatus struct {
	ID        string       `json:"id"`
	Node      string       `json:"node"`
	Function  FunctionName `json:"function"`
	Revision  string       `json:"revision"`
	State     string       `json:"state"`
	InFlight  int          `json:"in_flight"`
	StartedAt int64        `json:"started_at"`       // unix milliseconds
	Limits    Resources    `json:"limits"`           // of the function; the agent has its own beside them; zero where Sealed
	Sealed    bool         `json:"sealed,omitempty"` // a manifest set the limits, which are not told, nor is the size of its storage
	Usage     TaskUsage    `json:"usage"`
	History   *History     `json:"history,omitempty"`
}

// TaskUsage is what a task uses. It is zero until it was looked at once.
type TaskUsage struct {
	At          int64   `json:"at,omitempty"` // unix milliseconds, 0 before the first look
	CPU         int64   `json:"cpu"`          // millicores
	CPUMicros   int64   `json:"cpu_us"`       // CPU time in all
	Throttled   float64 `json:"throttled"`    // share of the quota's periods that were cut short lately, 0 to 1
	ThrottledUs int64   `json:"throttled_us"` // held back in all
	Memory      int64   `json:"memory"`       // bytes, the agent's included
	PIDs        int64   `json:"pids"`
	OOMKills    int64   `json:"oom_kills"`
	ReadBps     int64   `json:"read_bps"`  // block reads, bytes per second
	WriteBps    int64   `json:"write_bps"` // block writes, bytes per second
	StorageUsed int64   `json:"storage_used"`
	StorageSize int64   `json:"storage_size"`      // of its writable file systems; 0 for none
	Network     bool    `json:"network,omitempty"` // it has an interface
	In          int64   `json:"in,omitempty"`      // bits per second into the sandbox
	Out         int64   `json:"out,omitempty"`     // bits per second out of it
}

// History is the recent past, oldest first, one value for each interval.
type History struct {
	EveryMs int64     `json:"every_ms"`
	CPU     []float32 `json:"cpu"`    // millicores
	Memory  []float32 `json:"memory"` // bytes
	In      []float32 `json:"in,omitempty"`
	Out     []float32 `json:"out,omitempty"`
}

// LogKey binds the key of a member's anomaly log to its certificate: the member's
// own signature, with the key of its mutual TLS, over the log's public key.
type LogKey struct {
	Member      string   `json:"member"` // its id, as in the certificate
	Fingerprint string   `json:"fingerprint"`
	Public      string   `json:"public"` // SM2 point, hex
	AtMs        int64    `json:"at_ms"`
	Chain       [][]byte `json:"chain"`     // DER, leaf first
	Signature   []byte   `json:"signature"` // ECDSA with SHA-256, see docs/monitoring.md
}

// NodeList is the reply to GatewayPathNodes with QueryDetail. A node that did not
// answer in time is there with what gossip says of it, and with Error.
type NodeList struct {
	Nodes       []NodeDetail `json:"nodes"`
	Coordinator *LogKey      `json:"coordinator_log_key,omitempty"`
}

// NodeDetail is one node of a NodeList.
type NodeDetail struct {
	View   NodeView    `json:"view"`
	Status *NodeStatus `json:"status,omitempty"` // nil where it did not answer
	Error  string      `json:"error,omitempty"`  // a Code
}

// TaskList is the reply to GatewayPathTasks: partial where Missing names nodes.
type TaskList struct {
	Tasks   []TaskStatus  `json:"tasks"`
	Missing []MissingNode `json:"missing,omitempty"`
}

// MissingNode is a node that did not answer.
type MissingNode struct {
	Node  string `json:"node"`
	Error string `json:"error"` // a Code
}
