package shim

import (
	"bytes"
	"encoding/json"
	"fmt"

	stats1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	stats2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/containerd/typeurl/v2"

	"github.com/faasd-sec/faasd-sec/cgroups"
	"github.com/faasd-sec/faasd-sec/shim/container"
)

// stats is what a task uses, in containerd's format for the machine's cgroups:
// processes, processor time and memory, which are limited. What else the formats
// have is left out.
func stats(t *task) (*anypb.Any, error) {
	u, err := t.c.Groups.Usage()
	if err != nil {
		return nil, err
	}
	if t.c.Groups.Mode() == cgroups.V2 {
		return typeurl.MarshalAnyToProto(&stats2.Metrics{
			Pids:   &stats2.PidsStat{Current: uint64(u.PIDs)},
			CPU:    &stats2.CPUStat{UsageUsec: uint64(u.CPU.Microseconds()), ThrottledUsec: uint64(u.Throttled.Microseconds())},
			Memory: &stats2.MemoryStat{Usage: uint64(u.Memory), MaxUsage: uint64(u.MemoryPeak)},
		})
	}
	return typeurl.MarshalAnyToProto(&stats1.Metrics{
		Pids: &stats1.PidsStat{Current: uint64(u.PIDs)},
		CPU: &stats1.CPUStat{
			Usage:      &stats1.CPUUsage{Total: uint64(u.CPU.Nanoseconds())},
			Throttling: &stats1.Throttle{ThrottledTime: uint64(u.Throttled.Nanoseconds())},
		},
		Memory: &stats1.MemoryStat{Usage: &stats1.MemoryEntry{Usage: uint64(u.Memory), Max: uint64(u.MemoryPeak)}},
	})
}

// resourcesType is how containerd's client names the resources of an update.
const resourcesType = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"

// update changes the limits of a running task. Device rules cannot be changed.
func update(t *task, body *anypb.Any) error {
	if body == nil || body.TypeUrl != resourcesType {
		return fmt.Errorf("update task %s: resources must be of type %s: %w", t.id, resourcesType, errdefs.ErrInvalidArgument)
	}
	d := json.NewDecoder(bytes.NewReader(body.Value))
	d.DisallowUnknownFields()
	var r specs.LinuxResources
	if err := d.Decode(&r); err != nil {
		return fmt.Errorf("update task %s: %w: %w", t.id, errdefs.ErrInvalidArgument, err)
	}
	l, err := container.Limits(&r)
	if err != nil {
		return fmt.Errorf("update task %s: %w: %w", t.id, errdefs.ErrInvalidArgument, err)
	}
	if err := t.c.Groups.Update(l); err != nil {
		return fmt.Errorf("update task %s: %w", t.id, err)
	}
	return nil
}
