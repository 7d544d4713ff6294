// Package agent is the half of faasd-sec that runs inside a sandbox, as PID 1
// of a function's task: the only place where an invocation is opened.
//
// It proves to a key broker, through the node, that it serves one revision of
// one function, receives that function's keys sealed to a key it drew itself,
// starts the function under another user through its launcher (agent/launcher),
// opens each invocation, hands it to the function (package upstream for servers,
// a process per request otherwise), and seals the reply to the caller's key. It
// takes its settings from the descriptor that the owner signed. The node
// supplies the function's ids and what the image says of itself: environment,
// working directory, and the program where the descriptor names none.
//
// What it promises: without the early-input flag nothing of a request reaches
// the function before its end was verified; a reply ends well only if the
// request did; what a caller sees of a failure is sealed like a result once the
// request was opened, and a plain problem before; memory does not grow with the
// size of a body; whatever the function prints is sealed to its owner before it
// leaves.
//
// What it does not: it verifies neither the root file system it finds nor what
// the node says of the image, so a hostile node runs what it likes under the
// function's keys (docs/threat-model.md). A host without a hardware TEE can read this process's
// memory. Private keys, grants' seeds and the payload under way live in the Go
// heap, because the crypto library copies them there: they are wiped when they
// are dropped, where we hold the only reference, but the runtime may have moved
// copies. memfd_secret is therefore not used. Against everything inside the
// sandbox the memory is closed: another user id, not dumpable, no core file, no
// ptrace by seccomp.
package agent
