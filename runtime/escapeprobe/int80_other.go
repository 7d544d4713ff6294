//go:build !amd64

package main

// legacyGetpid stands for an entry that only x86 has.
func legacyGetpid() int32 { return -1 }
