package agent

import (
	"bytes"
	"fmt"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// rehearse goes through a start and an invocation with keys that it throws away,
// so that the real ones find code, tables, pooled buffers and a stack in place.
// Nothing of it is known outside. What it leaves is garbage until the agent rests
// again: collecting it at once would cost more memory than it is. Between two
// steps it looks whether it is still wanted.
func (a *Agent) rehearse(wanted func() bool) error {
	r := &rehearsal{cfg: a.cfg}
	for _, step := range []func() error{r.cast, r.bind, r.keys, r.invocation} {
		if !wanted() {
			return nil
		}
		if err := step(); err != nil {
			return fmt.Errorf("rehearsal: %w", err)
		}
	}
	return nil
}

// rehearsal plays all parts.
type rehearsal struct {
	cfg        Config
	owner, fn  *unseal.Identity // the owner is broker and caller, too
	ephemeral  *unseal.PrivateKey
	descriptor []byte
	f          *function
}

// cast draws the keys and makes a function's descriptor.
func (r *rehearsal) cast() error {
	var err error
	for _, id := range []**unseal.Identity{&r.owner, &r.fn} {
		if *id, err = unseal.NewIdentity(r.cfg.Random); err != nil {
			return err
		}
	}
	if r.ephemeral, err = unseal.NewKey(r.cfg.Random); err != nil {
		return err
	}
	now := uint64(r.cfg.Now().Unix())
	d := sealed.Descriptor{Name: "rehearsal", Namespace: "none", Sequence: 1, Issued: now,
		Config: sealed.Config{Image: "sha256:" + fmt.Sprintf("%064d", 0), Mode: sealed.ModeHTTP, Upstream: upstreamUnix, Argv: []string{"/none"},
			Policy:    sealed.Policy{AnyCaller: true, Attestation: []string{"none"}, Broker: r.owner.SigningKey()},
			Resources: sealed.Resources{CPUMillis: 1, MemoryBytes: 1 << 20, PIDs: 1}},
		SigningKey: r.fn.SigningKey(), Suites: []uint16{sealed.SuiteSM}, LogRecipient: r.owner.DecryptionKey(),
		Decryption: []sealed.DecryptionKey{{Key: r.fn.DecryptionKey(), NotBefore: now - 60, NotAfter: now + 3600}}}
	r.descriptor, err = d.Sign(r.cfg.Random, r.owner.Signer())
	return err
}

// bind takes the frames of a start.
func (r *rehearsal) bind() error {
	var pipe bytes.Buffer
	for _, c := range []api.Control{
		{Bind: &api.Bind{Descriptor: r.descriptor, Image: api.ImageConfig{Entrypoint: []string{"/none"}, Env: []string{"PATH=/"}}}},
		{Waiting: &api.Waiting{Grant: []byte{0}}}, {Mounted: &api.Mounted{UID: 1, GID: 1}}, {Keys: &api.ReleaseReply{Sealed: []byte{0}}},
		{Ready: &api.Empty{}},
	} {
		if err := api.WriteControl(&pipe, c); err != nil {
			return err
		}
	}
	for pipe.Len() > 0 {
		c, err := api.ReadControl(&pipe)
		if err != nil {
			return err
		}
		if c.Bind == nil {
			continue
		}
		n, err := newBinding(c.Bind)
		if err != nil {
			return err
		}
		r.f = newFunction(&r.cfg, n, nil, nil, nil)
	}
	return nil
}

// keys takes a release as unlock does.
func (r *rehearsal) keys() error {
	scalars := [][]byte{r.fn.Signer().Scalar(), r.fn.Decrypter().Scalar()}
	defer clear(scalars[0])
	defer clear(scalars[1])
	body, err := unseal.EncodeRelease(&unseal.Release{Owner: r.owner.SigningKey(), Signing: scalars[0], Decryption: scalars[1:]})
	if err != nil {
		return err
	}
	defer clear(body)
	g, err := r.grant(sealed.RoleRelease, r.ephemeral.PublicKey(), sealed.PublicKey{})
	if err != nil {
		return err
	}
	defer g.Release()
	release, err := g.Append(nil, sealed.MessageParams{Issued: r.cfg.Now()}, body)
	if err != nil {
		return err
	}
	if err := r.f.b.takeKeys(&r.cfg, r.ephemeral, release); err != nil {
		return err
	}
	grants, err := r.f.b.grantCache(&r.cfg)
	if err != nil {
		return err
	}
	return r.f.unlock(grants)
}

// grant is one of the owner's.
func (r *rehearsal) grant(role sealed.Role, to, reply sealed.PublicKey) (*sealed.Grant, error) {
	now := r.cfg.Now()
	return sealed.NewGrant(sealed.GrantParams{Role: role, Recipient: to, Sender: r.owner.Signer(), ReplyKey: reply,
		Context: r.f.b.revision, Name: r.f.b.name, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Minute), Random: r.cfg.Random})
}

// invocation opens a request and seals the reply to it.
func (r *rehearsal) invocation() error {
	f := r.f
	defer f.grants.Drop()
	g, err := r.grant(sealed.RoleRequest, r.fn.DecryptionKey(), r.owner.DecryptionKey())
	if err != nil {
		return err
	}
	defer g.Release()
	params := sealed.MessageParams{Issued: r.cfg.Now()}
	request, _, _, err := g.AppendRequest(nil, params, sealed.RequestHead{Method: "POST", Path: "/"}, []byte("rehearsal"))
	if err != nil {
		return err
	}
	peek, err := sealed.Peek(request)
	if err != nil {
		return err
	}
	a, err := f.opener.Prepare(request[:peek.GrantLen()], f.expect())
	if err != nil {
		return err
	}
	defer a.Discard()
	f.prime(a.Header().ReplyKey)
	msg, err := f.opener.Open(bytes.NewReader(request), f.expect())
	if err != nil {
		return err
	}
	defer msg.Close()
	if _, err := msg.Body(nil); err != nil {
		return err
	}
	if _, err := msg.RequestHead(); err != nil {
		return err
	}
	back, err := f.grants.Get(f.replyGrant(msg.Grant.ReplyKey))
	if err != nil {
		return err
	}
	defer back.Release()
	params.ID, params.Link = msg.Header.ID, msg.Link()
	_, err = back.AppendReply(nil, params, sealed.ReplyHead{Status: 200}, []byte("rehearsal"))
	return err
}
