package attest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/emmansun/gmsm/sm3"
	"github.com/fxamacker/cbor/v2"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// TypeNodeKey is the evidence type that is signed with a machine's enrolled key.
const TypeNodeKey = "node-key"

// TierNodeKey is how it is shown: it says which machine asks, not what runs there.
const TierNodeKey = "node-key (dev-untrusted)"

const (
	nodeKeyLabel   = "faasd-sec/v1 node-key evidence"
	nodeKeyVersion = 1
	maxNodeKeyData = 16 << 10 // bytes of Evidence.Data
	maxChain       = 4        // certificates
)

// nodeKeyData is Evidence.Data of this type, CBOR.
type nodeKeyData struct {
	Version     uint     `cbor:"1,keyasint"`
	Chain       [][]byte `cbor:"2,keyasint"` // DER, the node's own certificate first
	AgentDigest []byte   `cbor:"3,keyasint"` // SM3 of the agent's binary
	NodeID      string   `cbor:"4,keyasint"`
	IssuedAtMs  int64    `cbor:"5,keyasint"` // unix milliseconds
	Signature   []byte   `cbor:"6,keyasint"` // ECDSA P-256 with SHA-256, DER
}

// nodeKeyDigest is SHA-256 over what is signed:
//
//	"faasd-sec/v1 node-key evidence" || 00 || SM3(statement) || agent digest || u8 length || node id || u64 unix ms
func nodeKeyDigest(statement, agentDigest []byte, nodeID string, issuedMs int64) []byte {
	h := sha256.New()
	io.WriteString(h, nodeKeyLabel+"\x00")
	st := sm3.Sum(statement)
	h.Write(st[:])
	h.Write(agentDigest)
	h.Write([]byte{byte(len(nodeID))})
	io.WriteString(h, nodeID)
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(issuedMs)))
	return h.Sum(nil)
}

// NodeKeyCollector signs statements with the node's mutual-TLS identity.
type NodeKeyCollector struct {
	NodeID      string
	AgentDigest sealed.Digest // from MeasureFile, of the binary that sandboxes run
	// Credentials returns the key and certificate chain (DER, leaf first) in
	// use now; certificates are renewed while a node runs.
	Credentials func() (crypto.Signer, [][]byte, error)
	Random      io.Reader        // crypto/rand.Reader outside tests
	Now         func() time.Time // time.Now outside tests
}

var _ Collector = (*NodeKeyCollector)(nil)

// Type is TypeNodeKey.
func (c *NodeKeyCollector) Type() string { return TypeNodeKey }

// Collect signs statement.
func (c *NodeKeyCollector) Collect(_ context.Context, statement []byte) (api.Evidence, error) {
	if c.NodeID == "" || len(c.NodeID) > 255 {
		return api.Evidence{}, fmt.Errorf("attest: node id has %d bytes, want 1 to 255", len(c.NodeID))
	}
	signer, chain, err := c.Credentials()
	if err != nil {
		return api.Evidence{}, fmt.Errorf("attest: node key: %w", err)
	}
	d := nodeKeyData{Version: nodeKeyVersion, Chain: chain, AgentDigest: c.AgentDigest[:],
		NodeID: c.NodeID, IssuedAtMs: c.Now().UnixMilli()}
	d.Signature, err = signer.Sign(c.Random, nodeKeyDigest(statement, d.AgentDigest, d.NodeID, d.IssuedAtMs), crypto.SHA256)
	if err != nil {
		return api.Evidence{}, fmt.Errorf("attest: sign with the node key: %w", err)
	}
	b, err := cbor.Marshal(d)
	if err != nil {
		return api.Evidence{}, fmt.Errorf("attest: encode node-key evidence: %w", err)
	}
	return api.Evidence{Type: TypeNodeKey, Data: b}, nil
}

