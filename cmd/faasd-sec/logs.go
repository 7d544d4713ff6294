package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
)

func (a *app) logsCommand() *cobra.Command {
	var follow bool
	var from string
	cmd := &cobra.Command{Use: "logs FUNCTION", Short: "Print what a function of yours printed",
		Long: "Fetch the sealed logs of a function and open them. Only the function's owner can. Those of a plain\n" +
			"function come in clear, by the gateway's word. With --from, records that other clients printed are opened. With --output json each line is one JSON object.",
		Args: usageArgs(cobra.ExactArgs(1)), ValidArgsFunction: a.completeFunctions,
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := api.ParseFunctionName(args[0])
			if err != nil {
				return err
			}
			if from != "" && follow {
				return api.Invalid("--follow", "leave it out", "what --from names is read to its end")
			}
			c, err := a.personal()
			if err != nil {
				return err
			}
			defer c.Close()
			ctx := cmd.Context()
			if from != "" {
				in := a.stdin
				if from != "-" {
					f, err := os.Open(from)
					if err != nil {
						return api.Invalid("--from", "name a file with what was printed, or - for standard input", err.Error())
					}
					defer f.Close()
					in = f
				}
				return c.OpenLogs(ctx, name, in, a.printLine)
			}
			if !follow {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, time.Minute)
				defer cancel()
			}
			err = c.Logs(ctx, name, follow, a.printLine)
			if follow && errors.Is(err, context.Canceled) {
				return nil // interrupted by who watched
			}
			return err
		}}
	cmd.Flags().StringVar(&from, "from", "", "open the sealed records in this `file` instead, - for standard input: what faas-cli logs printed")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with new lines as they come")
	return cmd
}

// printLine prints one line of a log. A message that does not open is told and
// skipped: one bad frame must not hide the others.
func (a *app) printLine(l client.LogLine, err error) error {
	if err != nil {
		a.notef("warning: node %s: %s", one(l.Node), one(err.Error()))
		return nil
	}
	if a.json() {
		if err := json.NewEncoder(a.stdout).Encode(struct {
			client.LogLine
			Stream string `json:"stream"`
		}{l, l.Stream.String()}); err != nil {
			return fmt.Errorf("write the log: %w", err)
		}
		return nil
	}
	text := l.Text
	if _, tty := terminal(a.stdout); tty {
		text = one(text) // a function may print escape sequences
	}
	if _, err := fmt.Fprintf(a.stdout, "%s %-8s %s  %s\n", l.Time.UTC().Format("2006-01-02T15:04:05.000Z"), l.Stream, one(l.Node), text); err != nil {
		return fmt.Errorf("write the log: %w", err)
	}
	return nil
}
