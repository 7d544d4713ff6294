package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/faasd-sec/faasd-sec/anomaly"
	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// followEvery is how often audit show --follow looks for new events.
const followEvery = 200 * time.Millisecond

func (a *app) auditCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "audit", Short: "Verify and read the anomaly log of a node or coordinator", Args: unknownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(a.auditVerify(), a.auditShow(), a.auditKeys())
	return cmd
}

// jsonFlag adds --json, which is --output json.
func (a *app) jsonFlag(cmd *cobra.Command) {
	yes := cmd.Flags().Bool("json", false, "the same as --output json")
	cmd.PreRun = func(*cobra.Command, []string) {
		if *yes {
			a.output = "json"
		}
	}
}

// brokenLogError is a log that is not what its signatures say.
type brokenLogError struct{ report *anomaly.Report }

func (e *brokenLogError) Error() string {
	s := "the log does not verify: " + e.report.Breaks[0].Error()
	if n := len(e.report.Breaks); n > 1 {
		s += fmt.Sprintf(" (and %d more, see --json)", n-1)
	}
	return s
}

// remedy depends on what broke first.
func (e *brokenLogError) remedy() string {
	switch e.report.Breaks[0].Reason {
	case anomaly.ReasonKey:
		return "compare the key with what the log's machine says (the .pub file beside the key); if it is right, give it as --key"
	case anomaly.ReasonAnchor:
		return "ask what happened to the log since the anchor was remembered; events up to an older anchor can still be checked with it"
	}
	return "believe nothing from there on; keep a copy of the directory, and compare with an anchor (--expect) from before"
}

func (a *app) auditVerify() *cobra.Command {
	var key, expect string
	cmd := &cobra.Command{Use: "verify DIR", Short: "Check a log's chain and signatures, offline",
		Long: "Check that nothing in the anomaly log in DIR was changed, moved, removed or cut since it was signed, with the\n" +
			"public key of who wrote it alone. The report ends in an anchor: keep it elsewhere, and give it as --expect the\n" +
			"next time, so that a log which was put back to an earlier state, or written anew, is found too.",
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			trusted, err := auditKey(key)
			if err != nil {
				return err
			}
			var anchor *anomaly.Anchor
			if expect != "" {
				at, err := anomaly.ParseAnchor(expect)
				if err != nil {
					return named("--expect", err)
				}
				anchor = &at
			}
			if err := isDir(args[0]); err != nil {
				return err
			}
			report, err := anomaly.Verify(cmd.Context(), args[0], trusted, anchor)
			if err != nil {
				return err
			}
			if a.json() {
				err = a.printJSON(report)
			} else {
				err = a.printReport(report, anchor)
			}
			if err == nil && !report.OK {
				err = &brokenLogError{report: report}
			}
			return err
		}}
	cmd.Flags().StringVar(&key, "key", "", "fingerprint of the key that signs the log, or a file with it or with the public key; required")
	cmd.Flags().StringVar(&expect, "expect", "", "an anchor SEQ:DIGEST that the log must hold")
	a.jsonFlag(cmd)
	return cmd
}

// named puts a flag's name on an error of its value.
func named(flag string, err error) error {
	var e *api.Error
	if errors.As(err, &e) {
		return &api.Error{Code: e.Code, Field: flag, Message: e.Message, Remedy: e.Remedy, Err: e.Err}
	}
	return err
}

func isDir(path string) error {
	st, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return &api.Error{Code: api.CodeNotFound, Field: "DIR", Message: "there is no directory " + path, Remedy: "name the directory of an anomaly log"}
	} else if err != nil {
		return &api.Error{Code: api.CodeInvalid, Field: "DIR", Message: "cannot read the log", Remedy: "run as who may read it", Err: err}
	}
	if !st.IsDir() {
		return api.Invalid("DIR", "name the directory that holds the file", path+" is a file")
	}
	return nil
}

