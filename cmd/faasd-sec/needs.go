package main

import (
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/manifest"
)

// needsFlags say what one task asks for beyond its function's defaults.
type needsFlags struct{ show bool }

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
	for _, x := range numeric {
		f.String(x.field.String(), "", x.usage)
	}
	f.StringArray("port", nil, "a port of the host, tcp:8080 for that one, udp for any, tcp*3 for three; repeat")
	f.StringArray("allow", nil, "what it may open, 10.0.0.0/8:443/tcp or 10.0.0.0/8:8000-8099/udp, within what its owner and the node allow; repeat")
	f.StringArray("require", nil, "a label of the node, zone=a, zone!=a, gpu or !gpu; repeat")
	f.StringArray("arch", nil, "an architecture that will do, such as amd64; repeat")
	f.Bool("apart", false, "on a node without another sandbox of the function")
	f.Duration("deadline", 0, "time within which the task must have ended")
	f.Int("priority", 0, "1 to 9: which of those that wait goes first")
	f.String("retry", "", "attempts and after what, as in 3:start_failed,node_lost; node_lost only for what may run twice")
	f.BoolVar(&n.show, "show-task", false, "print the task's id to standard error, for describe and tasks cancel; seals a manifest")
}

// parse is nil where no flag was given: no manifest is sealed then.
func (n *needsFlags) parse(set *pflag.FlagSet, now time.Time) (*client.Needs, error) {
	out, given := new(client.Needs), n.show
	for _, name := range client.NeedNames() {
		flag := set.Lookup(name)
		if !flag.Changed {
			continue
		}
		given = true
		field, err := manifest.ParseField("--"+name, name)
		if err != nil {
			return nil, err
		}
		values := []string{flag.Value.String()}
		if list, ok := flag.Value.(pflag.SliceValue); ok {
			values = list.GetSlice()
		}
		if err := out.Set(field, "--"+name, values, now); err != nil {
			return nil, err
		}
	}
	if !given {
		return nil, nil
	}
	return out, nil
}
