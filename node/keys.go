package node

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

const (
	// proofAge is the age from which a statement and its evidence are not used
	// any more, though brokers take them for 5 minutes. Those of a box that waits
	// are made anew at proofRenew, so that no start has to wait for it.
	proofAge   = 2 * time.Minute
	proofRenew = 100 * time.Second
	// proofWait is how long the agent may take to state its key again.
	proofWait = 5 * time.Second

	releaseTry   = 10 * time.Second      // one request to the broker
	releasePause = 50 * time.Millisecond // before the second one; doubled each time
	releaseMax   = 2 * time.Second
)

// proof is what a box says of itself and the evidence about it.
type proof struct {
	statement []byte
	evidence  []api.Evidence
	at        time.Time // when the statement came in
}

// prove collects evidence about a statement of b.
func (n *Node) prove(ctx context.Context, b *box, statement []byte) error {
	if len(statement) == 0 {
		return api.Errorf(api.CodeStartFailed, "the agent made no statement")
	}
	b.mu.Lock()
	known := b.proof != nil && slices.Equal(b.proof.statement, statement)
	b.mu.Unlock()
	if known {
		return nil
	}
	p := &proof{statement: statement, at: time.Now()}
	for _, c := range n.dep.Collectors {
		ev, err := c.Collect(ctx, statement)
		if err != nil {
			n.log.Warn("evidence", "type", c.Type(), "sandbox", b.id, "err", err)
			continue
		}
		p.evidence = append(p.evidence, ev)
	}
	if len(p.evidence) == 0 && len(n.dep.Collectors) > 0 {
		return api.Errorf(api.CodeUnavailable, "no evidence about the sandbox could be made")
	}
	// Evidence names the digest of the binary that is on disk now.
	if b.agent != (agentFile{}) && !n.agent.measured(b.agent) {
		return api.Errorf(api.CodeStartFailed, "the agent's binary was replaced since the sandbox was made")
	}
	b.mu.Lock()
	b.proof = p
	close(b.renewed)
	b.renewed = make(chan struct{})
	b.mu.Unlock()
	if b.owner.Load() == nil { // or the release comes at once
		n.spawn(func() { n.show(b, p) })
	}
	return nil
}

// show has the broker verify the proof of a box that waits, so that the release
// finds it verified. Where that fails the release does without.
func (n *Node) show(b *box, p *proof) {
	ctx, cancel := context.WithTimeout(n.life, releaseTry)
	defer cancel()
	err := n.dep.Broker.Attest(ctx, api.AttestRequest{Statement: p.statement, Evidence: p.evidence})
	switch {
	case err == nil || n.life.Err() != nil:
	case api.CodeOf(err) == api.CodeKeyRefused: // and so it will a start's
		n.log.Warn("the key broker refuses the evidence of a waiting sandbox", "sandbox", b.id, "err", err)
	default:
		n.log.Debug("evidence was not verified ahead", "sandbox", b.id, "err", err)
	}
}

// proven is a proof of b that is younger than age, renewed if it must be.
func (n *Node) proven(ctx context.Context, b *box, age time.Duration) (*proof, error) {
	ctx, cancel := context.WithTimeout(ctx, proofWait)
	defer cancel()
	for asked := false; ; asked = true {
		b.mu.Lock()
		p, renewed := b.proof, b.renewed
		if p != nil && time.Since(p.at) < age {
			b.mu.Unlock()
			return p, nil
		}
		if !asked {
			b.write(&api.Control{Attest: &api.Empty{}})
		}
		b.mu.Unlock()
		select {
		case <-renewed:
		case <-ctx.Done():
			return nil, api.Errorf(api.CodeStartFailed, "the agent did not state its key anew within %s", proofWait)
		}
	}
}

// unlock gets the function's keys for b and passes them on. The broker answers
// in one round trip; where it is busy or away, it is asked again until ctx ends.
func (n *Node) unlock(ctx context.Context, s *sandbox, b *box) {
	if s.rev.plain != nil && len(s.rev.plain.Function.Secrets) == 0 {
		return // it has none
	}
	b.mu.Lock()
	busy := b.unlocking
	b.unlocking = true
	b.mu.Unlock()
	if busy {
		return
	}
	began := time.Now()
	reply, err := n.release(ctx, s, b)
	n.passed(s, "keys", began)
	b.mu.Lock()
	b.unlocking = false
	b.mu.Unlock()
	if err != nil {
		if code := api.CodeOf(err); code == api.CodeInternal {
			err = api.Wrap(api.CodeUnavailable, err, "the key broker cannot be reached")
		}
		b.settle(err)
		p := api.ProblemOf(err, "")
		b.tell(api.Control{Refused: &p})
		return
	}
	n.mu.Lock()
	s.evidence = reply.Type
	n.mu.Unlock()
	b.say(&api.Control{Keys: &reply})
	n.met.keysSeconds.Observe(time.Since(began).Seconds())
}

func (n *Node) release(ctx context.Context, s *sandbox, b *box) (api.ReleaseReply, error) {
	for pause := releasePause; ; pause = min(2*pause, releaseMax) {
		p, err := n.proven(ctx, b, proofAge)
		if err != nil {
			return api.ReleaseReply{}, err
		}
		try, cancel := context.WithTimeout(ctx, releaseTry)
		reply, err := n.dep.Broker.Release(try, api.ReleaseRequest{
			Function: string(s.rev.name), Revision: s.rev.digest, Statement: p.statement, Evidence: p.evidence,
			Secrets: s.rev.secrets(),
		})
		cancel()
		if err == nil {
			return reply, nil
		}
		code := api.CodeOf(err)
		if code != api.CodeBusy && code != api.CodeUnavailable && !errors.Is(err, context.DeadlineExceeded) {
			return reply, err
		}
		// Between half and all of it, so that the sandboxes of a burst do not
		// come back together.
		again := time.NewTimer(pause/2 + rand.N(pause/2))
		select {
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			return reply, err
		}
	}
}
