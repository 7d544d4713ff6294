package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/schedule"
)

// scheduleFlags are those of schedule put.
type scheduleFlags struct {
	cron, name, span string
	body             invokeFlags
	how              client.Later
	timeout          *time.Duration
}

const defaultSpan = "7d"

func (a *app) scheduleCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "schedule", Short: "Calls of sealed functions by the clock, sealed ahead", Args: unknownCommand,
		Long: "Nobody but a caller with a key can seal a call. So calls by the clock are sealed ahead, one for each tick,\n" +
			"and the cluster makes each at its time: it learns when, how large and whose they are, and no more.",
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(a.schedulePutCommand(), a.scheduleTopUpCommand(), a.scheduleListCommand(), a.scheduleResultsCommand(),
		&cobra.Command{Use: "remove NAME|ID", Short: "Forget a schedule with the ticks that are left of it", Args: usageArgs(cobra.ExactArgs(1)),
			RunE: func(cmd *cobra.Command, args []string) error { return a.removeSchedule(cmd.Context(), args[0]) }})
	return cmd
}

func (a *app) schedulePutCommand() *cobra.Command {
	var f scheduleFlags
	cmd := &cobra.Command{Use: "put FUNCTION", Short: "Seal a call for each tick to come, and have the cluster make them",
		Args: usageArgs(cobra.ExactArgs(1)), ValidArgsFunction: a.completeFunctions,
		RunE: func(cmd *cobra.Command, args []string) error { return a.putSchedule(cmd, args[0], &f) }}
	fl := cmd.Flags()
	fl.StringVar(&f.cron, "cron", "", `required: when, "*/5 * * * *", @hourly, @every 5m; in UTC, or after CRON_TZ=ZONE`)
	fl.StringVar(&f.name, "name", "", "name of the schedule, here (default the function's)")
	fl.StringVar(&f.span, "for", defaultSpan, "seal for so long, such as 12h or 30d")
	fl.StringVarP(&f.body.data, "data", "d", "", "the body of each call")
	fl.StringVar(&f.body.file, "data-file", "", "file with the body of each call, - for standard input")
	fl.StringArrayVarP(&f.body.headers, "header", "H", nil, "a header of the request, \"Name: value\"; repeat")
	fl.StringVarP(&f.body.method, "method", "X", http.MethodPost, "method of the request")
	fl.StringVar(&f.body.path, "path", "", "path below the function, beginning with /")
	fl.StringVar(&f.body.query, "query", "", "query of the request, without ?")
	fl.DurationVar(&f.how.MaxAge, "max-age", 0, "begin each call within this time after its tick or not at all (default: the most that the function allows)")
	fl.StringVar(&f.how.Callback, "callback", "", "URL to which the sealed results are posted")
	fl.StringVar(&f.how.Events, "events", "", "with --callback: as CloudEvents, structured or binary")
	fl.BoolVar(&f.how.Once, "once", false, "a result is forgotten when it was read")
	f.timeout = timeoutFlag(cmd, 5*time.Minute)
	a.trustFlag(cmd)
	return cmd
}

