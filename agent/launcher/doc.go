// Package launcher starts a function's processes from outside the agent.
//
// The launcher is the agent's own binary executed again with the function's
// user and group, no capability in any set, no_new_privs and a seccomp filter
// that every process it forks inherits. The node moves it into the function's
// cgroup before anything of the function exists, so all that it forks is
// charged there, and a function that runs out of memory takes neither the agent
// nor its keys with it.
//
// It talks to the agent over one socket pair and nothing else: argument lists,
// environments and open files come in, process ids and exit states go out.
// Payload and results flow through pipes and sockets made by the agent, whose
// ends the launcher passes on and closes; only the sealed bundle's files, which
// it writes as the function's user, pass through its memory.
//
// One that waits for its function has on one thread alone the few capabilities by
// which it becomes the function's, and gives them up as it does.
//
// It promises that a process it started is in a process group of its own, that
// the whole group is killed when its first process ends, and that it kills all
// of them when the agent goes away. It does not promise to find processes that
// left their group: those end with the sandbox.
package launcher
