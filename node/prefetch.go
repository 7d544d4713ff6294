package node

import (
	"context"
)

// prefetch pulls a revision's image before anybody has called the function. What
// fails here is said to the first caller, who tries again.
func (n *Node) prefetch(rev *revision) {
	ctx, cancel := context.WithTimeout(n.life, rev.start)
	defer cancel()
	if _, err := n.dep.Runtime.Pull(ctx, n.imageRef(rev), rev.image); err != nil {
		n.log.Info("image not pulled ahead", "function", rev.name, "err", err)
		return
	}
	n.touch() // others may learn that the image is here
}