func (a *app) putSchedule(cmd *cobra.Command, function string, f *scheduleFlags) error {
	name, err := api.ParseFunctionName(function)
	if err != nil {
		return err
	}
	if f.cron == "" {
		return api.Invalid("--cron", `say when, such as --cron "*/5 * * * *" or --cron @hourly`, "it is missing")
	}
	path, err := a.scheduleFile("--name", first(f.name, name.Function()))
	if err != nil {
		return err
	}
	if _, err := os.Stat(path); err == nil {
		e := api.Errorf(api.CodeConflict, "there is a schedule %q already", first(f.name, name.Function()))
		e.Field, e.Remedy = "--name", "continue it with faasd-sec schedule top-up, remove it, or give this one another name"
		return e
	}
	span, err := parseSpan(f.span)
	if err != nil {
		return err
	}
	header, err := parseHeaders(f.body.headers)
	if err != nil {
		return err
	}
	if err := checkLater(&f.how); err != nil {
		return err
	}
	ctx, cancel, err := within(cmd.Context(), *f.timeout)
	if err != nil {
		return err
	}
	defer cancel()
	body, err := a.scheduleBody(ctx, cmd, f)
	if err != nil {
		return err
	}
	c, err := a.personal()
	if err != nil {
		return err
	}
	defer c.Close()
	req := client.Request{Method: strings.ToUpper(f.body.method), Path: f.body.path, Query: f.body.query, Header: header}
	s, err := c.NewAhead(name, f.cron, req, body, f.how)
	if err != nil {
		return err
	}
	now := time.Now()
	if err := a.sendTicks(ctx, c, s, path, now, now.Add(span), api.TicksNew); err != nil {
		// Refused: there is none. After any other error it may be there.
		switch api.CodeOf(err) {
		case api.CodeUnavailable, api.CodeDeadline, api.CodeInternal, api.CodeConflict:
			return err
		}
		return errors.Join(err, removeIfThere(path))
	}
	return nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// scheduleBody is the body of each call: unlike invoke it waits for no pipe.
func (a *app) scheduleBody(ctx context.Context, cmd *cobra.Command, f *scheduleFlags) ([]byte, error) {
	if f.body.file == "" && !cmd.Flags().Changed("data") {
		return nil, nil
	}
	r, err := a.invokeBody(ctx, cmd, "--data-file", &f.body)
	if err != nil {
		return nil, err
	}
	if c, ok := r.(io.Closer); ok {
		defer c.Close()
	}
	b, err := io.ReadAll(io.LimitReader(r, api.MaxTickBytes+1)) // what is more is refused when it is sealed
	if err != nil {
		return nil, fmt.Errorf("read the body: %w", err)
	}
	return b, nil
}

// sendTicks seals and sends. What opens the results is kept first: nobody else can.
func (a *app) sendTicks(ctx context.Context, c *client.Client, s *client.Ahead, path string, from, until time.Time, mode string) error {
	ticks, err := c.SealTicks(ctx, s, from, until)
	if err != nil {
		return err
	}
	if err := a.keepSchedule(c, s, path); err != nil {
		return err
	}
	st, err := c.PutTicks(ctx, s, ticks, mode)
	if api.CodeOf(err) == api.CodeConflict {
		// A coordinator may have stored it and lost its answer before the next was asked.
		if is, serr := c.Schedule(ctx, s.ID); serr == nil && is.Until == ticks.Last.UnixMilli() {
			st, err = is, nil
		}
	}
	if err != nil {
		return err
	}
	if a.json() {
		return a.printJSON(st)
	}
	fmt.Fprintf(a.stdout, "%s: %d ticks of %s are sealed, from %s to %s\n", scheduleName(path), st.Left, one(st.Function.Short()), at(st.Next), at(st.Until))
	if ticks.Capped {
		a.notef("fewer than asked for: at most %d ticks and %d MiB are kept, and none beyond the life of the function's key", client.MaxTicks, client.MaxTicksBytes>>20)
	}
	a.notef("it runs out then: faasd-sec schedule top-up %s goes on without a gap", scheduleName(path))
	return nil
}

func (a *app) keepSchedule(c *client.Client, s *client.Ahead, path string) error {
	b, err := c.MarshalAhead(s)
	if err != nil {
		return err
	}
	if err := replace(path, b); err != nil {
		return fmt.Errorf("keep the schedule: %w", err)
	}
	return nil
}

var scheduleNames = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

func (a *app) scheduleFile(field, name string) (string, error) {
	if !scheduleNames.MatchString(name) {
		return "", api.Invalid(field, "use 1 to 64 letters, digits, and - _ . inside; faasd-sec schedule list shows those that there are", fmt.Sprintf("%q is not a schedule's name", name))
	}
	return filepath.Join(a.configDir, "schedules", name+".json"), nil
}

func scheduleName(path string) string { return strings.TrimSuffix(filepath.Base(path), ".json") }

// parseSpan reads a duration that may be in days.
func parseSpan(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, derr := strconv.Atoi(days)
		d, err = time.Duration(n)*24*time.Hour, derr
	}
	if err != nil || d <= 0 || d > 400*24*time.Hour {
		return 0, api.Invalid("--for", "give a time such as 12h or 7d", fmt.Sprintf("%q is none", text))
	}
	return d, nil
}

