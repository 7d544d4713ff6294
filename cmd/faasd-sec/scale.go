package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/faasd-sec/faasd-sec/api"
)

func (a *app) scaleCommand() *cobra.Command {
	return &cobra.Command{Use: "scale FUNCTION=N...", Short: "Set how many replicas functions have",
		Long: "Set the number of replicas by hand. Of a function with a policy the load changes it again: for more at\n" +
			"once, for fewer after the policy's window. One without keeps it; 0 leaves it on demand again.",
		Args: usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			type order struct {
				Name     api.FunctionName `json:"name"`
				Replicas int              `json:"replicas"`
			}
			var orders []order
			for _, arg := range args {
				text, number, _ := strings.Cut(arg, "=")
				name, err := api.ParseFunctionName(text)
				if err != nil {
					return err
				}
				n, err := strconv.Atoi(number)
				if err != nil || n < 0 {
					return api.Invalid(text, "write NAME=N, such as "+name.Short()+"=3", fmt.Sprintf("%q is not a number of replicas", number))
				}
				orders = append(orders, order{name, n})
			}
			c, err := a.personal()
			if err != nil {
				return err
			}
			defer c.Close()
			for _, o := range orders {
				if err := c.SetReplicas(cmd.Context(), o.Name, o.Replicas); err != nil {
					return aboutFunction(err)
				}
				if !a.json() {
					fmt.Fprintf(a.stdout, "%s is to have %d replicas\n", o.Name.Short(), o.Replicas)
				}
			}
			if a.json() {
				return a.printJSON(orders)
			}
			return nil
		}}
}

// demandText says what a function is to have and what waits for it. What the gateway
// does not tell is unknown, not none.
func demandText(d *api.Demand) (wanted, waiting string) {
	if d == nil {
		d = &api.Demand{Unknown: "the gateway did not tell: it is of an older release, or busy"}
	}
	unknown := "unknown: " + first(d.Unknown, "the gateway did not tell why")
	wanted, waiting = unknown, unknown
	switch {
	case d.OnDemand:
		wanted = "what calls need"
	case d.Wanted != nil:
		wanted = fmt.Sprintf("%d replicas", *d.Wanted)
	}
	if d.Waiting != nil {
		waiting = fmt.Sprintf("%d calls, in all coordinators", *d.Waiting)
	}
	return wanted, waiting
}

// scaleText says a policy in words.
func scaleText(s *api.Scale) string {
	if s == nil {
		return "on demand"
	}
	text := fmt.Sprintf("%d to %d", s.Min, s.Max)
	if s.Min == s.Max {
		text = fmt.Sprintf("%d", s.Min)
	}
	if s.Zero {
		text += fmt.Sprintf(", none after %s without a call", time.Duration(s.ZeroAfter)*time.Millisecond)
	}
	if s.Min == s.Max {
		return text
	}
	unit := map[string]string{api.ScaleCapacity: "in flight", api.ScaleRPS: "calls a second", api.ScaleCPU: "millicores"}[s.Type]
	text += fmt.Sprintf("; %d %s each, loaded to %.0f %%, fewer after %s", s.Target, unit, 100*s.Proportion, time.Duration(s.DownWindow)*time.Millisecond)
	if b := s.Band; b != nil {
		text += fmt.Sprintf("; %d more over %.0f %%, %d fewer under %.0f %%", b.Add, 100*b.High, b.Remove, 100*b.Low)
	}
	return text
}
