package placement

import (
	"fmt"
	"strings"
)

// Reason is why a node is not a candidate. Its String is stable.
type Reason uint8

// The reasons, in the order in which the filters run; a node is counted under
// the first that applies.
const (
	ReasonNotNode  Reason = iota // has no node role: runs no sandboxes
	ReasonDraining               // takes no new work
	ReasonNoLoad                 // has not told yet what is free
	ReasonExcluded               // the request names it in Exclude
	ReasonArch                   // is of another architecture
	ReasonTier                   // gives none of the evidence types asked for
	ReasonLabel                  // does not meet a condition on its labels
	ReasonApart                  // runs a sandbox of the function, and no second one is to be there
	ReasonCPU                    // no warm slot, and less CPU free than a sandbox needs
	ReasonMemory                 // no warm slot, and less memory free
	ReasonPIDs                   // no warm slot, and fewer pids free
	ReasonScratch                // no warm slot, and less scratch space free
	ReasonIngress                // no warm slot, and less bandwidth inwards free
	ReasonEgress                 // no warm slot, and less bandwidth outwards free
	ReasonPorts                  // no warm slot, and fewer ports of the host free
	ReasonCores                  // no warm slot, and fewer cores that a sandbox can have of its own free

	reasons // their number
)

// String is the reason's stable code.
func (r Reason) String() string {
	switch r {
	case ReasonNotNode:
		return "not_node"
	case ReasonDraining:
		return "draining"
	case ReasonNoLoad:
		return "no_load"
	case ReasonExcluded:
		return "excluded"
	case ReasonArch:
		return "arch"
	case ReasonTier:
		return "tier"
	case ReasonLabel:
		return "label"
	case ReasonApart:
		return "apart"
	case ReasonCPU:
		return "cpu"
	case ReasonMemory:
		return "memory"
	case ReasonPIDs:
		return "pids"
	case ReasonScratch:
		return "scratch"
	case ReasonIngress:
		return "ingress"
	case ReasonEgress:
		return "egress"
	case ReasonPorts:
		return "ports"
	case ReasonCores:
		return "cores"
	}
	return fmt.Sprintf("reason(%d)", uint8(r))
}

// Counts holds how many nodes were refused, indexed by Reason.
type Counts [reasons]int

// Total is the number of refused nodes.
func (c Counts) Total() int {
	n := 0
	for _, v := range c {
		n += v
	}
	return n
}

// String lists the reasons that occur, as in "2 draining, 1 memory".
func (c Counts) String() string {
	var b strings.Builder
	for r, v := range c {
		if v == 0 {
			continue
		}
		if b.Len() > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%d %s", v, Reason(r))
	}
	return b.String()
}

// Refusal is one node that is not a candidate.
type Refusal struct {
	ID     string
	Reason Reason
	Detail string // for a person: what is lacking
}

// Candidate is one node that can take the invocation.
type Candidate struct {
	Index  int    // into the view's Nodes
	ID     string // the node's
	Warm   bool   // a running sandbox has a free slot, going by the view and Pending
	Pooled bool   // no such slot, but a sandbox waits there for a function, by the same account
	Score  float64
	Parts  Parts
}

// Decision is the answer to a request.
type Decision struct {
	Candidates []Candidate // best first
	Scanned    int         // nodes looked at; all of them if there is no candidate
	Refused    Counts      // of those looked at
	Refusals   []Refusal   // the first Request.Explain of them, in the order looked at
}

// Summary is the decision in one line for a person.
func (d Decision) Summary() string {
	if d.Scanned == 0 {
		return "no node in the mesh"
	}
	if len(d.Candidates) == 0 {
		return fmt.Sprintf("no candidate among %d nodes: %s", d.Scanned, d.Refused)
	}
	how := "cold"
	switch {
	case d.Candidates[0].Warm:
		how = "warm"
	case d.Candidates[0].Pooled:
		how = "pooled"
	}
	s := fmt.Sprintf("%s (%s, score %.2f), %d candidates among %d nodes",
		d.Candidates[0].ID, how, d.Candidates[0].Score, len(d.Candidates), d.Scanned)
	if d.Refused.Total() > 0 {
		s += "; refused: " + d.Refused.String()
	}
	return s
}
