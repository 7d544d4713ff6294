package containerd

import "github.com/faasd-sec/faasd-sec/cgroups"

// Cgroups are the sandbox's own group, agent included, and the function's inside
// it, on which the function's limits of memory and processes are.
func (s *Sandbox) Cgroups() (sandbox, function cgroups.Group) { return s.group, s.functionGroup() }
