// Package vm holds no code but a test: it starts a virtual machine with the
// distribution's kernel, whose only cgroup hierarchy is v2, and runs there the
// tests that depend on the hierarchy, compiled from the same sources. It is
// emulated, which takes seconds and no virtualisation of the host's.
package vm
