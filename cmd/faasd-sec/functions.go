package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/sealed"
)

func (a *app) listCommand() *cobra.Command {
	return &cobra.Command{Use: "list", Short: "List the functions of the cluster", Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.anonymous()
			if err != nil {
				return err
			}
			defer c.Close()
			list, err := c.List(cmd.Context())
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(list)
			}
			return a.functionTable(list).print(a.stdout)
		}}
}

func (a *app) functionTable(list []api.FunctionStatus) *table {
	t := newTable("NAME", "KIND", "MODE", "REPLICAS", "CPU", "MEMORY", "REVISION", "OWNER", "UPDATED")
	mine := a.ownFingerprint()
	for _, f := range list {
		kind, owner := "plain", short(f.Owner)
		if f.Sealed {
			kind = "sealed"
		}
		if mine != "" && f.Owner == mine {
			owner = "you"
		}
		t.row(f.Name.Short(), kind, f.Mode, fmt.Sprint(f.Replicas), cpuText(f.Resources.CPU), bytesText(f.Resources.Memory),
			short(f.Revision), first(owner, "-"), ago(time.Unix(f.UpdatedAt, 0), time.Now()))
	}
	return t
}

// ownFingerprint is the chosen identity's, without its passphrase, or "".
func (a *app) ownFingerprint() string {
	store, err := a.keystore()
	if err != nil {
		return ""
	}
	sign, _, err := store.Public(a.identity)
	if err != nil {
		return ""
	}
	return sign.Fingerprint().String()
}

func (a *app) describeCommand() *cobra.Command {
	return &cobra.Command{Use: "describe FUNCTION|TASK", Short: "Show a function and its sandboxes, or where a task was placed and why", Args: usageArgs(cobra.ExactArgs(1)),
		Long: "Show a function, its signed descriptor and its sandboxes. Of a task, named by its id of 32 digits as\n" +
			"invoke --show-task prints it, show which nodes were considered for it and why each was refused.",
		ValidArgsFunction: a.completeFunctions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if taskID.MatchString(args[0]) {
				return a.describeTask(cmd.Context(), args[0])
			}
			name, err := api.ParseFunctionName(args[0])
			if err != nil {
				return err
			}
			c, err := a.anonymous()
			if err != nil {
				return err
			}
			defer c.Close()
			st, err := c.Describe(cmd.Context(), name)
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(st)
			}
			return a.printFunction(st)
		}}
}

func (a *app) printFunction(st api.FunctionStatus) error {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(a.stdout, "%-14s %s\n", name+":", one(fmt.Sprintf(format, args...)))
	}
	line("name", "%s", st.Name)
	line("image", "%s", st.Image)
	line("limits", "cpu %s, memory %s, pids %d, tmp %s", cpuText(st.Resources.CPU), bytesText(st.Resources.Memory), st.Resources.PIDs, bytesText(st.Resources.Tmp))
	if st.Resources.Storage > 0 {
		line("storage", "%s writable, in memory and part of its limit", bytesText(st.Resources.Storage))
	}
	if st.Resources.Scratch > 0 {
		line("scratch", "%s on disk, encrypted", bytesText(st.Resources.Scratch))
	}
	line("replicas", "%d, of these %d ready", st.Replicas, st.Available)
	wanted, waiting := demandText(st.Demand)
	line("wanted", "%s", wanted)
	line("waiting", "%s", waiting)
	line("scaling", "%s", scaleText(st.Scale))
	for _, s := range st.Serving {
		line(s.State, "revision %s, %d replicas%s", short(s.Revision), s.Replicas, percentText(s.Percent))
	}
	if len(st.Traffic) > 0 {
		if signed, err := sealed.ParseTraffic(st.Traffic); err == nil && len(signed.Unverified().Shares) > 1 {
			line("divided", "by its owner's statement, until %s", time.Unix(int64(signed.Unverified().Expires), 0).UTC().Format(time.RFC3339))
		}
	}
	if st.Rollout != nil {
		line("rollout", "%s", rolloutText(st.Rollout))
	}
	if st.Set != nil {
		line("set by hand", "%d replicas", *st.Set)
	}
	line("updated", "%s", time.Unix(st.UpdatedAt, 0).UTC().Format(time.RFC3339))
	if len(st.Descriptor) == 0 {
		line("kind", "plain: it has no descriptor, nothing is sealed")
		return a.sandboxTable(st.Sandboxes).print(a.stdout)
	}
	signed, err := sealed.ParseDescriptor(st.Descriptor)
	if err != nil {
		return api.Wrap(api.CodeUnavailable, err, "the gateway's descriptor does not parse")
	}
	claimed := signed.ClaimedOwner().Fingerprint()
	d, err := signed.Verify(claimed)
	if err != nil {
		return api.Wrap(api.Code(sealed.CodeSignature), err, "the descriptor's signature is not its claimed owner's")
	}
	rev, err := d.Revision()
	if err != nil {
		return err
	}
	line("revision", "%s", rev)
	line("sequence", "%d", d.Sequence)
	if err := a.noteSchedules(st.Name, rev.String(), line); err != nil {
		return err
	}
	line("owner", "%s%s", claimed, a.trustNote(st.Name, claimed))
	line("mode", "%s, upstream %s, at most %d at once", d.Config.Mode, d.Config.Upstream, d.Config.MaxInFlight)
	line("timeouts", "read %s, write %s, exec %s, start %s, idle %s", ms(d.Config.ReadMS), ms(d.Config.WriteMS), ms(d.Config.ExecMS), ms(d.Config.StartMS), idleText(d.Config.IdleMS))
	line("callers", "%s", callersText(d.Config.Policy))
	line("attestation", "%s", attestationText(d.Config.Policy.Attestation))
	line("key broker", "%s", d.Config.Policy.Broker.Fingerprint())
	if !d.Config.Bundle.IsZero() {
		line("bundle", "sealed, digest %s", d.Config.Bundle)
	}
	for _, k := range d.Decryption {
		line("key", "%s, until %s", k.Key.KeyID(), time.Unix(int64(k.NotAfter), 0).UTC().Format(time.RFC3339))
	}
	return a.sandboxTable(st.Sandboxes).print(a.stdout)
}