// at writes a time in unix milliseconds.
func at(ms int64) string {
	if ms == 0 {
		return "-"
	}
	return time.UnixMilli(ms).UTC().Format(time.RFC3339)
}

// openSchedule reads a schedule that was put from here.
func (a *app) openSchedule(c *client.Client, name string) (*client.Ahead, string, error) {
	path, err := a.scheduleFile("NAME", name)
	if err != nil {
		return nil, "", err
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", &api.Error{Code: api.CodeNotFound, Field: "NAME", Err: err, Message: "no schedule " + name + " was put from here: what it takes is with who did",
			Remedy: "faasd-sec schedule list shows names; use the same --config-dir as then"}
	}
	if err != nil {
		return nil, "", err
	}
	s, err := c.UnmarshalAhead(b)
	return s, path, err
}

// savedSchedules are the clear parts of what was put from here, by id.
func (a *app) savedSchedules() (map[string]savedSchedule, error) {
	files, err := filepath.Glob(filepath.Join(a.configDir, "schedules", "*.json"))
	if err != nil {
		return nil, err
	}
	out := map[string]savedSchedule{}
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		info, err := client.ReadAheadInfo(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		out[info.ID] = savedSchedule{info, scheduleName(path)}
	}
	return out, nil
}

type savedSchedule struct {
	client.AheadInfo
	name string
}

func (a *app) scheduleTopUpCommand() *cobra.Command {
	var span string
	var replace bool
	cmd := &cobra.Command{Use: "top-up NAME", Short: "Seal more ticks of a schedule, or all of them anew",
		Long: "Go on with a schedule where its sealed ticks end, without a gap. With --replace the ticks to come are sealed\n" +
			"anew: what deploying the function again takes.",
		Args: usageArgs(cobra.ExactArgs(1))}
	cmd.Flags().StringVar(&span, "for", defaultSpan, "seal for so long, from where the ticks end; with --replace from now")
	cmd.Flags().BoolVar(&replace, "replace", false, "seal the ticks to come anew, for the function as it is deployed now")
	timeout := timeoutFlag(cmd, 5*time.Minute)
	a.trustFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		d, err := parseSpan(span)
		if err != nil {
			return err
		}
		ctx, cancel, err := within(cmd.Context(), *timeout)
		if err != nil {
			return err
		}
		defer cancel()
		c, err := a.personal()
		if err != nil {
			return err
		}
		defer c.Close()
		s, path, err := a.openSchedule(c, args[0])
		if err != nil {
			return err
		}
		st, err := c.Schedule(ctx, s.ID)
		if err != nil {
			return err
		}
		from, mode := topUpFrom(&st, replace, time.Now())
		if gap := time.Since(time.UnixMilli(st.Until)); st.Next == 0 && gap > 0 && !replace {
			a.notef("it ran out at %s: what was to be called since was not", at(st.Until))
		}
		return a.sendTicks(ctx, c, s, path, from, from.Add(d), mode)
	}
	return cmd
}

// topUpFrom is the time after which ticks are sealed. What replaces begins a little
// early: the gateway leaves out what it has made.
func topUpFrom(st *api.Schedule, replace bool, now time.Time) (time.Time, string) {
	if replace {
		from := now.Add(-time.Minute)
		if last := time.UnixMilli(st.Last); last.After(from) {
			from = last
		}
		return from, api.TicksReplace
	}
	if until := time.UnixMilli(st.Until); st.Next != 0 || until.After(now) {
		return until, api.TicksAppend
	}
	return now, api.TicksAppend
}

func (a *app) scheduleListCommand() *cobra.Command {
	return &cobra.Command{Use: "list", Short: "List schedules: yours, and those of your functions", Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.personal()
			if err != nil {
				return err
			}
			defer c.Close()
			list, err := c.Schedules(cmd.Context(), "")
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(list)
			}
			saved, err := a.savedSchedules()
			if err != nil {
				return err
			}
			t := newTable("NAME", "FUNCTION", "CRON", "NEXT", "UNTIL", "LEFT", "MADE", "MISSED", "REFUSED", "NOTE", "ID", "MARK")
			for _, s := range list {
				here := saved[s.ID]
				t.row(first(here.name, "-"), s.Function.Short(), first(here.Cron, "-"), at(s.Next), at(s.Until), fmt.Sprint(s.Left), fmt.Sprint(s.Made),
					fmt.Sprint(s.Missed), fmt.Sprint(s.Refused), scheduleNote(&s, time.Now()), s.ID, schedule.Mark(s.ID))
			}
			return t.print(a.stdout)
		}}
}

