// Package containerd runs sandboxes as containerd tasks of runc.
//
// A sandbox is one task whose PID 1 is the agent. It has pid, mount, network
// (loopback only), ipc, uts, cgroup and user namespaces of its own, a private
// range of 65536 user ids, containerd's default seccomp profile made stricter,
// four capabilities, no_new_privs, and the layers of its image as a read-only
// root. What can be written is memory: sized tmpfs, charged to the sandbox.
//
// Promised: a sandbox that Create returned runs under exactly the limits asked
// for, read back from the kernel before its first instruction; two live
// sandboxes of a machine never share a user id, whichever node they belong to;
// an image in use is not garbage collected;
// Remove, or Recover after the daemon was killed at any moment, leaves no
// task, container, lease, mount, cgroup, shim or socket directory behind.
//
// Not promised: that root of the host cannot look into a sandbox. It can.
//
// On the host a sandbox consists of
//
//	RunDir/sandboxes/ID/record   what to clean up, written before anything else
//	RunDir/sandboxes/ID/rootfs   mount point of its root, idmapped to its user ids
//	LayerDir/skeletons           layers with the mount points that images lack, shared
//	the caller's socket directory mounted on itself, so that no link in it is followed
//	/faasd-sec/NAMESPACE/ID      its cgroup; "fn" inside it is the function's own
//	lease faasd-sec-ID           keeps the image's snapshots
//	container and task ID        in the containerd namespace
package containerd
