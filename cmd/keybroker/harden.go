package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// harden keeps this process's memory, which holds private keys, out of core
// files and from debuggers of its own user.
func harden() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("not dumpable: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("no core file: %w", err)
	}
	return nil
}
