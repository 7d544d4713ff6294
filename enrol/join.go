package enrol

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/pki"
)

// Join makes this machine the node id of the cluster whose coordinator listens
// at addr, and writes what it was told below dir. On an error nothing is left. A
// directory of another node, or of another cluster's, is a conflict.
func Join(ctx context.Context, addr, token, id, dir string) (Node, error) {
	var none Node
	tok, err := pki.ParseToken(token)
	if err != nil {
		return none, err
	}
	if err := pki.CheckID(id); err != nil {
		return none, err
	}
	var was Node
	switch err := Load(dir, NodeFile, "name another directory", &was); {
	case err != nil && api.CodeOf(err) != api.CodeNotFound:
		return none, err
	case err == nil && was.ID != id:
		return none, inhabited(dir, "the node "+was.ID)
	}
	keyPEM, csr, err := pki.NewRequest(id)
	if err != nil {
		return none, err
	}
	body, err := json.Marshal(api.JoinRequest{Token: token, CSR: csr})
	if err != nil {
		return none, fmt.Errorf("encode join request: %w", err)
	}
	var reply api.JoinReply
	if err := post(ctx, pki.JoinClientConfig(tok), addr, api.GatewayPathJoin, body, &reply); err != nil {
		return none, err
	}
	if err := tok.CheckCA(reply.CA); err != nil {
		return none, err
	}
	n := Node{ID: id, Seeds: reply.Seeds, Coordinator: reply.Coordinator, Broker: reply.Broker, Registry: reply.Registry}
	for _, k := range reply.GossipKeys {
		n.GossipKeys = append(n.GossipKeys, hex.EncodeToString(k))
	}
	ident, err := pki.NewIdentity(keyPEM, reply.Certificate, reply.CA)
	if err != nil {
		return none, err
	}
	n.Cluster = ident.Peer().Cluster
	if was.Cluster != "" && was.Cluster != n.Cluster {
		return none, inhabited(dir, "a node of the cluster "+was.Cluster)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return none, fmt.Errorf("state directory: %w", err)
	}
	if err := pki.SaveIdentity(filepath.Join(dir, IdentityFile), keyPEM, reply.Certificate, reply.CA); err != nil {
		return none, err
	}
	// Written last: it marks the directory as complete.
	if err := Save(dir, NodeFile, n); err != nil {
		return none, errors.Join(err, os.Remove(filepath.Join(dir, IdentityFile)))
	}
	return n, nil
}

// inhabited says that a directory is somebody else's, whose identity would be lost.
func inhabited(dir, whose string) error {
	return &api.Error{Code: api.CodeConflict, Field: "state", Message: dir + " is the state of " + whose,
		Remedy: "name another directory, or remove this one if that node is no more"}
}

// Renewer asks a coordinator for a new certificate over the old one's mutual
// TLS, the first of addrs that can be reached; it is the SignFunc of
// pki.Identity.KeepRenewed.
func Renewer(i *pki.Identity, addrs func() []string) pki.SignFunc {
	return func(ctx context.Context, csr []byte) ([]byte, error) {
		body, err := json.Marshal(api.JoinRequest{CSR: csr})
		if err != nil {
			return nil, fmt.Errorf("encode renewal: %w", err)
		}
		var errs error
		for _, addr := range addrs() {
			var reply api.JoinReply
			err = post(ctx, pki.ClientConfig(i, pki.RoleCoordinator, pki.AnyID), addr, api.GatewayPathRenew, body, &reply)
			if api.CodeOf(err) != api.CodeUnavailable {
				return reply.Certificate, err
			}
			errs = errors.Join(errs, err)
		}
		if errs == nil {
			errs = &api.Error{Code: api.CodeUnavailable, Field: "coordinator", Message: "none is known to ask", Remedy: "join the cluster again"}
		}
		return nil, errs
	}
}

// post sends one JSON request and reads one JSON reply.
func post(ctx context.Context, config *tls.Config, addr, path string, body []byte, out any) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	tr := &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+addr+path, bytes.NewReader(body))
	if err != nil {
		return api.Invalid("coordinator", "give it as host:port", err.Error())
	}
	req.Header.Set("Content-Type", api.ContentTypeJSON)
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return &api.Error{Code: api.CodeUnavailable, Field: "coordinator", Err: err, Message: "cannot be reached at " + addr,
			Remedy: "check the address, and that the token is of this cluster"}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return api.Wrap(api.CodeUnavailable, err, "the coordinator broke off")
	}
	if resp.StatusCode != http.StatusOK {
		return api.ParseProblem(resp.StatusCode, b)
	}
	if err := json.Unmarshal(b, out); err != nil {
		return api.Wrap(api.CodeUnavailable, err, "the coordinator's reply is not understood")
	}
	return nil
}
