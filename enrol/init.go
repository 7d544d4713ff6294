package enrol

import (
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/gossip"
	"github.com/faasd-sec/faasd-sec/pki"
)

// bootstrapTTL is how long the token that Init makes is good.
const bootstrapTTL = 24 * time.Hour

// Init makes a new cluster in a coordinator's state directory: authority,
// gossip key and a first join token, whose text it returns. owners are
// fingerprints, or "any". It refuses to make one where one is, or may have been.
func Init(dir string, owners []string, random io.Reader) (token string, err error) {
	var old Cluster
	if err := Load(dir, ClusterFile, "", &old); err == nil {
		return "", &api.Error{Code: api.CodeConflict, Field: "state", Message: dir + " holds cluster " + old.ID + " already",
			Remedy: "choose another directory, or keep using it"}
	} else if api.CodeOf(err) != api.CodeNotFound {
		return "", err
	}
	ca, err := pki.NewCluster(filepath.Join(dir, CADir))
	if api.CodeOf(err) == api.CodeConflict {
		at := filepath.Join(dir, CADir)
		return "", &api.Error{Code: api.CodeConflict, Field: "state", Err: err,
			Message: at + " holds an authority without a " + ClusterFile + " beside it: an init or a join was cut short, or the file was lost",
			Remedy:  "where a cluster ran on it, restore the file from a backup; where none did, remove " + at + " and try again"}
	} else if err != nil {
		return "", err
	}
	key, err := gossip.NewKey(random)
	if err != nil {
		return "", fmt.Errorf("gossip key: %w", err)
	}
	t, err := pki.NewToken(ca.Hash())
	if err != nil {
		return "", fmt.Errorf("join token: %w", err)
	}
	boot := Bootstrap{TokenHash: pki.HashToken(t), Uses: 64, ExpiresAt: time.Now().Add(bootstrapTTL).Unix()}
	if err := Save(dir, BootstrapFile, boot); err != nil {
		return "", err
	}
	// Written last: it marks the directory as complete.
	if err := Save(dir, ClusterFile, Cluster{ID: ca.ClusterID(), GossipKeys: []string{key.Hex()}, Owners: owners}); err != nil {
		return "", err
	}
	return t.Text(), nil
}
