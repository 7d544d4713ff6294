// Package container makes the containers of the shim: it turns an OCI
// specification into cgroups and a stage.Program, starts it, and removes what
// it made.
//
// It serves the specifications that this project's runtime writes and no
// others. Promised: whatever a specification asks for is either done or an
// error that names the field; nothing is passed over. A container that Create
// returned is in its cgroups, under its limits and device rules, with all of
// its namespaces, mounts, identity, capabilities and resource limits in place;
// its program, which the seccomp filter is for, runs from Start on.
package container