// auditKey reads --key: a fingerprint, or a file with a fingerprint or public key.
func auditKey(s string) (sealed.Fingerprint, error) {
	const remedy = "give 64 hex digits, or the .pub file that lies beside the log's key on its machine"
	if s == "" {
		return sealed.Fingerprint{}, api.Invalid("--key", remedy, "without the key of who wrote the log nothing can be verified")
	}
	if f, err := sealed.ParseFingerprint(s); err == nil {
		return f, nil
	}
	st, err := os.Stat(s)
	if err != nil {
		return sealed.Fingerprint{}, api.Invalid("--key", remedy, fmt.Sprintf("%q is neither a fingerprint nor a file", s))
	}
	if !st.Mode().IsRegular() || st.Size() > 4096 {
		return sealed.Fingerprint{}, api.Invalid("--key", remedy, s+" is no file with a key")
	}
	b, err := os.ReadFile(s)
	if err != nil {
		return sealed.Fingerprint{}, &api.Error{Code: api.CodeInvalid, Field: "--key", Message: "cannot read the key", Remedy: remedy, Err: err}
	}
	text := strings.TrimSpace(string(b))
	if f, err := sealed.ParseFingerprint(text); err == nil {
		return f, nil
	}
	k, err := sealed.ParsePublicKeyText(text)
	if err != nil {
		return sealed.Fingerprint{}, api.Invalid("--key", remedy, s+" holds neither a fingerprint nor an SM2 public key in hex")
	}
	return k.Fingerprint(), nil
}

func (a *app) printReport(r *anomaly.Report, expect *anomaly.Anchor) error {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s %s\n", name+":", one(fmt.Sprintf(format, args...)))
	}
	if r.OK {
		line("log", "sound, of node %s", r.Node)
	} else {
		line("log", "BROKEN, of node %s", first(r.Node, "-"))
	}
	line("key", "%s", r.Key)
	line("events", "%d in %d segments", r.Events, r.Segments)
	if r.Events > 0 {
		line("from", "event %d, %s", r.FirstSeq, millis(r.FirstMs))
		line("to", "event %d, %s", r.LastSeq, millis(r.LastMs))
	}
	if r.PrunedSegment > 0 {
		line("pruned", "events up to %d (segment %d), by retention", r.PrunedSeq, r.PrunedSegment)
	}
	switch {
	case r.Unsigned > 0:
		line("unsigned", "the last %d events: these may have been changed or cut", r.Unsigned)
	case r.Events > 0:
		line("unsigned", "none")
	}
	if r.Torn > 0 {
		line("torn", "%d bytes at the end are half a record: the writer was killed, or is writing, or somebody cut", r.Torn)
	}
	if expect != nil && !slices.ContainsFunc(r.Breaks, func(b anomaly.Break) bool { return b.Reason == anomaly.ReasonAnchor }) {
		line("expected", "event %d is there as remembered", expect.Seq)
	}
	if r.Signed != nil && r.OK {
		line("anchor", "%s", r.Signed)
	}
	for _, x := range r.Breaks {
		line("broken", "%s", x.Error())
	}
	if _, err := a.stdout.Write([]byte(b.String())); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

