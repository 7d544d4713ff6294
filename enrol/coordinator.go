package enrol

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/pki"
)

// MembersFile is Members, of a coordinator that joined others.
const MembersFile = "members.json"

// Members are the members of the coordinators' store at the time of joining:
// what an empty store directory starts with.
type Members struct {
	Initial map[string]string `json:"initial"` // name to host:port
}

// Membership is how the store takes members in; *store.Store is one.
type Membership interface {
	AddMember(ctx context.Context, name, addr string) (map[string]string, error)
}

// JoinCoordinator makes room for another coordinator and hands it all that a
// coordinator holds: the authority's key too. The token must be one that was
// made for a coordinator; a node's is refused, and used up.
func (d *Desk) JoinCoordinator(ctx context.Context, req api.CoordinatorJoin) (api.CoordinatorJoined, error) {
	var none api.CoordinatorJoined
	tok, err := pki.ParseToken(req.Token)
	if err != nil {
		return none, err
	}
	if err := pki.CheckID(req.ID); err != nil {
		return none, err
	}
	if d.Members == nil {
		return none, &api.Error{Code: api.CodeUnavailable, Field: "peer-listen", Message: "this coordinator's store takes no other members",
			Remedy: "restart it with -peer-listen and -peer-advertise"}
	}
	if err := d.consume(ctx, tok, pki.RoleCoordinator); err != nil {
		return none, err
	}
	initial, err := d.Members.AddMember(ctx, req.ID, req.Peer)
	if err != nil {
		return none, err
	}
	key, err := d.Authority.KeyPEM()
	if err != nil {
		return none, err
	}
	return api.CoordinatorJoined{CA: d.Authority.CertificatePEM(), CAKey: key, Cluster: d.Cluster.ID,
		GossipKeys: d.Cluster.GossipKeys, Owners: d.Cluster.Owners, Seeds: d.Seeds(), Members: initial}, nil
}

// consume uses a token up and checks whom it was made for.
func (d *Desk) consume(ctx context.Context, tok pki.Token, role pki.Role) error {
	t, err := d.Tokens.ConsumeToken(ctx, pki.HashToken(tok))
	if err != nil {
		if api.CodeOf(err) == api.CodeInternal {
			return errors.Join(errors.New("use join token"), err)
		}
		return err
	}
	if t.Role != string(role) {
		return &api.Error{Code: api.CodeForbidden, Field: "token", Message: fmt.Sprintf("the token is for a %s, not for a %s", t.Role, role),
			Remedy: "nodes join with faasd-sec node token, coordinators with faasd-sec coordinator token"}
	}
	return nil
}

// JoinAsCoordinator makes dir the state of the coordinator id in the cluster
// whose coordinator listens at addr. peer is what other coordinators will reach
// its store at. On an error nothing is left that another attempt stumbles over.
func JoinAsCoordinator(ctx context.Context, addr, token, id, peer, dir string) error {
	tok, err := pki.ParseToken(token)
	if err != nil {
		return err
	}
	if err := pki.CheckID(id); err != nil {
		return err
	}
	body, err := json.Marshal(api.CoordinatorJoin{Token: token, ID: id, Peer: peer})
	if err != nil {
		return fmt.Errorf("encode join request: %w", err)
	}
	var reply api.CoordinatorJoined
	if err := post(ctx, pki.JoinClientConfig(tok), addr, api.GatewayPathJoinCoordinator, body, &reply); err != nil {
		return err
	}
	if err := tok.CheckCA(reply.CA); err != nil {
		return err
	}
	// What an attempt before this one left, which did not come to its end.
	ca := filepath.Join(dir, CADir)
	if err := os.RemoveAll(ca); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	if err := pki.SaveAuthority(ca, reply.CAKey, reply.CA); err != nil {
		return err
	}
	if err := Save(dir, MembersFile, Members{Initial: reply.Members}); err != nil {
		return err
	}
	if err := Save(dir, PeersFile, Peers{Gossip: reply.Seeds}); err != nil {
		return err
	}
	// Written last: it marks the directory as complete.
	return Save(dir, ClusterFile, Cluster{ID: reply.Cluster, GossipKeys: reply.GossipKeys, Owners: reply.Owners})
}
