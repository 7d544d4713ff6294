package keybroker

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/attest"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// releaseWindow is the life of a release's grant: it is opened at once.
const releaseWindow = 5 * time.Minute

// Release decides on a sandbox's request that came from node (as its certificate
// names it) and seals the function's keys to the sandbox. Every refusal is an
// *api.Error: CodeKeyRefused, CodeNotFound, CodeStaleRevision or CodeBusy.
func (b *Broker) Release(ctx context.Context, node string, req api.ReleaseRequest) (api.ReleaseReply, error) {
	var d decision
	reply, err := b.release(ctx, node, req, &d)
	b.decided("release", string(d.function), err, "node", node, "tier", d.claims.Tier(), "agent", d.claims.AgentDigest.String())
	return reply, err
}

// decision is what was learnt on the way, for the log.
type decision struct {
	function  api.FunctionName
	revision  sealed.Digest
	statement attest.Statement
	claims    attest.Claims
}

func (b *Broker) release(ctx context.Context, node string, req api.ReleaseRequest, d *decision) (reply api.ReleaseReply, err error) {
	if !b.nodes.allow(node) {
		return reply, &api.Error{Code: api.CodeBusy, Field: "node", Message: "this node asks for keys too often", Remedy: "retry later"}
	}
	if len(req.Secrets) > 0 {
		return b.releaseSecrets(ctx, node, req, d)
	}
	name, err := api.ParseFunctionName(req.Function)
	if err != nil || string(name) != req.Function {
		return reply, api.Invalid("function", "write NAME.NAMESPACE", "it is not a full function name")
	}
	d.function = name
	if d.revision, err = sealed.ParseDigest(req.Revision); err != nil {
		return reply, api.Invalid("revision", "write 64 hex digits", err.Error())
	}
	if d.statement, err = attest.ParseStatement(req.Statement, b.cfg.Now()); err != nil {
		return reply, err
	}
	b.vault.mu.RLock()
	current, err := b.vault.recall(name)
	b.vault.mu.RUnlock()
	if err != nil {
		return reply, err
	}
	defer current.wipe()
	if current == nil || current.removed() {
		return reply, notFound(name)
	}
	keys, desc, err := b.chosen(name, current, d.revision)
	if err != nil {
		return reply, err
	}
	if d.claims, err = b.cfg.Verifiers.Verify(ctx, req.Statement, req.Evidence, desc.Config.Policy.Attestation); err != nil {
		return reply, err
	}
	if err := b.checkClaims(d.claims, node); err != nil {
		return reply, err
	}
	if err := b.once.claim(d.statement, name, d.revision); err != nil {
		return reply, err
	}
	sealedKeys, err := b.seal(d, current, keys)
	if err != nil {
		return reply, err
	}
	return api.ReleaseReply{Sealed: sealedKeys, Type: d.claims.Type}, nil
}

// Attest verifies the evidence about a sandbox that waits for a function, as a
// release would, so that the release finds the arithmetic done. It decides
// nothing and binds nothing: a release goes through every check itself, and does
// as well without. Errors are those of Release.
func (b *Broker) Attest(ctx context.Context, node string, req api.AttestRequest) error {
	err := b.attest(ctx, node, req)
	b.counted("attest", err)
	if err != nil {
		b.cfg.Log.Warn("key broker would refuse", "node", node, "error", err)
	}
	return err
}

func (b *Broker) attest(ctx context.Context, node string, req api.AttestRequest) error {
	// A bucket of its own: who hands in much takes nothing from its releases.
	if !b.attests.allow(node) {
		return &api.Error{Code: api.CodeBusy, Field: "node", Message: "this node hands in evidence too often", Remedy: "retry later"}
	}
	if _, err := attest.ParseStatement(req.Statement, b.cfg.Now()); err != nil {
		return err
	}
	c, err := b.cfg.Verifiers.Verify(ctx, req.Statement, req.Evidence, b.cfg.Verifiers.Types())
	if err != nil {
		return err
	}
	return b.checkClaims(c, node)
}

// checkClaims ties the evidence to the connection it came by, and to the agents
// this broker was told to accept.
func (b *Broker) checkClaims(c attest.Claims, node string) error {
	if c.NodeID != node {
		return &api.Error{Code: api.CodeKeyRefused, Field: "evidence", Message: "the evidence is another node's than the connection"}
	}
	if len(b.cfg.AllowedAgents) > 0 && !slices.Contains(b.cfg.AllowedAgents, c.AgentDigest) {
		return &api.Error{Code: api.CodeKeyRefused, Field: "evidence",
			Message: "the agent's binary " + c.AgentDigest.String() + " is not one that this broker allows",
			Remedy:  "install the released agent, or allow its digest with the key broker's -allow-agent"}
	}
	return nil
}

// seal seals the function's keys to the sandbox.
func (b *Broker) seal(d *decision, r *record, h *held) ([]byte, error) {
	owner, err := r.owner()
	if err != nil {
		return nil, fmt.Errorf("keybroker: the owner on record: %w", err)
	}
	body, err := unseal.EncodeRelease(&unseal.Release{Owner: owner, Signing: h.Signing, Decryption: h.Decryption})
	if err != nil {
		return nil, fmt.Errorf("keybroker: encode a release: %w", err)
	}
	defer clear(body)
	return b.sealRelease(d, body)
}
