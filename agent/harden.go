package agent

import (
	"fmt"
	"runtime/debug"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/agent/launcher"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// Harden closes this process before it holds a secret: the crypto library
// proves itself, memory is kept from core files, other users and crash dumps,
// the Go runtime is kept small, and the capability bounding set is emptied but
// for keep, so that nothing forked from here can ever have another one. It needs
// CAP_SETPCAP for the last, and only there; a process without any capability has
// nothing to drop.
func Harden(keep ...uintptr) error {
	if err := unseal.SelfTest(); err != nil {
		return fmt.Errorf("harden: crypto self test: %w", err)
	}
	debug.SetTraceback("none") // a trace's arguments and goroutine states may hold payload
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(32 << 20)
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("harden: not dumpable: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("harden: no core file: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("harden: no_new_privs: %w", err)
	}
	if err := boundTo(keep); err != nil {
		return fmt.Errorf("harden: %w", err)
	}
	return nil
}

// boundTo empties the bounding set of every thread but for keep.
func boundTo(keep []uintptr) error {
	for c := uintptr(0); c <= lastCapability(); c++ {
		if set, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0); err != nil || set == 0 || slices.Contains(keep, c) {
			continue
		}
		if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0); errno != 0 {
			return fmt.Errorf("drop capability %d from the bounding set: %w", c, errno)
		}
	}
	return nil
}

// lastCapability is the highest number the kernel knows.
func lastCapability() uintptr {
	last := uintptr(unix.CAP_LAST_CAP)
	for c := last + 1; c < 64; c++ { // the kernel may be newer than the header
		if _, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0); err != nil {
			break
		}
		last = c
	}
	return last
}

// Confine gives up what only starting the launcher needed: every capability, on
// every thread, what Harden kept of the bounding set, and the right to execute
// anything. What is left to this process is memory, sockets and time.
func Confine() error {
	if err := boundTo(nil); err != nil {
		return fmt.Errorf("confine: %w", err)
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := capsetAllThreads(&hdr, &none); err != nil {
		return err
	}
	filter, err := launcher.Filter(launcher.FilterOptions{DenyExec: true})
	if err != nil {
		return err
	}
	return launcher.Install(filter)
}
