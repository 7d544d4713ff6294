package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
)

// laterFlags are those of invoke --async.
type laterFlags struct {
	async  bool
	how    client.Later
	callID string
}

func (f *laterFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.BoolVar(&f.async, "async", false, "have the cluster run it later, and print the call's id; faasd-sec async result ID opens the result")
	fl.StringVar(&f.how.Callback, "callback", "", "with --async: URL to which the sealed result is posted")
	fl.StringVar(&f.how.Events, "events", "", "with --callback: as a CloudEvent, structured or binary")
	fl.DurationVar(&f.how.MaxAge, "max-age", 0, "with --async: begin it within this time or not at all (default: the most that the function allows)")
	fl.BoolVar(&f.how.Once, "once", false, "with --async: the result is forgotten when it was read")
	fl.StringVar(&f.how.Key, "idempotency-key", "", "with --async: no second call is accepted under this key: each is sealed anew")
	fl.StringVar(&f.callID, "call-id", "", "with --async: the call's id, instead of a drawn one")
}

// withAsync are the flags that mean nothing to a call that is waited for.
var withAsync = [...]string{"callback", "events", "max-age", "once", "idempotency-key", "call-id"}

// check refuses what would be ignored, or sent as something else.
func (f *laterFlags) check(set *pflag.FlagSet) error {
	if !f.async {
		for _, name := range withAsync {
			if set.Changed(name) {
				return api.Invalid("--"+name, "give --async too, or leave it out", "it is for calls that are made later")
			}
		}
		return nil
	}
	for _, name := range [...]string{"include", "stream", "via"} {
		if set.Changed(name) {
			return api.Invalid("--"+name, "leave it out", "nothing of a call that is made later is sent or shown by it")
		}
	}
	if set.Changed("call-id") && !callName.MatchString(f.callID) {
		return api.Invalid("--call-id", "use 1 to 64 letters, digits and -", fmt.Sprintf("%q is not a call's id", f.callID))
	}
	if set.Changed("idempotency-key") && !keyText.MatchString(f.how.Key) {
		return api.Invalid("--idempotency-key", "use 1 to 255 characters of ASCII without control characters", "it cannot be sent")
	}
	return checkLater(&f.how)
}

// keyText is what travels in a header unchanged.
var keyText = regexp.MustCompile(`^[!-~]([ -~]{0,253}[!-~])?$`)

func checkLater(how *client.Later) error {
	if how.MaxAge < 0 {
		return api.Invalid("--max-age", "give a time such as 10m", how.MaxAge.String()+" is no time to come")
	}
	if how.Events != "" && how.Events != "structured" && how.Events != "binary" {
		return api.Invalid("--events", "write structured or binary", fmt.Sprintf("%q is neither", how.Events))
	}
	if how.Events != "" && how.Callback == "" {
		return api.Invalid("--events", "give --callback too, or leave it out", "nothing is posted without a callback")
	}
	if u, err := url.Parse(how.Callback); how.Callback != "" && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https") {
		return api.Invalid("--callback", "give an http or https URL", fmt.Sprintf("%q is none", how.Callback))
	}
	return nil
}

// invokeLater sends req to be run later and keeps what its result takes.
func (a *app) invokeLater(ctx context.Context, c *client.Client, name api.FunctionName, req client.Request, f *laterFlags) error {
	req.CallID = f.callID
	p, err := c.InvokeLater(ctx, name, req, f.how)
	if err != nil {
		return err
	}
	if err := a.keepCall(c, p); err != nil {
		return fmt.Errorf("the call was accepted as %s, but its result cannot be opened here: %w", p.CallID, err)
	}
	if a.json() {
		return a.printJSON(map[string]any{"call_id": p.CallID, "function": p.Function, "expires": p.Expires.UnixMilli()})
	}
	fmt.Fprintln(a.stdout, one(p.CallID))
	return nil
}

// callName keeps call ids from leading elsewhere as names of files.
var callName = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)

func (a *app) callFile(id string) (string, error) {
	if !callName.MatchString(id) {
		return "", api.Invalid("CALL", "use the id that invoke --async printed", fmt.Sprintf("%q is not a call's id", id))
	}
	return filepath.Join(a.configDir, "calls", id+".json"), nil
}

func (a *app) keepCall(c *client.Client, p *client.Pending) error {
	path, err := a.callFile(p.CallID)
	if err != nil {
		return err
	}
	b, err := c.Marshal(p)
	if err != nil {
		return err
	}
	return replace(path, b)
}

func (a *app) asyncCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "async", Short: "Asynchronous invocations: what waits, results, dead letters", Args: unknownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	dead := &cobra.Command{Use: "dead", Short: "Calls that were given up", Args: unknownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	dead.AddCommand(
		a.callsCommand("list", "List calls that were given up", (*client.Client).DeadLetters),
		a.callCommand("inspect CALL", "Say why a call was given up", a.showCall),
		a.callCommand("replay CALL", "Attempt a call anew", said(a, "replayed", (*client.Client).ReplayDead)),
		a.callCommand("purge CALL", "Forget a call that was given up", said(a, "purged", (*client.Client).PurgeDead)))
	cmd.AddCommand(
		a.callsCommand("list", "List calls that wait or run", (*client.Client).AsyncCalls),
		a.callCommand("inspect CALL", "Say how a call stands", a.showCall),
		a.resultCommand(),
		a.callCommand("cancel CALL", "End a call that waits or runs", said(a, "cancelled", (*client.Client).CancelCall)),
		dead)
	return cmd
}

