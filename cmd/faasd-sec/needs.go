package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/manifest"
)

// needsFlags say what one task asks for beyond its function's defaults.
type needsFlags struct {
	numbers               map[manifest.Field]*string
	ports, require, archs []string
	allow                 []string
	apart                 bool
	deadline              time.Duration
	priority              int
	retry                 string
	show                  bool
}

// numeric are the flags that hold one number.
var numeric = [...]struct {
	field manifest.Field
	usage string
}{
	{manifest.FieldCPU, "CPU that the task gets, such as 500m"},
	{manifest.FieldMemory, "memory that it gets, such as 256Mi"},
	{manifest.FieldStorage, "size of its writable layer, part of its memory"},
	{manifest.FieldScratch, "encrypted scratch space on disk"},
	{manifest.FieldPIDs, "processes and threads"},
	{manifest.FieldIngress, "bits per second into it, such as 10M"},
	{manifest.FieldEgress, "bits per second out of it"},
	{manifest.FieldCores, "cores of the machine that it runs on alone, and that no other such task gets"},
}

func (n *needsFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	n.numbers = map[manifest.Field]*string{}
	for _, x := range numeric {
		n.numbers[x.field] = f.String(x.field.String(), "", x.usage)
	}
	f.StringArrayVar(&n.ports, "port", nil, "a port of the host, tcp:8080 for that one, udp for any, tcp*3 for three; repeat")
	f.StringArrayVar(&n.allow, "allow", nil, "what it may open, 10.0.0.0/8:443/tcp or 10.0.0.0/8:8000-8099/udp, within what its owner and the node allow; repeat")
	f.StringArrayVar(&n.require, "require", nil, "a label of the node, zone=a, zone!=a, gpu or !gpu; repeat")
	f.StringArrayVar(&n.archs, "arch", nil, "an architecture that will do, such as amd64; repeat")
	f.BoolVar(&n.apart, "apart", false, "on a node without another sandbox of the function")
	f.DurationVar(&n.deadline, "deadline", 0, "time within which the task must have ended")
	f.IntVar(&n.priority, "priority", 0, "1 to 9: which of those that wait goes first")
	f.StringVar(&n.retry, "retry", "", "attempts and after what, as in 3:start_failed,node_lost; node_lost only for what may run twice")
	f.BoolVar(&n.show, "show-task", false, "print the task's id to standard error, for describe and tasks cancel; seals a manifest")
}

// parse is nil where no flag was given: no manifest is sealed then.
func (n *needsFlags) parse(set *pflag.FlagSet, now time.Time) (_ *client.Needs, err error) {
	given := false
	out := &client.Needs{}
	for _, x := range numeric {
		name := x.field.String()
		if !set.Changed(name) {
			continue
		}
		v, err := manifest.ParseNumber(x.field, "--"+name, *n.numbers[x.field])
		if err != nil {
			return nil, err
		}
		out.SetNumber(x.field, v)
		given = true
	}
	if out.Ports, err = parseAll("--port", n.ports, manifest.ParsePort); err != nil {
		return nil, err
	}
	if out.Allow, err = parseAll("--allow", n.allow, manifest.ParseReach); err != nil {
		return nil, err
	}
	if out.Constraints, err = parseAll("--require", n.require, manifest.ParseRequirement); err != nil {
		return nil, err
	}
	out.Architectures = n.archs
	if set.Changed("apart") {
		out.AntiAffinity = manifest.AffinityNone
		if n.apart {
			out.AntiAffinity = manifest.ReplicasApart
		}
		given = true
	}
	if set.Changed("deadline") {
		if n.deadline <= 0 {
			return nil, api.Invalid("--deadline", "give a time such as 30s", n.deadline.String()+" is over already")
		}
		out.Deadline, given = now.Add(n.deadline), true
	}
	if set.Changed("priority") {
		if n.priority < 1 || n.priority > 9 {
			return nil, api.Invalid("--priority", "choose 1 to 9", fmt.Sprintf("%d is out of range", n.priority))
		}
		out.Priority, given = n.priority, true
	}
	if n.retry != "" {
		if out.Retry, err = manifest.ParseRetry("--retry", n.retry); err != nil {
			return nil, err
		}
		given = true
	}
	if given || n.show || len(out.Ports)+len(out.Allow)+len(out.Constraints)+len(out.Architectures) > 0 {
		return out, nil
	}
	return nil, nil
}

func parseAll[T any](name string, list []string, parse func(name, s string) (T, error)) ([]T, error) {
	var out []T
	for _, s := range list {
		v, err := parse(name, s)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}
