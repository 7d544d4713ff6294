package keybroker

import (
	"bytes"
	"fmt"
	"io"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/reqauth"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// maxDeposit bounds the plaintext of a deposit in bytes.
const maxDeposit = 512 << 10

// Deposited says what a deposit made current.
type Deposited struct {
	Function api.FunctionName `json:"function"`
	Revision string           `json:"revision"` // hex
	Sequence uint64           `json:"sequence"`
	Owner    string           `json:"owner"` // fingerprint, hex
}

// Deposit opens a sealed deposit (role 5), checks it and makes it the current
// one of its function. When it returns nil the deposit is on disk. Repeating
// what is current already succeeds, so that a lost answer can be retried.
func (b *Broker) Deposit(r io.Reader) (Deposited, error) {
	d, err := b.deposit(r)
	b.decided("deposit", string(d.Function), err, "revision", d.Revision, "sequence", d.Sequence, "owner", d.Owner)
	return d, err
}

func (b *Broker) deposit(r io.Reader) (Deposited, error) {
	m, err := b.opener.Open(r, unseal.Expect{Role: sealed.RoleDeposit, AnyName: true, Senders: mayDeposit(b.cfg.AllowedOwners)})
	if err != nil {
		return Deposited{}, sealedError(err)
	}
	defer m.Close()
	body, err := m.ReadAll(maxDeposit)
	if err != nil {
		return Deposited{}, sealedError(err)
	}
	defer clear(body)
	dep, err := unseal.DecodeDeposit(body)
	if err != nil {
		return Deposited{}, api.Wrap(api.CodeInvalid, err, "the deposit's body does not decode")
	}
	next := &record{Version: recordVersion, Owner: bytes.Clone(m.Grant.Sender[:]), Descriptor: dep.Descriptor,
		Signing: dep.Signing, Decryption: dep.Decryption}
	defer dep.Wipe()
	latest := next.latest()
	desc, rev, err := b.checkDeposit(next.Owner, latest, m.Grant.Name)
	if err != nil {
		return Deposited{}, err
	}
	next.Sequence = latest.Sequence
	name := api.FunctionName(desc.FullName())
	if dep.Traffic != nil {
		if err := b.checkTraffic(next, rev, dep, m.Grant.Name); err != nil {
			return Deposited{Function: name}, err
		}
	}
	if err := b.replace(name, next); err != nil {
		return Deposited{Function: name}, err
	}
	b.known.keep(name, next.Owner, latest, desc, rev) // the first release may be soon
	if dep.Traffic != nil {
		b.cfg.Log.Info("key broker goes by a traffic statement", "function", name, "sequence", next.Stated, "older", len(next.Beside))
	}
	return Deposited{Function: name, Revision: rev.String(), Sequence: next.Sequence,
		Owner: m.Grant.Sender.Fingerprint().String()}, nil
}

// checkDeposit holds a deposit's parts against each other: the sender signed the
// descriptor, the descriptor is of the function that the envelope names, it
// appoints this broker, and the private keys are those it lists. It sets h's
// sequence.
func (b *Broker) checkDeposit(owner []byte, h *held, envelopeName string) (*sealed.Descriptor, sealed.Digest, error) {
	desc, err := h.descriptor(owner)
	if err != nil {
		return nil, sealed.Digest{}, &api.Error{Code: api.CodeForbidden, Field: "descriptor", Err: err,
			Message: "it is not a descriptor signed by the depositor's own key", Remedy: "sign and deposit with one identity"}
	}
	name, err := api.ParseFunctionName(desc.FullName())
	if err != nil {
		return nil, sealed.Digest{}, err
	}
	if string(name) != envelopeName {
		return nil, sealed.Digest{}, api.Invalid("descriptor", "seal the deposit for the function that it holds keys of",
			"the envelope names another function")
	}
	if desc.Config.Policy.Broker != b.cfg.Identity.signing {
		return nil, sealed.Digest{}, &api.Error{Code: api.CodeForbidden, Field: "policy.broker",
			Message: "the descriptor appoints another key broker", Remedy: "trust this cluster's broker (faasd-sec key trust broker) and deploy again"}
	}
	if err := unseal.MatchDescriptor(desc, h.Signing, h.Decryption); err != nil {
		return nil, sealed.Digest{}, api.Invalid("keys", "deposit the private keys of those that the descriptor lists", err.Error())
	}
	rev, err := desc.Revision()
	if err != nil {
		return nil, sealed.Digest{}, fmt.Errorf("keybroker: revision: %w", err)
	}
	h.Sequence = desc.Sequence
	return desc, rev, nil
}

// replace makes next the current record of name, if it belongs to the name's
// owner and is newer than what is there.
func (b *Broker) replace(name api.FunctionName, next *record) error {
	b.vault.mu.Lock()
	defer b.vault.mu.Unlock()
	current, err := b.vault.read(name)
	if err != nil {
		return err
	}
	defer current.wipe()
	if current != nil {
		switch sameOwner := bytes.Equal(current.Owner, next.Owner); {
		case !sameOwner && !current.removed():
			return &api.Error{Code: api.CodeForbidden, Field: "function",
				Message: "the name belongs to another owner", Remedy: "choose another name or namespace"}
		case !sameOwner: // its owner removed it: the name is free
		default:
			if same, err := next.follow(current); same || err != nil {
				return err
			}
		}
	}
	return b.write(name, next)
}

// follow refuses what is older than current, of the same owner. Descriptors and
// traffic statements are numbered together: what has the highest number was said
// last. same says that r is what is there already.
func (r *record) follow(current *record) (same bool, err error) {
	old := func(field string, n, than uint64) error {
		return &api.Error{Code: api.CodeConflict, Field: field,
			Message: fmt.Sprintf("%d is not newer than %d, which is deposited", n, than),
			Remedy:  "deploy again with the current state of the function"}
	}
	again := r.Sequence == current.Sequence && bytes.Equal(r.Descriptor, current.Descriptor)
	switch said := max(current.Sequence, current.Stated); {
	case again && (r.Traffic == nil || bytes.Equal(r.Traffic, current.Traffic)):
		return true, nil
	case !again && r.Sequence <= said:
		return false, old("sequence", r.Sequence, said)
	case r.Traffic != nil && r.Stated <= said:
		return false, old("traffic", r.Stated, said)
	}
	r.Stated = max(r.Stated, current.Stated)
	return false, nil
}

// Remove destroys the keys of a function. The request must be signed by the
// name's owner and address this path; see package reqauth.
func (b *Broker) Remove(name api.FunctionName, req reqauth.Request) error {
	err := b.remove(name, req)
	b.decided("remove", string(name), err)
	return err
}

func (b *Broker) remove(name api.FunctionName, req reqauth.Request) error {
	who, err := b.owners.Verify(req)
	if err != nil {
		return err
	}
	b.vault.mu.Lock()
	defer b.vault.mu.Unlock()
	current, err := b.vault.read(name)
	if err != nil {
		return err
	}
	defer current.wipe()
	if current == nil || current.removed() {
		return notFound(name)
	}
	if !bytes.Equal(current.Owner, who.Key[:]) {
		return &api.Error{Code: api.CodeForbidden, Field: "function", Message: "the function belongs to another owner"}
	}
	return b.write(name, &record{Version: recordVersion, Owner: current.Owner, Sequence: current.Sequence, Stated: current.Stated})
}

func notFound(name api.FunctionName) error {
	return &api.Error{Code: api.CodeNotFound, Field: "function",
		Message: fmt.Sprintf("no keys are deposited for %s", name), Remedy: "deploy it with faasd-sec deploy"}
}

// sealedError carries an envelope's refusal over the wire under its own code.
func sealedError(err error) error {
	if c := sealed.CodeOf(err); c != "" {
		return api.Wrap(api.Code(c), err, "the sealed message was refused")
	}
	return api.Wrap(api.CodeInvalid, err, "the sealed message could not be read")
}
