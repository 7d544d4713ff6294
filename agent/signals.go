package agent

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// signalName is "SIGKILL" for 9.
func signalName(s syscall.Signal) string {
	if n := unix.SignalName(s); n != "" {
		return n
	}
	return s.String()
}
