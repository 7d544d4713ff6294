// Package enrol is how a machine becomes part of a cluster and what it keeps
// to stay part of it: the cluster file of a coordinator, the node file of a
// node, and the one exchange that makes a node out of a token.
//
// A node's private key never leaves it, and the token pins the cluster's
// certificate authority, so that a node joins the cluster it was meant for.
package enrol

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/faasd-sec/faasd-sec/api"
)

// Names inside a state directory.
const (
	CADir         = "ca"             // the cluster's authority, coordinators only
	IdentityFile  = "identity.pem"   // key, certificate and CA of this daemon
	ClusterFile   = "cluster.json"   // Cluster
	NodeFile      = "node.json"      // Node
	BootstrapFile = "bootstrap.json" // Bootstrap, until the coordinator's first start
	PeersFile     = "peers.json"     // Peers, of a coordinator and of a node
	AdminSocket   = "admin.sock"     // the operator's, of a running coordinator

	AdminPathTokens  = "/v1/tokens"  // POST ?role=ROLE&uses=N&ttl=DURATION, replies {"token": …}
	AdminPathMembers = "/v1/members" // GET, replies []store.Member; DELETE ?id=NAME
	AdminPathBackup  = "/v1/backup"  // GET, replies a snapshot of the store
	AdminPathDrain   = "/v1/drain/"  // PUT or DELETE NODE
)

// Cluster is what `faasd-sec init` decides once.
type Cluster struct {
	ID         string   `json:"id"`
	GossipKeys []string `json:"gossip_keys"` // hex; the first one seals
	Owners     []string `json:"owners"`      // fingerprints that may deploy; "any" admits all
}

// Peers are members that a daemon knew when it last ran. A coordinator has no seeds
// of its own, and nodes that still hold it for alive do not call on it; of a node's
// seeds, which it was told when it joined, none may be there any longer.
type Peers struct {
	Gossip []string `json:"gossip"` // host:port; coordinators first
}

// Bootstrap is a join token that init made before there was a store to keep it.
type Bootstrap struct {
	TokenHash string `json:"token_hash"`
	Uses      int    `json:"uses"`
	ExpiresAt int64  `json:"expires_at"` // unix seconds
}

// Node is what a node was told when it joined.
type Node struct {
	ID          string   `json:"id"`
	Cluster     string   `json:"cluster"`
	GossipKeys  []string `json:"gossip_keys"` // hex
	Seeds       []string `json:"seeds"`       // gossip addresses of the coordinators of then
	Coordinator string   `json:"coordinator"` // host:port, mutual TLS
	Broker      string   `json:"broker"`      // host:port, mutual TLS
	Registry    string   `json:"registry"`    // host:port, mutual TLS
}

// Save writes v as JSON, readable by this user alone, in one step.
func Save(dir, name string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	tmp, err := os.CreateTemp(dir, name+".new-*") // mode 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	_, err = tmp.Write(append(b, '\n'))
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(dir, name))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", name, err), os.Remove(tmp.Name()))
	}
	return nil
}

// Load reads a file that Save wrote. CodeNotFound: there is none, and remedy tells
// what makes it.
func Load(dir, name, remedy string, v any) error {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return &api.Error{Code: api.CodeNotFound, Field: "state", Message: err.Error(), Remedy: remedy}
	} else if err != nil { // it is there: nobody may act as if it were not
		return &api.Error{Code: api.CodeInvalid, Field: "state", Message: err.Error(), Remedy: "make it a file that this user can read", Err: err}
	}
	if err := json.Unmarshal(b, v); err != nil {
		return &api.Error{Code: api.CodeInvalid, Field: "state", Message: name + ": " + err.Error(), Remedy: remedy}
	}
	return nil
}
