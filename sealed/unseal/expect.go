package unseal

import (
	"errors"
	"fmt"
	"time"

	"github.com/faasd-sec/faasd-sec/sealed"
)

// SenderPolicy decides who may send. *sealed.Policy is one.
type SenderPolicy interface {
	// AllowSender is asked for the fingerprint of the grant's signing key.
	AllowSender(sealed.Fingerprint) bool
}

var _ SenderPolicy = (*sealed.Policy)(nil)

type only sealed.Fingerprint

func (o only) AllowSender(f sealed.Fingerprint) bool { return sealed.Fingerprint(o) == f }

// Only admits one signing key.
func Only(key sealed.PublicKey) SenderPolicy { return only(key.Fingerprint()) }

// OnlyFingerprint admits the signing key with this fingerprint.
func OnlyFingerprint(f sealed.Fingerprint) SenderPolicy { return only(f) }

// Expect is what a reader of roles 1 and 3 to 7 takes.
type Expect struct {
	Role      sealed.Role
	Name      string        // "function.namespace"; compared byte for byte
	AnyName   bool          // role 5 only: the body says which function, and must match
	Context   sealed.Digest // the revision; zero in roles 4 and 5
	Senders   SenderPolicy
	MaxQueued time.Duration // longest life of a queued request, 0 refuses them
}

func (e *Expect) check() error {
	switch {
	case !e.Role.Valid():
		return fmt.Errorf("unseal: open: role %d is unknown", e.Role)
	case e.Role == sealed.RoleReply:
		return errors.New("unseal: open: a reply is opened by ExpectReply")
	case e.Senders == nil:
		return errors.New("unseal: open: no sender policy given")
	case e.AnyName && (e.Role != sealed.RoleDeposit || e.Name != ""):
		return errors.New("unseal: open: any name is for deposits, without a name")
	case !e.AnyName && e.Name == "":
		return errors.New("unseal: open: no name given")
	case e.Context.IsZero() == e.Role.HasContext():
		return fmt.Errorf("unseal: open: context set %t for a %s, want %t", !e.Context.IsZero(), e.Role, e.Role.HasContext())
	case e.MaxQueued < 0:
		return errors.New("unseal: open: max queued is negative")
	}
	return nil
}

// ExpectReply is what a caller takes as its request's reply.
type ExpectReply struct {
	ID      sealed.ID        // the request's
	Link    sealed.Link      // the request's
	Name    string           // the request's
	Context sealed.Digest    // the request's
	Sender  sealed.PublicKey // the signing key in the verified descriptor
}

func (e *ExpectReply) check() error {
	switch {
	case e.Link.IsZero():
		return refuse(sealed.CodeFormat, "a reply opens with its request's link alone, and none was given")
	case e.ID.IsZero() || e.Context.IsZero():
		return errors.New("unseal: expect reply: id and context are the request's, and not zero")
	case e.Name == "":
		return errors.New("unseal: expect reply: no name given")
	case e.Sender.IsZero():
		return errors.New("unseal: expect reply: no sender given")
	}
	return nil
}
