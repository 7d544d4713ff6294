package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
)

func (a *app) trafficCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "traffic FUNCTION REVISION=PERCENT...", Short: "Divide the calls of a function among its revisions",
		Long: "Give each revision, named by the beginning of its digest, a share of the calls in percent, 100 in all. Calls\n" +
			"with the same X-Call-Id come to the same revision. Of a sealed function you sign a statement that callers\n" +
			"and the key broker go by, until --for is over: then the latest revision takes all calls. 100 for the\n" +
			"latest one ends a division, and 100 for another makes that one current, as rollback does.",
		Args: usageArgs(cobra.MinimumNArgs(2)), ValidArgsFunction: a.completeFunctions}
	life := cmd.Flags().Duration("for", client.DefaultTrafficLife, "how `LONG` the calls of a sealed function are divided, up to 168h")
	timeout := timeoutFlag(cmd, 5*time.Minute)
	a.trustFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name, err := api.ParseFunctionName(args[0])
		if err != nil {
			return err
		}
		percent, err := parsePercent(args[1:])
		if err != nil {
			return err
		}
		ctx, cancel, err := within(cmd.Context(), *timeout)
		if err != nil {
			return err
		}
		defer cancel()
		c, ring, err := a.owning()
		if err != nil {
			return err
		}
		defer c.Close()
		st, err := c.Describe(ctx, name)
		if err != nil {
			return err
		}
		if st.Sealed {
			return a.divide(ctx, c, name, percent, *life, ring)
		}
		if cmd.Flags().Changed("for") {
			return api.Invalid("--for", "leave it out", name.Short()+" is a plain function, whose calls stay divided until they are divided anew")
		}
		if err := c.SetTraffic(ctx, name, percent); err != nil {
			return err
		}
		if a.json() {
			return a.printJSON(percent)
		}
		fmt.Fprintf(a.stdout, "the calls of %s are divided\n", name.Short())
		return nil
	}
	return cmd
}

func parsePercent(args []string) (map[string]int, error) {
	percent := make(map[string]int, len(args))
	for _, arg := range args {
		rev, number, _ := strings.Cut(arg, "=")
		n, err := strconv.Atoi(strings.TrimSuffix(number, "%"))
		if err != nil || rev == "" {
			return nil, api.Invalid(arg, "write REVISION=PERCENT, such as 3f2a=10", "it is not a share")
		}
		if _, twice := percent[rev]; twice {
			return nil, api.Invalid(arg, "give each revision one share", "there are two of "+rev)
		}
		percent[rev] = n
	}
	return percent, nil
}

// divide divides the calls of a sealed function by a signed statement.
func (a *app) divide(ctx context.Context, c *client.Client, name api.FunctionName, percent map[string]int, life time.Duration, ring *client.Keyring) error {
	d, err := c.Divide(ctx, name, percent, life, ring)
	if err == nil && d.Anew != nil {
		err = a.serving(ctx, c, *d.Anew, ring)
	}
	switch {
	case err != nil:
		return err
	case a.json():
		return a.printJSON(d)
	case d.Anew != nil:
		return a.printDeployed([]client.Deployed{*d.Anew})
	case len(d.Percent) == 1:
		fmt.Fprintf(a.stdout, "all calls of %s go to its latest revision\n", name.Short())
	default:
		fmt.Fprintf(a.stdout, "the calls of %s are divided until %s\n", name.Short(), d.Expires.Local().Format(time.DateTime))
	}
	return nil
}
