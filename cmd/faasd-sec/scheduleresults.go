package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
)

// tickResult is the result of one tick, as it is printed.
type tickResult struct {
	Tick   time.Time `json:"tick"`
	CallID string    `json:"call_id"`
	State  string    `json:"state"` // done, waiting, or the code of why there is none
	Status int       `json:"status,omitempty"`
	Body   []byte    `json:"body,omitempty"`
}

func (a *app) scheduleResultsCommand() *cobra.Command {
	var last int
	var bodies bool
	cmd := &cobra.Command{Use: "results NAME", Short: "Open the results of a schedule's last calls", Args: usageArgs(cobra.ExactArgs(1)),
		Long: "Fetch and open the results of the last ticks, the latest first. The cluster keeps them for a day, unless it is\n" +
			"told otherwise; only where the schedule was put from can they be opened.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if last < 1 || last > client.MaxTicks {
				return api.Invalid("--last", fmt.Sprintf("use 1 to %d", client.MaxTicks), "it is not such a number")
			}
			c, err := a.personal()
			if err != nil {
				return err
			}
			defer c.Close()
			s, _, err := a.openSchedule(c, args[0])
			if err != nil {
				return err
			}
			now := time.Now()
			list := []tickResult{}
			for _, tick := range s.Sealed(now.Add(-30*24*time.Hour), now) {
				if len(list) == last {
					break
				}
				r := tickResult{Tick: tick, CallID: s.CallID(tick)}
				res, err := c.TickResult(cmd.Context(), s, tick)
				switch code := api.CodeOf(err); {
				case err == nil:
					if r.Body, err = io.ReadAll(io.LimitReader(res.Body, maxTickResult+1)); err == nil && len(r.Body) > maxTickResult {
						err = api.Errorf(api.CodeTooLarge, "the result of %s is over %d bytes", r.CallID, maxTickResult)
					}
					if err = errors.Join(err, res.Body.Close()); err != nil {
						return err
					}
					r.State, r.Status = api.AsyncDone, res.Status
				case err == error(client.ErrNotYet):
					r.State = api.AsyncWaiting
				case code == api.CodeInternal || code == api.CodeUnavailable || code == api.CodeUnauthorized:
					return err
				default: // it was not made, was given up, or is forgotten
					r.State = string(code)
				}
				list = append(list, r)
			}
			return a.printTickResults(list, bodies)
		}}
	cmd.Flags().IntVar(&last, "last", 10, "of so many ticks")
	cmd.Flags().BoolVar(&bodies, "bodies", false, "print the bodies alone, one after the other")
	return cmd
}

// maxTickResult bounds a result that is printed, in bytes.
const maxTickResult = 64 << 20

func (a *app) printTickResults(list []tickResult, bodies bool) error {
	switch {
	case a.json():
		return a.printJSON(list)
	case bodies:
		for _, r := range list {
			if r.Status == 0 {
				continue
			}
			if _, err := a.stdout.Write(r.Body); err != nil {
				return fmt.Errorf("write the result: %w", err)
			}
			if n := len(r.Body); n > 0 && r.Body[n-1] != '\n' {
				fmt.Fprintln(a.stdout)
			}
		}
		return nil
	}
	t := newTable("TICK", "CALL", "STATE", "STATUS", "SIZE")
	for _, r := range list {
		status, size := "-", "-"
		if r.Status != 0 {
			status, size = fmt.Sprint(r.Status), bytesText(int64(len(r.Body)))
		}
		t.row(r.Tick.Format(time.RFC3339), r.CallID, r.State, status, size)
	}
	return t.print(a.stdout)
}