func millis(ms int64) string { return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z") }

func (a *app) auditShow() *cobra.Command {
	var (
		kinds        []string
		since, until string
		function     string
		node         string
		follow       bool
		cluster      bool
	)
	cmd := &cobra.Command{Use: "show DIR | show --cluster", Short: "Print the events of a log, or of a cluster's logs",
		Long: "Print the events of the anomaly log in DIR, one to a line. The chain is checked and no signature: audit verify\n" +
			"says what the log is worth. With --cluster the logs of all nodes and of the coordinator are read through the\n" +
			"gateway; that is as true as the machines it comes over.",
		Args: usageArgs(func(cmd *cobra.Command, args []string) error {
			if cluster {
				return cobra.NoArgs(cmd, args)
			}
			return cobra.ExactArgs(1)(cmd, args)
		}),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := auditFilter(kinds, since, until, function, node, time.Now())
			if err != nil {
				return err
			}
			if cluster {
				return a.showCluster(cmd.Context(), f, follow)
			}
			if err := isDir(args[0]); err != nil {
				return err
			}
			events := anomaly.Read(cmd.Context(), args[0], f)
			if follow {
				events = anomaly.Follow(cmd.Context(), args[0], f, followEvery)
			}
			var broken *anomaly.Break
			for e, err := range events {
				var b *anomaly.Break
				switch {
				case errors.As(err, &b):
					a.notef("warning: %s", one(b.Error()))
					if broken == nil {
						broken = b
					}
				case follow && errors.Is(err, context.Canceled):
					return nil // interrupted by who watched
				case err != nil:
					return err
				default:
					if err := a.printEvent(&e); err != nil {
						return err
					}
				}
			}
			if broken != nil {
				return &brokenLogError{report: &anomaly.Report{Breaks: []anomaly.Break{*broken}}}
			}
			return nil
		}}
	fl := cmd.Flags()
	fl.StringSliceVar(&kinds, "kind", nil, "only these kinds; repeat, or separate by commas")
	fl.StringVar(&since, "since", "", "from then on: a time such as 2026-01-31T12:00:00Z, or how long ago, such as 2h")
	fl.StringVar(&until, "until", "", "before then: as --since")
	fl.StringVar(&function, "function", "", "only of this function")
	fl.StringVar(&node, "node", "", "only about this node")
	fl.BoolVar(&cluster, "cluster", false, "read the logs of the cluster through its gateway")
	fl.BoolVarP(&follow, "follow", "f", false, "go on with new events as they come")
	a.jsonFlag(cmd)
	if err := cmd.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions(anomaly.Kinds(), cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

func auditFilter(kinds []string, since, until, function, node string, now time.Time) (f anomaly.Filter, err error) {
	for _, name := range kinds {
		k, err := anomaly.ParseKind(name)
		if err != nil {
			return f, named("--kind", err)
		}
		f.Kinds = append(f.Kinds, k)
	}
	if f.Since, err = moment("--since", since, now); err != nil {
		return f, err
	}
	if f.Until, err = moment("--until", until, now); err != nil {
		return f, err
	}
	if function != "" {
		name, err := api.ParseFunctionName(function)
		if err != nil {
			return f, named("--function", err)
		}
		f.Function = string(name)
	}
	f.Node = node
	return f, nil
}

// moment reads a time, or how long ago it was.
func moment(flag, s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return time.Time{}, api.Invalid(flag, "give a time such as 2026-01-31T12:00:00Z, or how long ago, such as 90m", fmt.Sprintf("%q is neither", s))
	}
	return now.Add(-d), nil
}

func (a *app) printEvent(e *anomaly.Event) error {
	if a.json() {
		if err := json.NewEncoder(a.stdout).Encode(e); err != nil {
			return fmt.Errorf("write the log: %w", err)
		}
		return nil
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s  %-6d %-19s %s", millis(e.TimeMs), e.Seq, e.Kind, e.Node)
	if e.Code != "" {
		fmt.Fprintf(&b, "  %s", e.Code)
	}
	if e.Function != "" {
		fmt.Fprintf(&b, "  %s", api.FunctionName(e.Function).Short())
	}
	if !e.Revision.IsZero() {
		fmt.Fprintf(&b, "@%s", short(e.Revision.String()))
	}
	if e.Sandbox != "" {
		fmt.Fprintf(&b, "  %s", e.Sandbox)
	}
	names := make([]string, 0, len(e.Numbers))
	for n := range e.Numbers {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		fmt.Fprintf(&b, "  %s=%d", n, e.Numbers[n])
	}
	if _, err := fmt.Fprintln(a.stdout, one(b.String())); err != nil {
		return fmt.Errorf("write the log: %w", err)
	}
	return nil
}
