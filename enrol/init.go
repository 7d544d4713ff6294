package enrol

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/gossip"
	"github.com/faasd-sec/faasd-sec/pki"
)

// bootstrapTTL is how long the token that Init makes is good.
const bootstrapTTL = 24 * time.Hour

// Init makes a new cluster in a coordinator's state directory: authority,
// gossip key and a first join token, whose text it returns. owners are
// fingerprints, or "any". It refuses to make one where one is.
func Init(dir string, owners []string, random io.Reader) (token string, err error) {
	var old Cluster
	if err := Load(dir, ClusterFile, "", &old); err == nil {
		return "", &api.Error{Code: api.CodeConflict, Field: "state", Message: dir + " holds cluster " + old.ID + " already",
			Remedy: "choose another directory, or keep using it"}
	}
	ca, err := pki.NewCluster(filepath.Join(dir, CADir))
	if err != nil {
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

// RequestToken asks the coordinator that runs on dir for a join token.
func RequestToken(ctx context.Context, dir string, uses int, ttl time.Duration) (string, error) {
	q := url.Values{"uses": {strconv.Itoa(uses)}, "ttl": {ttl.String()}}
	b, err := askAdmin(ctx, dir, http.MethodPost, AdminPathTokens+"?"+q.Encode())
	if err != nil {
		return "", fmt.Errorf("ask for a join token: %w", err)
	}
	var out struct{ Token string }
	if err := json.Unmarshal(b, &out); err != nil {
		return "", fmt.Errorf("ask for a join token: %w", err)
	}
	return out.Token, nil
}

// RequestDrain asks the coordinator that runs on dir to drain a node, or to have
// it take work again.
func RequestDrain(ctx context.Context, dir, node string, on bool) error {
	method := http.MethodPut
	if !on {
		method = http.MethodDelete
	}
	_, err := askAdmin(ctx, dir, method, AdminPathDrain+url.PathEscape(node))
	return err
}

// askAdmin makes one request to the operator's socket of the coordinator that runs
// on dir.
func askAdmin(ctx context.Context, dir, method, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(dir, AdminSocket))
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://admin"+path, nil)
	if err != nil {
		return nil, fmt.Errorf("ask the coordinator: %w", err)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return nil, &api.Error{Code: api.CodeUnavailable, Field: "state", Err: err, Message: "no coordinator runs on " + dir,
			Remedy: "start it, or name its state directory with --state"}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return nil, fmt.Errorf("ask the coordinator: %w", err)
	}
	if resp.StatusCode/100 != 2 {
		return nil, api.ParseProblem(resp.StatusCode, b)
	}
	return b, nil
}
