package enrol

import (
	"context"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/pki"
	"github.com/faasd-sec/faasd-sec/store"
)

// NodeCertTTL is how long a node's certificate lasts; nodes renew it earlier.
const NodeCertTTL = 30 * 24 * time.Hour

// Tokens are the join tokens that are still good, and the settings that say
// which node ids are taken; *store.Store keeps them.
type Tokens interface {
	PutToken(ctx context.Context, hash, role string, uses int, ttl time.Duration) (store.Token, error)
	ConsumeToken(ctx context.Context, hash string) (store.Token, error)
	GetSetting(ctx context.Context, name string) (store.Setting, error)
	PutSetting(ctx context.Context, name string, value []byte, expected int64) (int64, error)
}

// nodeSetting is where the store says that a node id is taken.
func nodeSetting(id string) string { return "nodes/" + id }

func taken(id string) error {
	return &api.Error{Code: api.CodeConflict, Field: "id", Message: "the cluster has a node " + id + " already",
		Remedy: "choose another id; a machine that lost its state joins under a new one"}
}

// Desk is the coordinator's side of enrolment.
type Desk struct {
	Authority *pki.Authority
	Tokens    Tokens
	Cluster   Cluster
	Seeds     func() []string // gossip addresses of coordinators
	Address   string          // host:port of the coordinator's cluster listener
	Broker    string          // host:port of the key broker
	Members   Membership      // the store's members; nil: no other coordinator may join
}

// NewToken makes a join token for uses nodes, or coordinators, that lasts ttl.
// Only its hash is kept; the text is shown once.
func (d *Desk) NewToken(ctx context.Context, role pki.Role, uses int, ttl time.Duration) (string, error) {
	if role != pki.RoleNode && role != pki.RoleCoordinator {
		return "", api.Invalid("role", "use node or coordinator", fmt.Sprintf("%q joins with no token", role))
	}
	t, err := pki.NewToken(d.Authority.Hash())
	if err != nil {
		return "", fmt.Errorf("make join token: %w", err)
	}
	if _, err := d.Tokens.PutToken(ctx, pki.HashToken(t), string(role), uses, ttl); err != nil {
		return "", err
	}
	return t.Text(), nil
}

// Import takes over the token that init made, once.
func (d *Desk) Import(ctx context.Context, b Bootstrap) error {
	left := time.Until(time.Unix(b.ExpiresAt, 0))
	if b.TokenHash == "" || left <= 0 {
		return nil
	}
	_, err := d.Tokens.PutToken(ctx, b.TokenHash, string(pki.RoleNode), b.Uses, left)
	return err
}

// Join gives a new node its certificate and what it must know. The request is
// checked in full before the token is used up.
func (d *Desk) Join(ctx context.Context, req api.JoinRequest) (api.JoinReply, error) {
	var none api.JoinReply
	tok, err := pki.ParseToken(req.Token)
	if err != nil {
		return none, err
	}
	csr, err := pki.ParseRequest(req.CSR)
	if err != nil {
		return none, err
	}
	keys := make([][]byte, 0, len(d.Cluster.GossipKeys))
	for _, k := range d.Cluster.GossipKeys {
		b, err := hex.DecodeString(k)
		if err != nil {
			return none, fmt.Errorf("cluster file: gossip key: %w", err)
		}
		keys = append(keys, b)
	}
	// Who holds a token may join, but not as a machine that is there already.
	if _, err := d.Tokens.GetSetting(ctx, nodeSetting(csr.ID)); err == nil {
		return none, taken(csr.ID)
	} else if api.CodeOf(err) != api.CodeNotFound {
		return none, err
	}
	if err := d.consume(ctx, tok, pki.RoleNode); err != nil {
		return none, err
	}
	cert, err := d.Authority.Sign(csr, pki.RoleNode, csr.ID, NodeCertTTL)
	if err != nil {
		return none, err
	}
	// Of two that ask at once one is told no; its certificate is never sent.
	_, err = d.Tokens.PutSetting(ctx, nodeSetting(csr.ID), []byte(time.Now().UTC().Format(time.RFC3339)), store.Absent)
	if api.CodeOf(err) == api.CodeConflict {
		return none, taken(csr.ID)
	} else if err != nil {
		return none, err
	}
	return api.JoinReply{
		Certificate: cert, CA: d.Authority.CertificatePEM(), GossipKeys: keys, Seeds: d.Seeds(),
		Coordinator: d.Address, Broker: d.Broker, Registry: d.Address,
	}, nil
}

// Renew signs a new certificate for a node that proved, by mutual TLS, to be id.
func (d *Desk) Renew(id string, csr []byte) ([]byte, error) {
	req, err := pki.ParseRequest(csr)
	if err != nil {
		return nil, err
	}
	if req.ID != id {
		return nil, api.Errorf(api.CodeForbidden, "node %s asks for the certificate of %s", id, req.ID)
	}
	return d.Authority.Sign(req, pki.RoleNode, id, NodeCertTTL)
}
