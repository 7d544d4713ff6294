// Package stage runs a list of system calls in a new process, between clone
// and execve, without a program of its own to execute first.
//
// A container's init process has some 150 system calls to make inside of its
// namespaces before it may become the container's program. Executing a helper
// for them costs a few milliseconds and a few megabytes each time; a Go
// process, on the other hand, cannot run ordinary Go code after a fork, since
// only one of its threads is left. So the parent prepares everything: it
// writes the calls down as data, with every string and structure in place, and
// the child does nothing but make them, one after the other, from a function
// that neither allocates nor grows its stack nor can be preempted.
//
// Promised: the child makes exactly the calls of the program, in order, stops
// at the first that fails in a way the program does not accept, and says which
// it was; it ends when its parent ends before it has become another program.
//
// Not promised: that the calls make sense. A program is trusted input, made by
// this module from a specification it has checked.
package stage