func (a *app) callCommand(use, short string, do func(context.Context, *client.Client, string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: usageArgs(cobra.ExactArgs(1)), RunE: func(cmd *cobra.Command, args []string) error {
		if _, err := a.callFile(args[0]); err != nil {
			return err
		}
		c, err := a.personal()
		if err != nil {
			return err
		}
		defer c.Close()
		return about("CALL", "faasd-sec async inspect "+args[0]+" says how it stands", do(cmd.Context(), c, args[0]))
	}}
}

// said does something to a call and says so.
func said(a *app, what string, do func(*client.Client, context.Context, string) error) func(context.Context, *client.Client, string) error {
	return func(ctx context.Context, c *client.Client, id string) error {
		if err := do(c, ctx, id); err != nil {
			return err
		}
		if a.json() {
			return a.printJSON(id)
		}
		fmt.Fprintf(a.stdout, "%s %s\n", what, one(id))
		return nil
	}
}

func (a *app) callsCommand(use, short string, list func(*client.Client, context.Context, url.Values) ([]api.AsyncCall, error)) *cobra.Command {
	var function, after string
	var limit int
	cmd := &cobra.Command{Use: use, Short: short, Args: usageArgs(cobra.NoArgs), RunE: func(cmd *cobra.Command, _ []string) error {
		q := url.Values{"limit": {fmt.Sprint(limit)}}
		if function != "" {
			name, err := api.ParseFunctionName(function)
			if err != nil {
				return err
			}
			q.Set(api.QueryFunction, string(name))
		}
		if after != "" {
			q.Set("after", after)
		}
		c, err := a.personal()
		if err != nil {
			return err
		}
		defer c.Close()
		calls, err := list(c, cmd.Context(), q)
		if err != nil {
			return err
		}
		if a.json() {
			return a.printJSON(calls)
		}
		t := newTable("CALL", "FUNCTION", "STATE", "PRIORITY", "ATTEMPTS", "ARRIVED", "CODE")
		for _, k := range calls {
			t.row(one(k.ID), one(k.Function.Short()), one(k.State), fmt.Sprint(k.Priority), fmt.Sprint(k.Attempts), ago(time.UnixMilli(k.Arrived), time.Now()), first(one(string(k.Code)), "-"))
		}
		return t.print(a.stdout)
	}}
	cmd.Flags().StringVar(&function, "function", "", "only of this function")
	cmd.Flags().StringVar(&after, "after", "", "of dead letters: those behind this id")
	cmd.Flags().IntVar(&limit, "limit", 100, "at most so many, up to 1000")
	return cmd
}

func (a *app) showCall(ctx context.Context, c *client.Client, id string) error {
	k, err := c.AsyncCall(ctx, id)
	if err != nil {
		return err
	}
	if a.json() {
		return a.printJSON(k)
	}
	fmt.Fprintf(a.stdout, "call:      %s\nfunction:  %s\nstate:     %s\nsender:    %s\narrived:   %s\nexpires:   %s\nattempts:  %d\nnext:      %s\nended:     %s\nkept till: %s\n",
		one(k.ID), one(k.Function.Short()), one(k.State), first(one(k.Sender), "-"), at(k.Arrived), at(k.Expires), k.Attempts, at(k.Next), at(k.Ended), at(k.Until))
	if k.Code != "" {
		fmt.Fprintf(a.stdout, "reason:    %s: %s\n", one(string(k.Code)), one(k.Message))
	}
	return nil
}

func (a *app) resultCommand() *cobra.Command {
	var wait time.Duration
	var include bool
	cmd := &cobra.Command{Use: "result CALL", Short: "Open the result of a call that was sent from here", Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := a.callFile(args[0])
			if err != nil {
				return err
			}
			if wait < 0 {
				return api.Invalid("--wait", "give a time such as 30s", wait.String()+" is no time to come")
			}
			b, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) {
				return &api.Error{Code: api.CodeNotFound, Field: "CALL", Err: err, Message: "the call was not sent from here: its result is sealed to who did",
					Remedy: "use the same --config-dir as then"}
			}
			if err != nil {
				return err
			}
			c, err := a.personal()
			if err != nil {
				return err
			}
			defer c.Close()
			p, err := c.Unmarshal(b)
			if err != nil {
				return err
			}
			return a.printResult(cmd.Context(), c, p, wait, include)
		}}
	cmd.Flags().DurationVar(&wait, "wait", 0, "wait so long for the call to end")
	cmd.Flags().BoolVarP(&include, "include", "i", false, "print the result's status and headers before its body")
	return cmd
}

func (a *app) printResult(ctx context.Context, c *client.Client, p *client.Pending, wait time.Duration, include bool) (retErr error) {
	until := time.Now().Add(wait)
	for {
		res, err := c.Result(ctx, p)
		if err == error(client.ErrNotYet) && time.Now().Before(until) {
			t := time.NewTimer(200 * time.Millisecond)
			select {
			case <-t.C:
				continue
			case <-ctx.Done():
				t.Stop()
				return ctx.Err()
			}
		}
		if err != nil {
			return err
		}
		defer func() { retErr = errors.Join(retErr, res.Body.Close()) }()
		if include {
			a.printHead(res)
		}
		if err := a.copyOut(ctx, res.Body); err != nil {
			return err
		}
		if res.Failure() != "" || res.Status >= 400 {
			return &statusError{status: res.Status, code: res.Failure()}
		}
		return nil
	}
}
