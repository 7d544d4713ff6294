// Package gossip is the mesh: who the members of the cluster are and what each
// has free, as far as this member has heard. It runs hashicorp/memberlist (SWIM
// with Lifeguard: Das, Gupta, Motivala, DSN 2002; Dadgar, Phillips, Currey, 2018)
// over a transport sealed with SM4-GCM and publishes immutable snapshots.
//
// # What it promises
//
// A snapshot holds members only, each with its newest load by (Epoch, Seq),
// whatever way and in whatever order loads arrived; a member that left or died is
// out of it with its load. A load never makes a member. Loads reach every member
// in the end, by broadcast or by the periodic exchange of all state; large
// changes reach coordinators within LoadInterval, the first or last warm slot of
// a revision and draining within UrgentInterval. Halves of a partition find each
// other again through the seeds. What does not decode exactly is dropped and
// counted.
//
// Who holds no key of the ring learns sizes, timing and addresses, and cannot
// make a member believe anything. See [Key] and the comments at sealer and
// sealedConn for how, and for what is left: a packet recorded on the wire can be
// delivered once more to a member that has not heard its sender, which the
// incarnations of memberlist and the order of loads turn into nothing.
//
// # What it does not
//
// The key is one for the whole cluster: any member can speak for any other. So
// what is heard here is a hint, never authority. Nodes are authenticated by
// mutual TLS when they are called, and only they know what they have free.
// Loads are eventually consistent and may be minutes old for members that are
// no coordinators in a cluster of a thousand.
package gossip
