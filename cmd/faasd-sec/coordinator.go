package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/faasd-sec/faasd-sec/enrol"
	"github.com/faasd-sec/faasd-sec/pki"
)

// coordinatorCommand groups what an operator does with several coordinators, on
// the machine of one of them.
func (a *app) coordinatorCommand() *cobra.Command {
	var state string
	cmd := &cobra.Command{Use: "coordinator", Short: "Several coordinators: tokens to join, members, removal", Args: unknownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.PersistentFlags().StringVar(&state, "state", "/var/lib/faasd-sec/coordinator", "state directory of a coordinator that runs here")

	var uses int
	var ttl time.Duration
	token := &cobra.Command{
		Use: "token", Short: "Make a token with which another coordinator joins", Args: usageArgs(cobra.NoArgs),
		Long: `Makes a token with which a machine becomes another coordinator of this cluster. Who
has it gets all that a coordinator has, the key of the certificate authority too:
give it to that machine alone, in a file. An attempt that fails uses it up as well.`,
		Example: "  faasd-sec coordinator token > token\n" +
			"  coordinator -join 10.0.0.1:7443 -join-token @token -id coordinator-2 -peer-listen 10.0.0.2:7445",
		RunE: func(cmd *cobra.Command, _ []string) error {
			t, err := enrol.RequestToken(cmd.Context(), state, pki.RoleCoordinator, uses, ttl)
			if err != nil {
				return err
			}
			fmt.Fprintln(a.stdout, t)
			return nil
		},
	}
	token.Flags().IntVar(&uses, "uses", 1, "how many attempts to join it is good for")
	token.Flags().DurationVar(&ttl, "ttl", time.Hour, "how long it is good")

	members := &cobra.Command{
		Use: "members", Short: "List the members of the coordinators' store", Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := enrol.RequestMembers(cmd.Context(), state)
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(all)
			}
			t := newTable("NAME", "ADDRESS", "ROLE")
			for _, m := range all {
				role := "member"
				switch {
				case m.Learner:
					role = "joining"
				case m.Leader:
					role = "leader"
				}
				t.row(m.Name, m.Address, role)
			}
			return t.print(a.stdout)
		},
	}
	remove := &cobra.Command{
		Use: "remove NAME", Short: "Take a coordinator out of the store for good", Args: usageArgs(cobra.ExactArgs(1)),
		Long: `Takes a coordinator out, by its name or the address of its store. If it runs it
stops; its machine may join again as a new one, with an empty state directory.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return about("NAME", "faasd-sec coordinator members lists them", enrol.RequestRemoval(cmd.Context(), state, args[0]))
		},
	}
	cmd.AddCommand(token, members, remove)
	return cmd
}
