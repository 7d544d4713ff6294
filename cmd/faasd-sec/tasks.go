package main

import (
	"context"
	"fmt"
	"regexp"
	"time"

	"github.com/spf13/cobra"

	"github.com/faasd-sec/faasd-sec/api"
)

// taskID is a task's id as it is drawn; no function is called so by chance.
var taskID = regexp.MustCompile(`^[0-9a-f]{32}$`)

func (a *app) tasksCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "tasks", Short: "Tasks that wait for room", Args: unknownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(
		&cobra.Command{Use: "waiting", Short: "List the tasks that wait for room, the next one first", Args: usageArgs(cobra.NoArgs),
			RunE: func(cmd *cobra.Command, _ []string) error { return a.waiting(cmd.Context()) }},
		&cobra.Command{Use: "cancel TASK", Short: "End the wait of a task that you sent, or whose function is yours", Args: usageArgs(cobra.ExactArgs(1)),
			RunE: func(cmd *cobra.Command, args []string) error {
				c, err := a.personal()
				if err != nil {
					return err
				}
				defer c.Close()
				if err := c.Cancel(cmd.Context(), args[0]); err != nil {
					return err
				}
				if a.json() {
					return a.printJSON(args[0])
				}
				fmt.Fprintf(a.stdout, "cancelled %s\n", args[0])
				return nil
			}})
	return cmd
}

func (a *app) waiting(ctx context.Context) error {
	c, err := a.anonymous()
	if err != nil {
		return err
	}
	defer c.Close()
	list, err := c.Waiting(ctx)
	if err != nil {
		return err
	}
	if a.json() {
		return a.printJSON(list)
	}
	t := newTable("TASK", "FUNCTION", "PRIORITY", "SINCE", "DEADLINE")
	now := time.Now()
	for _, w := range list {
		t.row(w.ID, w.Function.Short(), fmt.Sprint(w.Priority), ago(time.UnixMilli(w.Since), now),
			time.UnixMilli(w.Deadline).UTC().Format(time.RFC3339))
	}
	return t.print(a.stdout)
}

func (a *app) describeTask(ctx context.Context, id string) error {
	c, err := a.personal()
	if err != nil {
		return err
	}
	defer c.Close()
	p, err := c.Placement(ctx, id)
	if err != nil {
		return err
	}
	if a.json() {
		return a.printJSON(p)
	}
	where := p.Node
	if p.Code != "" {
		where = "nowhere: " + string(p.Code)
	}
	fmt.Fprintf(a.stdout, "task:          %s\nfunction:      %s\nplaced:        %s\nat:            %s, in round %d\n",
		one(p.ID), one(p.Function.Short()), one(first(where, "not yet")), time.UnixMilli(p.At).UTC().Format(time.RFC3339), p.Attempts)
	t := newTable("NODE", "OUTCOME", "REASON")
	for _, n := range p.Nodes {
		t.row(n.Node, n.Outcome, first(reasonText(n), "-"))
	}
	if err := t.print(a.stdout); err != nil {
		return err
	}
	if p.Omitted > 0 {
		fmt.Fprintf(a.stdout, "and %d more\n", p.Omitted)
	}
	return nil
}

// reasonText says in words what a node lacks.
func reasonText(n api.NodeConsidered) string {
	if n.Outcome == api.OutcomeUnfit {
		switch n.Reason {
		case "label":
			return "label: one that is required is not there, or has another value"
		case "arch":
			return "arch: another architecture"
		case "tier":
			return "tier: evidence that the function does not take"
		case "draining":
			return "draining: takes no new work"
		}
	}
	return n.Reason
}
