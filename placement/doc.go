// Package placement chooses the node for an invocation. It is a pure function
// of what it is given: an immutable view of the cluster, a request, weights and
// a seed. It starts no goroutine, keeps no state, reads no clock and opens
// nothing sealed.
//
// What it promises: every candidate passed every filter on the view it was
// given; the same input gives the same answer; the order of the nodes in the
// view does not matter; a request without a candidate was held against every
// node, and each refusal has a stable reason.
//
// What it does not: a view is a hint. Only the node knows what it has at the
// moment the invocation arrives, so it may refuse, and the caller goes on to
// the next candidate. Placement neither reserves nor remembers.
//
// # Against pile-ups
//
// Between two updates of a node's load every invocation would see the same best
// node. Two things keep them apart. Request.Pending tells what this coordinator
// has sent to a node that the node's load cannot show yet: it uses up the warm
// slots of the view one by one and lowers the node's score. And a part of the
// score is noise drawn from Request.Seed and the node's ID, so that coordinators
// that know nothing of each other do not agree on the same of several nodes that
// are about equally good.
//
// # Cost
//
// [Pick] looks at every node. [Index], made once per view, finds the warm nodes
// of a revision without looking at the others and samples the rest when the
// cluster is large; see [Index.Pick] for what that changes.
package placement
