package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
)

func (a *app) rollbackCommand() *cobra.Command {
	var to string
	var list bool
	cmd := &cobra.Command{Use: "rollback FUNCTION", Short: "Make a former revision of a function current again",
		Long: "Go back to the revision before, or to the one that --to names. Descriptors count up, and nobody takes an\n" +
			"older one: of a sealed function its owner signs the old content anew, under a new number.",
		Args: usageArgs(cobra.ExactArgs(1)), ValidArgsFunction: a.completeFunctions}
	cmd.Flags().StringVar(&to, "to", "", "the `REVISION`, or the beginning of its digest (default the latest former one)")
	cmd.Flags().BoolVar(&list, "list", false, "list the revisions that are kept, and change nothing")
	timeout := timeoutFlag(cmd, 5*time.Minute)
	a.trustFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name, err := api.ParseFunctionName(args[0])
		if err != nil {
			return err
		}
		ctx, cancel, err := within(cmd.Context(), *timeout)
		if err != nil {
			return err
		}
		defer cancel()
		if list {
			return a.listRevisions(ctx, name)
		}
		c, ring, err := a.owning()
		if err != nil {
			return err
		}
		defer c.Close()
		done, err := c.Rollback(ctx, name, to, ring)
		if err == nil {
			err = a.serving(ctx, c, done, ring)
		}
		if err != nil {
			return err
		}
		return a.printDeployed([]client.Deployed{done})
	}
	return cmd
}

func (a *app) listRevisions(ctx context.Context, name api.FunctionName) error {
	c, err := a.anonymous()
	if err != nil {
		return err
	}
	defer c.Close()
	all, err := c.Revisions(ctx, name)
	if err != nil {
		return err
	}
	if a.json() {
		return a.printJSON(all)
	}
	t := newTable("REVISION", "STATE", "REPLICAS", "CALLS", "DEPLOYED", "IMAGE")
	for _, r := range all {
		calls := "-"
		if r.Percent > 0 {
			calls = fmt.Sprintf("%d %%", r.Percent)
		}
		t.row(short(r.Revision), r.State, fmt.Sprint(r.Replicas), calls, ago(time.Unix(r.UpdatedAt, 0), time.Now()), r.Image)
	}
	return t.print(a.stdout)
}

// await waits until what was deployed serves.
func (d *deployer) await(ctx context.Context, done client.Deployed) error {
	if !done.Changed {
		return nil
	}
	p := d.newProgress("roll out " + done.Name.Short())
	defer p.end()
	return d.serving(ctx, d.client, done, d.keys)
}

// serving waits until a revision serves, and has the key broker destroy what the one
// before could have until then. If it was taken back, the one that goes on serving is
// signed anew, so that the key broker releases keys for it again.
func (a *app) serving(ctx context.Context, c *client.Client, done client.Deployed, ring *client.Keyring) error {
	roll, err := c.AwaitRollout(ctx, done.Name)
	if err != nil || roll == nil || roll.To != done.Revision {
		return err
	}
	if roll.State != api.RolloutFailed {
		if done.Sequence > 0 && !done.Plain {
			if err := c.EndRollout(ctx, done.Name, ring); err != nil {
				a.notef("the revision before %s can get keys for some minutes more: %v", short(done.Revision), err)
			}
		}
		return nil
	}
	failed := &api.Error{Code: roll.Code, Field: "function", Message: fmt.Sprintf("revision %s of %s did not start, and the one before it serves: %s",
		short(roll.To), done.Name.Short(), roll.Reason), Remedy: "correct it and deploy again; faasd-sec describe and logs tell more"}
	if done.Sequence > 0 {
		if _, err := c.Rollback(ctx, done.Name, roll.From, ring); err != nil {
			return errors.Join(failed, fmt.Errorf("and it could not be signed anew: %w", err))
		}
	}
	return failed
}

func rolloutText(r *api.Rollout) string {
	text := fmt.Sprintf("%s, from %s to %s", r.State, short(r.From), short(r.To))
	if r.Code != "" {
		text += fmt.Sprintf(": %s, %s", r.Code, r.Reason)
	}
	return text
}

func percentText(p int) string {
	if p == 0 {
		return ""
	}
	return fmt.Sprintf(", %d %% of the calls", p)
}