// MeasureFile returns SM3 over a file, for NodeKeyCollector.AgentDigest.
func MeasureFile(path string) (sealed.Digest, error) {
	f, err := os.Open(path)
	if err != nil {
		return sealed.Digest{}, fmt.Errorf("attest: measure: %w", err)
	}
	defer f.Close()
	h := sm3.New()
	if _, err := io.Copy(h, f); err != nil {
		return sealed.Digest{}, fmt.Errorf("attest: measure %s: %w", path, err)
	}
	return sealed.Digest(h.Sum(nil)), nil
}

// NodeKeyVerifier verifies node-key evidence.
type NodeKeyVerifier struct {
	// VerifyChain checks a certificate chain (DER, leaf first) against the
	// cluster's authority at now, requires the role of a node, and returns the
	// node's id and public key.
	VerifyChain func(chain [][]byte, now time.Time) (nodeID string, key crypto.PublicKey, err error)
	Now         func() time.Time // time.Now outside tests

	good verified // signatures that were verified lately
}

var _ Verifier = (*NodeKeyVerifier)(nil)

// Type is TypeNodeKey.
func (v *NodeKeyVerifier) Type() string { return TypeNodeKey }

// Verify checks form, freshness, certificate chain, node id and signature. All of
// it is looked at each time; only the arithmetic of a signature that verified in
// the last MaxAge is not done again.
func (v *NodeKeyVerifier) Verify(_ context.Context, statement []byte, ev api.Evidence) (Claims, error) {
	if ev.Type != TypeNodeKey {
		return Claims{}, fmt.Errorf("evidence of type %q given to the verifier of %s", ev.Type, TypeNodeKey)
	}
	d, err := parseNodeKey(ev.Data)
	if err != nil {
		return Claims{}, err
	}
	now, made := v.Now(), time.UnixMilli(d.IssuedAtMs)
	if err := fresh(made, now); err != nil {
		return Claims{}, err
	}
	id, key, err := v.VerifyChain(d.Chain, now)
	if err != nil {
		return Claims{}, fmt.Errorf("certificate chain: %w", err)
	}
	if id != d.NodeID {
		return Claims{}, errors.New("the certificate is another node's")
	}
	pub, ok := key.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return Claims{}, errors.New("the node's key is not ECDSA P-256")
	}
	if !v.good.check(id, pub, nodeKeyDigest(statement, d.AgentDigest, d.NodeID, d.IssuedAtMs), d.Signature, now) {
		return Claims{}, errors.New("the signature does not verify for this statement")
	}
	return Claims{Type: TypeNodeKey, NodeID: id, AgentDigest: sealed.Digest(d.AgentDigest),
		IssuedAt: made, DevUntrusted: true}, nil
}

func parseNodeKey(b []byte) (nodeKeyData, error) {
	var d nodeKeyData
	if len(b) > maxNodeKeyData {
		return d, fmt.Errorf("%d bytes of evidence, at most %d are read", len(b), maxNodeKeyData)
	}
	dec, err := strictCBOR()
	if err != nil {
		return d, fmt.Errorf("make the CBOR decoder: %w", err)
	}
	if err := dec.Unmarshal(b, &d); err != nil {
		return d, errors.New("it is not the CBOR of node-key evidence")
	}
	switch {
	case d.Version != nodeKeyVersion:
		return d, fmt.Errorf("version %d, only %d is known", d.Version, nodeKeyVersion)
	case len(d.Chain) == 0 || len(d.Chain) > maxChain:
		return d, fmt.Errorf("a chain of %d certificates, want 1 to %d", len(d.Chain), maxChain)
	case len(d.AgentDigest) != len(sealed.Digest{}):
		return d, fmt.Errorf("agent digest of %d bytes, want 32", len(d.AgentDigest))
	case d.NodeID == "" || len(d.NodeID) > 255:
		return d, fmt.Errorf("node id of %d bytes, want 1 to 255", len(d.NodeID))
	}
	return d, nil
}
