package sealed

import "github.com/faasd-sec/faasd-sec/sealed/internal/wire"

// VerifyGrant checks that the sender that a body's grant names signed the grant.
// It needs no private key and the first bytes of the body alone, as Peek does,
// and takes the time of one signature. It proves that the sender made this grant
// for whoever is its recipient, not that the message under it is the sender's or
// new: it may spare a reader work, never authorise. What is no grant gives
// CodeFormat or CodeTruncated, a signature that is not the sender's
// CodeSignature.
func VerifyGrant(body []byte) error {
	p, err := Peek(body)
	if err != nil {
		return err
	}
	grant := body[:p.Len-wire.MessageSize]
	g, wrong := wire.ParseGrant(grant)
	if wrong != "" {
		return refuse(CodeFormat, wrong)
	}
	// The signature covers all before its own length.
	signed := grant[:len(grant)-len(g.Sig)-1]
	if !Verify(g.Sender, g.Sig, LabelGrant, signed) {
		return refuse(CodeSignature, "the grant is not signed by the sender it names")
	}
	return nil
}