// trustNote tells whether the owner is one that we would seal for.
func (a *app) trustNote(name api.FunctionName, claimed sealed.Fingerprint) string {
	pins, err := client.OpenPins(a.configDir)
	if err != nil {
		return ""
	}
	if pinned, ok := pins.Owner(strings.TrimRight(a.gatewayURL(""), "/"), name); ok {
		if pinned == claimed {
			return " (pinned)"
		}
		return " (NOT the pinned owner " + pinned.String() + ")"
	}
	if a.ownFingerprint() == claimed.String() {
		return " (you)"
	}
	return " (not pinned)"
}

func ms(n uint64) time.Duration { return time.Duration(n) * time.Millisecond }

func callersText(p sealed.Policy) string {
	if p.AnyCaller {
		return "any"
	}
	if len(p.Callers) == 0 {
		return "nobody"
	}
	out := make([]string, len(p.Callers))
	for i, c := range p.Callers {
		out[i] = c.String()
	}
	return strings.Join(out, ", ")
}

func (a *app) sandboxTable(list []api.SandboxStatus) *table {
	t := newTable("SANDBOX", "NODE", "STATE", "IN FLIGHT", "EVIDENCE", "START", "WAY", "MEMORY", "LAST ERROR")
	slices.SortFunc(list, func(x, y api.SandboxStatus) int { return strings.Compare(x.ID, y.ID) })
	for _, s := range list {
		t.row(s.ID, s.Node, s.State, fmt.Sprint(s.InFlight), tierText(s.Evidence), fmt.Sprintf("%dms", s.StartMs), wayText(s), bytesText(s.Memory), first(s.LastError, "-"))
	}
	return t
}

// idleText says when unused sandboxes are stopped.
func idleText(millis uint64) string {
	if millis == 0 {
		return "as the nodes learn"
	}
	return ms(millis).String()
}

// wayText says how a sandbox came to its function, and why not faster.
func wayText(s api.SandboxStatus) string {
	if s.StartWhy == "" {
		return first(s.Start, "-")
	}
	return fmt.Sprintf("%s (%s)", first(s.Start, "-"), s.StartWhy)
}

func (a *app) removeCommand() *cobra.Command {
	var keepKeys bool
	cmd := &cobra.Command{Use: "remove FUNCTION...", Aliases: []string{"rm"}, Short: "Stop functions, and have their keys destroyed", Args: usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			names := make([]api.FunctionName, len(args))
			for i, s := range args {
				var err error
				if names[i], err = api.ParseFunctionName(s); err != nil {
					return err
				}
			}
			return a.remove(cmd.Context(), names, keepKeys)
		}}
	cmd.Flags().BoolVar(&keepKeys, "keep-keys", false, "keep the function's keys on this machine")
	return cmd
}

func (a *app) remove(ctx context.Context, names []api.FunctionName, keepKeys bool) error {
	c, err := a.personal()
	if err != nil {
		return err
	}
	defer c.Close()
	for _, n := range names {
		if err := c.Remove(ctx, n); err != nil {
			return aboutFunction(err)
		}
		if !keepKeys {
			if err := client.NewKeyring(a.keysDir(), nil, nil).Forget(n); err != nil {
				return err
			}
		}
		if !a.json() {
			fmt.Fprintf(a.stdout, "removed %s\n", n.Short())
		}
	}
	if a.json() {
		return a.printJSON(names)
	}
	return nil
}