// scheduleNote says what its maker is to know of a schedule.
func scheduleNote(s *api.Schedule, now time.Time) string {
	switch {
	case s.Next == 0:
		return "ran out: top-up"
	case s.Stale > 0:
		return fmt.Sprintf("%d ticks stale: top-up --replace", s.Stale)
	case s.Code != "":
		return string(s.Code) + ": " + s.Message
	case time.UnixMilli(s.Until).Before(now.Add(24 * time.Hour)):
		return "runs out within a day: top-up"
	}
	return "-"
}

func (a *app) removeSchedule(ctx context.Context, name string) error {
	if !scheduleNames.MatchString(name) { // an id is one too
		return api.Invalid("NAME|ID", "use a name or an id that faasd-sec schedule list shows", fmt.Sprintf("%q is neither", name))
	}
	c, err := a.personal()
	if err != nil {
		return err
	}
	defer c.Close()
	saved, err := a.savedSchedules()
	if err != nil {
		return err
	}
	id, path := name, ""
	for _, s := range saved {
		if s.name == name || s.ID == name {
			id = s.ID
			if path, err = a.scheduleFile("NAME", s.name); err != nil {
				return err
			}
		}
	}
	// One that the gateway does not know any more is removed here.
	if err := c.RemoveSchedule(ctx, id); err != nil && (path == "" || api.CodeOf(err) != api.CodeNotFound) {
		return err
	}
	if path != "" {
		if err := removeIfThere(path); err != nil {
			return err
		}
	}
	if a.json() {
		return a.printJSON(id)
	}
	fmt.Fprintf(a.stdout, "removed %s\n", one(name))
	return nil
}

// noteSchedules tells of a function's schedules that were put from here.
func (a *app) noteSchedules(name api.FunctionName, revision string, line func(name, format string, args ...any)) error {
	saved, err := a.savedSchedules()
	if err != nil {
		return err
	}
	var list []savedSchedule
	for _, s := range saved {
		if s.Function == name && s.Gateway == strings.TrimRight(a.gatewayURL(""), "/") {
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(x, y savedSchedule) int { return strings.Compare(x.name, y.name) })
	for _, s := range list {
		note, next := "", s.Next(time.Now())
		switch {
		case s.Revision != revision:
			note = ", for a former revision: faasd-sec schedule top-up --replace " + s.name
		case next.IsZero():
			note = ", ran out: faasd-sec schedule top-up " + s.name
		}
		line("schedule", "%s, %s, put from here: next tick %s, sealed until %s%s", s.name, s.Cron, at(max(next.UnixMilli(), 0)), at(s.Until), note)
	}
	return nil
}

// noteStale tells who deployed a function of ticks that were sealed ahead for what was
// there before, his own and others'.
func (d *deployer) noteStale(ctx context.Context, done client.Deployed) {
	list, err := d.client.Schedules(ctx, done.Name)
	if err != nil {
		d.notef("whether ticks are sealed ahead for a former revision is not known: %v", err)
		return
	}
	saved, err := d.savedSchedules()
	if err != nil {
		d.notef("%v", err)
	}
	for _, s := range list {
		name := first(saved[s.ID].name, "NAME")
		switch {
		case s.Stale > 0:
			d.notef("%d ticks of schedule %s, by %s, are sealed for a former revision and will not be called once that is gone: who put them runs faasd-sec schedule top-up --replace %s",
				s.Stale, first(saved[s.ID].name, s.ID), short(s.Maker), name)
		case d.flags.rotate && s.Left > 0:
			d.notef("%d ticks of schedule %s are sealed to the former key, which is taken for another day: who put them runs faasd-sec schedule top-up --replace %s",
				s.Left, first(saved[s.ID].name, s.ID), name)
		}
	}
}
