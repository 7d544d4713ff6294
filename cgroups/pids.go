package cgroups

import (
	"fmt"
	"strconv"
)

func (g Group) applyPIDs(n int64) error {
	if n <= 0 {
		return fmt.Errorf("%d processes is no limit", n)
	}
	return g.write(PIDs, "pids.max", strconv.FormatInt(n, 10))
}

func (g Group) verifyPIDs(n int64) error {
	return g.expect(PIDs, "pids.max", strconv.FormatInt(n, 10))
}

// PIDsRefused counts forks that the pids limit refused since the group was
// made.
func (g Group) PIDsRefused() (int64, error) { return g.field(PIDs, "pids.events", "max") }
