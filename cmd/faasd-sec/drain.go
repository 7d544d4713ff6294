package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/faasd-sec/faasd-sec/enrol"
)

// drainCommand drains a node, or has it take work again.
func drainCommand(stdout io.Writer, on bool) *cobra.Command {
	var state string
	cmd := &cobra.Command{
		Use:   "drain NODE",
		Short: "Have a node take nothing new, and stop what it has, on the coordinator's machine",
		Long: `The node goes on with what runs, for as long as its -drain-timeout, and stops each
sandbox that is idle. It stays a member and drained, over restarts of its daemon too,
until faasd-sec node undrain. A daemon that is told to stop (SIGTERM) drains by itself.`,
	}
	said := "draining"
	if !on {
		cmd = &cobra.Command{Use: "undrain NODE", Short: "Have a drained node take work again, on the coordinator's machine"}
		said = "working"
	}
	cmd.Args = usageArgs(cobra.ExactArgs(1))
	cmd.Example = "  sudo faasd-sec node " + cmd.Name() + " rack1-a"
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := enrol.RequestDrain(cmd.Context(), state, args[0], on); err != nil {
			return err
		}
		fmt.Fprintf(stdout, "%s %s\n", said, args[0])
		return nil
	}
	cmd.Flags().StringVar(&state, "state", "/var/lib/faasd-sec/coordinator", "the running coordinator's state directory")
	return cmd
}
