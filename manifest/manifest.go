package manifest

import (
	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// CodeExceedsBounds refuses an override beyond what the function's owner allows.
const CodeExceedsBounds = api.CodeExceedsBounds

// Manifest is what one task needs. In an initiator's manifest a number of 0, an
// empty list and an unset choice mean "the function's default".
type Manifest struct {
	Task       sealed.ID     // acting on a manifest is idempotent by it; zero where only defaults were merged
	Suite      uint16        // of the envelopes the task is to speak
	Revision   sealed.Digest // of the function; the grant of role 4 does not carry it
	Needs      Needs
	DeadlineMS uint64 // unix milliseconds by which the task must have ended, 0 for none
	Priority   uint8  // 0 (unset, lowest) to 9
	Retry      Retry
}

// Needs are resources and where they may be. Numbers are limits as well as
// reservations; 0 is unset.
type Needs struct {
	CPUMillis     uint64        `cbor:"1,keyasint"` // thousandths of a core
	MemoryBytes   uint64        `cbor:"2,keyasint"`
	StorageBytes  uint64        `cbor:"3,keyasint"` // of the writable layer
	ScratchBytes  uint64        `cbor:"4,keyasint"` // on disk, encrypted
	PIDs          uint64        `cbor:"5,keyasint"`
	IngressBPS    uint64        `cbor:"6,keyasint"` // bits per second
	EgressBPS     uint64        `cbor:"7,keyasint"` // bits per second
	Ports         []Port        `cbor:"8,keyasint"`
	Constraints   []Requirement `cbor:"9,keyasint"`  // all must hold
	Architectures []string      `cbor:"10,keyasint"` // any of them, ascending; none: all
	AntiAffinity  AntiAffinity  `cbor:"11,keyasint"`
	Allow         []Reach       `cbor:"12,keyasint,omitempty"` // what it may open, of version 2; none: what the node lets functions open
	Cores         uint64        `cbor:"13,keyasint,omitempty"` // of its own, of version 2; none: it runs on all
}

// Protocol of a port.
type Protocol uint8

// The protocols.
const (
	TCP Protocol = 1
	UDP Protocol = 2
)

// Port asks for Count ports: any, or the one of that number.
type Port struct {
	Protocol Protocol `cbor:"1,keyasint"`
	Number   uint16   `cbor:"2,keyasint"` // 0: any
	Count    uint16   `cbor:"3,keyasint"` // 1 where Number is given
}

// Reach is what a task may open: ports of an IPv4 network.
type Reach struct {
	Protocol Protocol `cbor:"1,keyasint"`
	Network  uint32   `cbor:"2,keyasint"` // its first address, most significant byte first
	Bits     uint8    `cbor:"3,keyasint"` // of its prefix, 0 to 32
	From     uint16   `cbor:"4,keyasint"`
	To       uint16   `cbor:"5,keyasint"` // included
}

// Operator compares a node's label with a requirement.
type Operator uint8

// The operators.
const (
	Equals  Operator = 1 // the label is there with this value
	Differs Operator = 2 // it is absent, or has another value
	Exists  Operator = 3
	Absent  Operator = 4
)

// String is the operator as a person writes it.
func (o Operator) String() string {
	names := [...]string{"?", "=", "!=", "exists", "!exists"}
	if int(o) >= len(names) {
		return names[0]
	}
	return names[o]
}

// Requirement is a condition on one label of a node.
type Requirement struct {
	Key   string   `cbor:"1,keyasint"`
	Op    Operator `cbor:"2,keyasint"`
	Value string   `cbor:"3,keyasint"` // empty with Exists and Absent
}

// AntiAffinity says how replicas stand to each other.
type AntiAffinity uint8

// The choices.
const (
	AffinityUnset AntiAffinity = 0
	AffinityNone  AntiAffinity = 1 // anywhere
	ReplicasApart AntiAffinity = 2 // no two on one node
)

// Retry says when a task that failed is started again.
type Retry struct {
	MaxAttempts    uint8    `cbor:"1,keyasint"` // the first included; 0: unset, and then so is the rest
	Codes          []string `cbor:"2,keyasint"` // after which, ascending
	AfterNodeDeath bool     `cbor:"3,keyasint"`
}

// Field is a part of a manifest that an override may set. The numbers are the
// format's.
type Field uint8

// The fields; 1 to 11 are the keys of Needs.
const (
	FieldCPU Field = 1 + iota
	FieldMemory
	FieldStorage
	FieldScratch
	FieldPIDs
	FieldIngress
	FieldEgress
	FieldPorts
	FieldConstraints
	FieldArchitectures
	FieldAntiAffinity
	FieldDeadline
	FieldPriority
	FieldRetry
	FieldAllow // key 12 of Needs
	FieldCores // and 13
	fieldEnd
)

// String names the field as errors do.
func (f Field) String() string {
	names := [...]string{"?", "cpu", "memory", "storage", "scratch", "pids", "ingress", "egress", "ports",
		"constraints", "architectures", "anti_affinity", "deadline", "priority", "retry", "allow", "cores"}
	if int(f) >= len(names) {
		return names[0]
	}
	return names[f]
}

// Bounds is what a function's owner says about the manifests of its tasks.
type Bounds struct {
	Suite        uint16
	Revision     sealed.Digest
	Default      Needs
	Priority     uint8 // default
	Retry        Retry // default
	Max          Max
	Overridable  []Field              // ascending
	Initiators   []sealed.Fingerprint // who may send manifests besides the owner, ascending
	AnyInitiator bool                 // everybody may; Initiators is then empty
}

// Max is how far an override may go; 0 means no further than the default.
type Max struct {
	CPUMillis    uint64 `cbor:"1,keyasint"`
	MemoryBytes  uint64 `cbor:"2,keyasint"`
	StorageBytes uint64 `cbor:"3,keyasint"`
	ScratchBytes uint64 `cbor:"4,keyasint"`
	PIDs         uint64 `cbor:"5,keyasint"`
	IngressBPS   uint64 `cbor:"6,keyasint"`
	EgressBPS    uint64 `cbor:"7,keyasint"`
	Ports        uint64 `cbor:"8,keyasint"` // in all
	Priority     uint8  `cbor:"9,keyasint"`
	Attempts     uint8  `cbor:"10,keyasint"`

	Allow []Reach `cbor:"11,keyasint,omitempty"` // of version 2: each entry of an override is within one of these or of the default
	Cores uint64  `cbor:"12,keyasint,omitempty"` // of version 2
}
