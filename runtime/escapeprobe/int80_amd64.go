package main

// legacyGetpid calls getpid through the 32-bit entry of the kernel, whose
// calls have other numbers than those a 64-bit filter looks at.
func legacyGetpid() int32
