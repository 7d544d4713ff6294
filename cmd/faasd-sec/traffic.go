package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/faasd-sec/faasd-sec/api"
)

func (a *app) trafficCommand() *cobra.Command {
	return &cobra.Command{Use: "traffic FUNCTION REVISION=PERCENT...", Short: "Divide the calls of a plain function among its revisions",
		Long: "Give each revision, named by the beginning of its digest, a share of the calls in percent, 100 in all. Calls\n" +
			"with the same X-Call-Id come to the same revision. Sealed functions cannot be divided: a request is sealed\n" +
			"for one revision.",
		Args: usageArgs(cobra.MinimumNArgs(2)), ValidArgsFunction: a.completeFunctions,
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := api.ParseFunctionName(args[0])
			if err != nil {
				return err
			}
			percent := make(map[string]int, len(args)-1)
			for _, arg := range args[1:] {
				rev, number, _ := strings.Cut(arg, "=")
				n, err := strconv.Atoi(strings.TrimSuffix(number, "%"))
				if err != nil || rev == "" {
					return api.Invalid(arg, "write REVISION=PERCENT, such as 3f2a=10", "it is not a share")
				}
				percent[rev] = n
			}
			c, err := a.personal()
			if err != nil {
				return err
			}
			defer c.Close()
			if err := c.SetTraffic(cmd.Context(), name, percent); err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(percent)
			}
			fmt.Fprintf(a.stdout, "the calls of %s are divided\n", name.Short())
			return nil
		}}
}
