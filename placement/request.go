package placement

import (
	"github.com/faasd-sec/faasd-sec/api"
)

// DefaultLimit is how many candidates a decision holds if Request.Limit is 0:
// the choice and two to turn to when it refuses.
const DefaultLimit = 3

// Request is what one invocation needs of a node. The zero value of a field
// asks for nothing.
type Request struct {
	Revision  string            // revision digest, hex, as in the descriptor
	Image     string            // image digest, "sha256:…"
	Resources api.Resources     // what a new sandbox reserves, its overhead included
	Needs     string            // api.WarmKey of the sandboxes that serve it; empty for those by the descriptor alone
	Arch      string            // GOARCH the function was built for
	Archs     []string          // GOARCHs of which the node has one
	Tiers     []string          // evidence types of which the node gives one
	Labels    map[string]string // labels the node has, all of them
	Require   []api.Requirement // conditions on its labels, all of them
	Apart     bool              // no sandbox of the function may be there, but the one with a warm slot that it goes to
	Exclude   []string          // IDs of nodes that are not to be tried, for example again

	// Pending tells how many invocations this coordinator has sent to
	// view.Nodes[i] that are not in that node's load in the view. It is called
	// at most once per node, must not block, and nil means none anywhere.
	Pending func(i int) int

	// Hosting tells, for a request that is Apart, whether this coordinator knows
	// of a sandbox of the function on view.Nodes[i], or of one that is coming,
	// which the view does not show. It is called as Pending is; nil means none.
	Hosting func(i int) bool

	Seed    uint64 // decides between equals; draw a new one for each invocation
	Limit   int    // most candidates wanted; 0 or less means DefaultLimit
	Explain int    // how many refusals to list; their count by reason is always there
}

// needs is a Request in the form the inner loop wants.
type needs struct {
	*Request
	revision string // api.RevisionKey, or Needs
	function string // api.RevisionKey
	host     string // api.HostKey
	image    string // api.ImageKey
	labels   []label
	limit    int
}

type label struct{ key, value string }

func (r *Request) compile() needs {
	n := needs{Request: r, limit: r.Limit}
	if n.limit <= 0 {
		n.limit = DefaultLimit
	}
	if r.Revision != "" {
		n.function = api.RevisionKey(r.Revision)
		n.revision, n.host = n.function, api.HostKey(r.Revision)
	}
	if r.Needs != "" {
		n.revision = r.Needs
	}
	if r.Image != "" {
		n.image = api.ImageKey(r.Image)
	}
	for k, v := range r.Labels {
		n.labels = append(n.labels, label{k, v})
	}
	return n
}
