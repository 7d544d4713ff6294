package anomaly

import (
	"fmt"
	"slices"

	"github.com/faasd-sec/faasd-sec/api"
)

// Kind is what happened. Its numbers are stable and go to disk.
type Kind uint16

// The kinds that producers append.
const (
	OverThreshold     Kind = 1  // a resource stayed above its threshold: threshold, value, duration_ms
	OOM               Kind = 2  // the kernel killed for memory
	Throttled         Kind = 3  // the CPU quota held a sandbox back
	ENOSPC            Kind = 4  // a disk or a sized file system is full
	AbnormalStop      Kind = 5  // a process ended as it should not: exit_code, signal
	HeartbeatMissed   Kind = 6  // a node or an agent was not heard of in time
	SecondCheckFailed Kind = 7  // what was set or verified once did not hold when it was looked at again
	EvidenceRefused   Kind = 8  // evidence was not good enough for keys
	StartFailed       Kind = 9  // a sandbox did not come up
	Refused           Kind = 10 // work or a request was refused
	Drained           Kind = 11 // a node gave up its work
	Schedule          Kind = 12 // calls that were sealed ahead end, have ended, or are not made: left, left_ms
)

// The kinds that the log itself writes; Append refuses them.
const (
	Lost      Kind = 64 // count events found the queue full
	Recovered Kind = 65 // the last writer did not close: bytes were cut, unsigned events were adopted
	Damaged   Kind = 66 // the log was not what its signatures say; it goes on in a new segment
	Pruned    Kind = 67 // retention removed all up to segment and sequence
	Invalid   Kind = 68 // count events did not pass Validate; kind is that of the first, code its field
)

// spec is what an event of a kind may and must have.
type spec struct {
	kind     Kind
	name     string
	codes    []string // beside the codes of package api
	apiCodes bool     // whether those are taken
	needs    []string // numbers that must be there
}

// checks are what SecondCheckFailed looks at, beside resources.
var checks = []string{"agent", "cgroup", "clock", "descriptor", "device", "digest", "evidence", "image", "kernel", "mount", "namespace", "process", "seccomp", "signature", "user"}

// resources are what OverThreshold, Throttled and ENOSPC are about.
var resources = []string{"cpu", "disk", "egress", "files", "ingress", "inodes", "io", "memory", "network", "pids", "ports",
	"pressure-cpu", "pressure-io", "pressure-memory", "scratch", "storage", "swap", "tmp"}

// specs is never written to. A new kind or word is a new line here.
var specs = []spec{
	{kind: OverThreshold, name: "over-threshold", codes: resources, needs: []string{"threshold", "value", "duration_ms"}},
	{kind: OOM, name: "oom", codes: []string{"agent", "function", "sandbox"}},
	{kind: Throttled, name: "throttled", codes: resources},
	{kind: ENOSPC, name: "enospc", codes: resources},
	{kind: AbnormalStop, name: "abnormal-stop", codes: []string{"agent", "function", "launcher", "shim"}, apiCodes: true, needs: []string{"exit_code", "signal"}},
	{kind: HeartbeatMissed, name: "heartbeat-missed", codes: []string{"agent", "dead", "node", "suspect"}},
	{kind: SecondCheckFailed, name: "second-check-failed", codes: slices.Concat(checks, resources)},
	{kind: EvidenceRefused, name: "evidence-refused", apiCodes: true},
	{kind: StartFailed, name: "start-failed", apiCodes: true},
	{kind: Refused, name: "refused", apiCodes: true},
	{kind: Drained, name: "drained", codes: []string{"failed", "requested", "shutdown"}},
	{kind: Schedule, name: "schedule", codes: []string{"ended", "ending", "missed", "refused"}, needs: []string{"left", "left_ms"}},
	{kind: Lost, name: "lost"},
	{kind: Recovered, name: "recovered"},
	{kind: Damaged, name: "damaged"},
	{kind: Pruned, name: "pruned"},
	{kind: Invalid, name: "invalid"},
}

// numberNames are the names that producers may give numbers; never written to.
var numberNames = []string{
	"attempt", "available", "bytes", "count", "duration_ms", "exit_code", "inflight", "inodes", "kills", "left", "left_ms", "limit", "missed",
	"peak", "periods", "queued", "sandboxes", "signal", "since_ms", "threshold", "throttled_periods", "throttled_us", "total",
	"usage_us", "used", "value",
}

func specOf(k Kind) *spec {
	for i := range specs {
		if specs[i].kind == k {
			return &specs[i]
		}
	}
	return nil
}

func (k Kind) own() bool { return k >= Lost && k <= Invalid }

// String is the kind's name; one that this release does not know is "kind-N".
func (k Kind) String() string {
	if s := specOf(k); s != nil {
		return s.name
	}
	return fmt.Sprintf("kind-%d", uint16(k))
}

// Kinds are the names of all kinds, in the order of their numbers.
func Kinds() []string {
	names := make([]string, len(specs))
	for i, s := range specs {
		names[i] = s.name
	}
	return names
}

// ParseKind reads what String writes of a known kind.
func ParseKind(name string) (Kind, error) {
	for _, s := range specs {
		if s.name == name {
			return s.kind, nil
		}
	}
	return 0, api.Invalid("kind", fmt.Sprintf("use one of %v", Kinds()), "no kind has this name")
}

// takes reports whether a producer may give code to an event of this kind. Which
// codes there are is closed, so that none can carry anything else.
func (s *spec) takes(code string) bool {
	if code == "" || slices.Contains(s.codes, code) {
		return true
	}
	return s.apiCodes && api.Code(code).Label() == code
}
