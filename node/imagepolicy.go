package node

import (
	"context"

	"github.com/faasd-sec/faasd-sec/api"
)

// ImagePolicy says whether an image may run here: ref is HOST/REPOSITORY, digest
// that of its manifest.
type ImagePolicy interface {
	Check(ctx context.Context, ref, digest string) error
}

// checkSigned is the part of the second check that asks for an image's signature.
// It goes on while the sandbox is prepared, and a start waits for it.
func (n *Node) checkSigned(ctx context.Context, s *sandbox) error {
	if n.dep.ImagePolicy == nil {
		return nil
	}
	err := n.dep.ImagePolicy.Check(ctx, n.imageRef(s.rev), s.rev.image)
	switch {
	case err == nil:
		return nil
	case api.CodeOf(err) == api.CodeForbidden:
		return n.failCheck(s, "signature", err, "nobody whom this node's image policy trusts has signed the image")
	}
	return n.failCheck(s, "signature", err, "the image's signatures could not be read, and this node runs none without")
}
