// Package opener is the one place where manifests are opened. It holds the
// cluster's manifest keys, in a process of its own, and gives back parsed
// manifests and nothing else: no plaintext of another role, no seed, no key.
//
// What it promises: a manifest is handed on only after every check of
// docs/envelope.md passed, and after it was merged with the owner's bounds; no
// grant is cached; seed, prk and message key of a grant, and what was parsed,
// are erased within EraseWithin of the reply, wherever the runtime or the
// libraries had copied them (see erase.go for what that needs); private keys lie
// in a page that, where the kernel has memfd_secret, no process reads, root's
// included; bounds on disk at the coordinator open only for their function,
// revision and owner.
//
// What it does not: who asks is believed about function, revision and owner, and
// sees every manifest; it could show an older blob of the same revision. While a
// manifest is being opened its secrets are in memory, and root who stops the
// process just then reads them. The kernel's socket buffers are not wiped.
package opener
