// Package seccomp compiles the seccomp section of an OCI specification into a
// filter program for the kernel.
//
// Promised: a system call is decided as the specification says, with the
// semantics that OCI runtimes share:
//
//   - calls of another instruction set than the native one, x32 included, end
//     the process's thread;
//   - a call that no rule is for gets the default action, which must deny;
//   - a rule with conditions applies if all of them hold, or, where one
//     argument is in several of them, if any of them holds;
//   - a name that this architecture does not have is passed over: no rule can
//     be for it, so the default, which denies, applies;
//   - a call newer than every call that the profile names fails with ENOSYS
//     rather than with the default's error, so that programs fall back to an
//     older one.
//
// What the compiler does not know, such as an action or an operator, or rules
// that contradict each other, is an error and never left out.
//
// Not promised: that a profile is a good one.
package seccomp

//go:generate go run ./gen
