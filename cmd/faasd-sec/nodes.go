package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/attest"
	"github.com/faasd-sec/faasd-sec/client"
)

func (a *app) nodesCommand() *cobra.Command {
	return &cobra.Command{Use: "nodes", Short: "List the machines of the cluster and what is free on them", Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.anonymous()
			if err != nil {
				return err
			}
			defer c.Close()
			list, err := c.Nodes(cmd.Context())
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(list)
			}
			return nodeTable(list).print(a.stdout)
		}}
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

func (a *app) topCommand() *cobra.Command {
	var once bool
	var every time.Duration
	cmd := &cobra.Command{Use: "top", Short: "Watch nodes and functions", Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if every < 200*time.Millisecond {
				return api.Invalid("--every", "give 200ms or more", every.String()+" is too short")
			}
			c, err := a.anonymous()
			if err != nil {
				return err
			}
			defer c.Close()
			if a.json() || once {
				return a.topOnce(cmd.Context(), c, "")
			}
			return a.topLoop(cmd.Context(), c, every)
		}}
	cmd.Flags().BoolVar(&once, "once", false, "print once and end")
	cmd.Flags().DurationVar(&every, "every", 2*time.Second, "time between two looks")
	return cmd
}

// topLoop draws again and again until it is interrupted. A look that fails is
// told in the picture, for the next one may succeed.
func (a *app) topLoop(ctx context.Context, c *client.Client, every time.Duration) error {
	clearScreen := ""
	if _, tty := terminal(a.stdout); tty {
		clearScreen = "\x1b[H\x1b[2J"
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if err := a.topOnce(ctx, c, clearScreen); err != nil && ctx.Err() == nil {
			fmt.Fprintf(a.stdout, "%s%s\n", clearScreen, one(err.Error()))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (a *app) topOnce(ctx context.Context, c *client.Client, before string) error {
	nodes, err := c.Nodes(ctx)
	if err != nil {
		return err
	}
	functions, err := c.List(ctx)
	if err != nil {
		return err
	}
	if a.json() {
		return a.printJSON(struct {
			Nodes     []api.NodeView       `json:"nodes"`
			Functions []api.FunctionStatus `json:"functions"`
		}{nodes, functions})
	}
	fmt.Fprintf(a.stdout, "%s%s  %s\n\n", before, a.gatewayURL(""), time.Now().Format(time.TimeOnly))
	if err := nodeTable(nodes).print(a.stdout); err != nil {
		return err
	}
	fmt.Fprintln(a.stdout)
	return a.functionTable(functions).print(a.stdout)
}
