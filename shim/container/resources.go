package container

import (
	"errors"
	"fmt"
	"reflect"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/faasd-sec/faasd-sec/cgroups"
)

// Limits translates the resources of a specification or of an update. Limits are all or nothing
// per controller, which is how the runtime writes them.
func Limits(r *specs.LinuxResources) (cgroups.Limits, error) {
	var l cgroups.Limits
	rest := *r
	rest.CPU, rest.Memory, rest.Pids, rest.Devices = nil, nil, nil, nil
	if field := firstSet("linux.resources", reflect.ValueOf(rest)); field != "" {
		return l, fmt.Errorf("%s: not implemented by this runtime", field)
	}
	var errs []error
	if c := r.CPU; c != nil {
		rest := *c
		rest.Quota, rest.Period, rest.Shares = nil, nil, nil
		if field := firstSet("linux.resources.cpu", reflect.ValueOf(rest)); field != "" {
			errs = append(errs, fmt.Errorf("%s: not implemented by this runtime", field))
		}
		if c.Quota == nil || c.Period == nil || c.Shares == nil || *c.Quota <= 0 || *c.Period > 1e6 || *c.Shares > 1<<18 {
			errs = append(errs, refused("linux.resources.cpu", "a quota, a period and shares together, within the kernel's bounds"))
		} else {
			l.CPU = &cgroups.CPULimit{
				Quota: time.Duration(*c.Quota) * time.Microsecond, Period: time.Duration(*c.Period) * time.Microsecond, Shares: int64(*c.Shares),
			}
		}
	}
	if m := r.Memory; m != nil {
		rest := *m
		rest.Limit, rest.Swap, rest.Swappiness = nil, nil, nil
		if field := firstSet("linux.resources.memory", reflect.ValueOf(rest)); field != "" {
			errs = append(errs, fmt.Errorf("%s: not implemented by this runtime", field))
		}
		// What a sealed function holds in memory must not reach a disk.
		if m.Limit == nil || *m.Limit <= 0 || m.Swap == nil || *m.Swap != *m.Limit || m.Swappiness == nil || *m.Swappiness != 0 {
			errs = append(errs, refused("linux.resources.memory", "a limit with an equal one of memory and swap, and swappiness 0"))
		} else {
			l.Memory = &cgroups.MemoryLimit{Bytes: *m.Limit}
		}
	}
	if p := r.Pids; p != nil {
		if p.Limit == nil || *p.Limit <= 0 {
			errs = append(errs, refused("linux.resources.pids", "a limit of at least 1"))
		} else {
			n := *p.Limit
			l.PIDs = &n
		}
	}
	return l, errors.Join(errs...)
}

// checkDevices demands what the runtime asks for: nothing is allowed but what
// every container may have.
func checkDevices(list []specs.LinuxDeviceCgroup) error {
	if len(list) == 1 {
		d := list[0]
		if !d.Allow && (d.Type == "" || d.Type == "a") && d.Major == nil && d.Minor == nil && d.Access == "rwm" {
			return nil
		}
	}
	return refused("linux.resources.devices", "the one rule that denies all; the usual devices of /dev are allowed by itself")
}
