package api

import "strings"

// Node roles in NodeMeta.Roles.
const (
	RoleNode        = "node"        // runs sandboxes
	RoleCoordinator = "coordinator" // listens in the mesh, runs nothing
)

// NodeMeta is what a member says of itself when it joins the mesh. It changes
// seldom; its encoding must fit memberlist's 512 bytes.
type NodeMeta struct {
	ID       string            `json:"id"`               // unique, also in its certificate
	Addr     string            `json:"addr"`             // host:port of its mutual-TLS API
	Local    string            `json:"local,omitempty"`  // LocalAddr of the same API for who is on the same machine
	Roles    []string          `json:"roles"`            // RoleNode, RoleCoordinator
	Arch     string            `json:"arch"`             // GOARCH
	Labels   map[string]string `json:"labels,omitempty"` // for placement constraints
	Tier     string            `json:"tier"`             // evidence type it can give, such as "node-key"
	Capacity Resources         `json:"capacity"`         // what it lends to functions in all
}

// NodeLoad is what a node has free at one moment. Epoch grows with every start
// of the node's daemon (unix milliseconds), Seq with every change inside one:
// the pair orders loads, whatever way they arrive by.
type NodeLoad struct {
	Node     string         `json:"n"`
	Epoch    uint64         `json:"e"`
	Seq      uint64         `json:"s"`
	Free     Resources      `json:"f"`           // unreserved or held by idle sandboxes, which make room; and really there by procfs and cgroups
	Warm     map[string]int `json:"w,omitempty"` // RevisionKey -> free slots in running sandboxes
	Hosts    []string       `json:"h,omitempty"` // HostKey of revisions of which sandboxes run or start, bounded, for who wants none of them there; those with slots in Warm by their RevisionKey may be left out
	Images   []string       `json:"i,omitempty"` // ImageKey of images on its disk, newest first, bounded
	Running  int            `json:"r"`           // sandboxes that have a function
	Pooled   int            `json:"p,omitempty"` // sandboxes that wait for one
	InFlight int            `json:"q"`           // invocations
	Draining bool           `json:"d,omitempty"`
}

// Newer reports whether l replaces o.
func (l NodeLoad) Newer(o NodeLoad) bool {
	if l.Epoch != o.Epoch {
		return l.Epoch > o.Epoch
	}
	return l.Seq > o.Seq
}

// RevisionKey shortens a revision digest (hex) for gossip: its first 16
// characters. A clash costs a wrong hint, never a wrong start.
func RevisionKey(revision string) string { return prefix(revision, 16) }

// HostKey shortens a revision digest for NodeLoad.Hosts: its first 15 characters.
func HostKey(revision string) string { return prefix(revision, 15) }

// ImageKey shortens an image digest "sha256:…" for gossip: the first 16 hex
// characters after the algorithm.
func ImageKey(digest string) string {
	for i := range digest {
		if digest[i] == ':' {
			return prefix(digest[i+1:], 16)
		}
	}
	return prefix(digest, 16)
}

func prefix(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}

// NodeView is one member as a snapshot shows it.
type NodeView struct {
	Meta NodeMeta
	Load NodeLoad // zero until the first load arrived
}

// ClusterView is an immutable picture of the live members, ordered by ID. Who
// receives one must not change it.
type ClusterView struct {
	Version uint64 // grows with every published view
	Nodes   []NodeView
}

// LocalAddr names a unix socket together with the machine it is on: the first
// 8 characters of the kernel's boot id, a colon, and the path.
func LocalAddr(bootID, path string) string { return prefix(bootID, 8) + ":" + path }

// LocalPath is the path in a LocalAddr if it is on the machine with this boot id.
func LocalPath(local, bootID string) (path string, ok bool) {
	id, path, found := strings.Cut(local, ":")
	return path, found && id != "" && id == prefix(bootID, 8) && strings.HasPrefix(path, "/")
}
