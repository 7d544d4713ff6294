package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/attest"
)

func (a *app) nodesCommand() *cobra.Command {
	var detail bool
	cmd := &cobra.Command{Use: "nodes", Short: "List the machines of the cluster and what is free on them", Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.anonymous()
			if err != nil {
				return err
			}
			defer c.Close()
			if detail {
				list, err := c.NodeDetails(cmd.Context(), false)
				if err != nil {
					return err
				}
				if a.json() {
					return a.printJSON(list)
				}
				return nodesUsage(list.Nodes, false).print(a.stdout)
			}
			list, err := c.Nodes(cmd.Context())
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(list)
			}
			return nodeTable(list).print(a.stdout)
		}}
	cmd.Flags().BoolVar(&detail, "detail", false, "ask each machine what it uses")
	return cmd
}

func nodeTable(list []api.NodeView) *table {
	t := newTable("NODE", "STATE", "ARCH", "TIER", "CPU FREE", "MEMORY FREE", "SANDBOXES", "IN FLIGHT", "LABELS")
	slices.SortFunc(list, func(x, y api.NodeView) int { return strings.Compare(x.Meta.ID, y.Meta.ID) })
	for _, n := range list {
		if !slices.Contains(n.Meta.Roles, api.RoleNode) {
			continue
		}
		state := "ready"
		switch {
		case n.Load.Epoch == 0:
			state = "unknown" // no load arrived yet
		case n.Load.Draining:
			state = "draining"
		}
		t.row(n.Meta.ID, state, n.Meta.Arch, tierText(n.Meta.Tier),
			cpuText(n.Load.Free.CPU)+"/"+cpuText(n.Meta.Capacity.CPU), bytesText(n.Load.Free.Memory)+"/"+bytesText(n.Meta.Capacity.Memory),
			fmt.Sprint(n.Load.Running), fmt.Sprint(n.Load.InFlight), labelText(n.Meta.Labels))
	}
	return t
}

// tierText marks weak evidence wherever it shows.
func tierText(tier string) string {
	switch tier {
	case attest.TypeNodeKey:
		return attest.TierNodeKey
	case "":
		return "-"
	}
	return tier
}

func attestationText(types []string) string {
	if len(types) == 0 {
		return "none: no machine gets the keys"
	}
	out := make([]string, len(types))
	for i, t := range types {
		out[i] = tierText(t)
	}
	return strings.Join(out, ", ")
}

func labelText(m map[string]string) string {
	out := make([]string, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+"="+m[k])
	}
	return first(strings.Join(out, ","), "-")
}
