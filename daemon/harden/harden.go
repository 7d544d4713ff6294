// Package harden keeps the memory of a process that holds private keys to
// itself: out of core files, away from debuggers of its own user, off the swap.
// Root with CAP_SYS_PTRACE reads it all the same.
package harden

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Undumpable keeps this process's memory out of core files and from debuggers
// of its own user. Call it first.
func Undumpable() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("not dumpable: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("no core file: %w", err)
	}
	return nil
}

// Unswappable locks every page of the process, as it is first used.
func Unswappable() error {
	// A limit that is reached later would end the process in the middle of things.
	if unlimited, err := mayLockAll(); err != nil {
		return fmt.Errorf("lock memory: %w", err)
	} else if !unlimited {
		return errors.New("lock memory: locked memory is limited; set LimitMEMLOCK=infinity, or give CAP_IPC_LOCK")
	}
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return fmt.Errorf("lock memory: %w", err)
	}
	return nil
}

// mayLockAll says whether no limit holds for this process.
func mayLockAll() (bool, error) {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &l); err != nil {
		return false, err
	}
	if l.Cur == unix.RLIM_INFINITY {
		return true, nil
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData // of 32 capabilities each
	if err := unix.Capget(&head, &caps[0]); err != nil {
		return false, err
	}
	return caps[0].Effective&(1<<unix.CAP_IPC_LOCK) != 0, nil
}
