package e2e

import (
	"crypto/rand"
	"errors"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/local"
)

// TestSealedTicksAreMadeOnceEach seals calls ahead for three coordinators, of which one
// is killed in the middle and comes back: each tick is one call, and its result opens.
func TestSealedTicksAreMadeOnceEach(t *testing.T) {
	c := up(t, 1, func(cfg *local.Config) { cfg.Coordinators = 3 })
	entries := c.through(t, c.Gateways())
	fn := c.deploy(t, "clock", queued)
	for _, e := range entries {
		waitFor(t, 20*time.Second, "it to serve", func() error { return e.call(t.Context(), fn) })
	}
	through := entries[1].client
	schedules := make([]*client.Ahead, 4) // of several at least one is the killed one's
	for i := range schedules {
		a, err := through.NewAhead(fn, "@every 2s", client.Request{Path: "/echo"}, []byte("tick of "+strconv.Itoa(i)), client.Later{})
		if err != nil {
			t.Fatal(err)
		}
		schedules[i] = a
		sendTicks(t, through, a, time.Now(), 16*time.Second, api.TicksNew)
	}
	time.AfterFunc(5*time.Second, func() {
		if err := c.Signal("coordinator", syscall.SIGKILL); err != nil {
			t.Error(err)
		}
	})
	for _, a := range schedules { // topped up while it runs: no gap, no tick twice
		sendTicks(t, through, a, a.Until, 10*time.Second, api.TicksAppend)
	}
	for i, a := range schedules {
		within(t, time.Minute, "its ticks are over", func() bool {
			s, err := through.Schedule(t.Context(), a.ID)
			return err == nil && s.Next == 0
		})
		s, err := through.Schedule(t.Context(), a.ID)
		ticks := a.Sealed(time.Time{}, time.Now().Add(time.Hour))
		if err != nil || s.Made != int64(len(ticks)) || s.Missed != 0 || s.Refused != 0 || len(ticks) < 12 {
			t.Errorf("%d ticks: %+v %v", len(ticks), s, err)
		}
		// As after another day's start of the command line.
		saved, err := through.MarshalAhead(a)
		if err != nil || strings.Contains(string(saved), "tick of") {
			t.Fatal(err, "or what was sealed is in the file")
		}
		if a, err = through.UnmarshalAhead(saved); err != nil {
			t.Fatal(err)
		}
		for j, tick := range ticks {
			if j > 0 && ticks[j-1].Sub(tick) != 2*time.Second {
				t.Errorf("a gap between %s and %s", tick, ticks[j-1])
			}
			within(t, time.Minute, "tick "+tick.String()+" has a result", func() bool {
				resp, err := through.TickResult(t.Context(), a, tick)
				if errors.Is(err, client.ErrNotYet) || api.CodeOf(err) == api.CodeUnavailable {
					return false
				}
				if api.CodeOf(err) == api.CodeReplay { // it ran, and its result went with the coordinator
					return true
				}
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				b, err := io.ReadAll(resp.Body)
				if err != nil || resp.Status != 200 || string(b) != "tick of "+strconv.Itoa(i) {
					t.Errorf("%s: %d %q %v", tick, resp.Status, b, err)
				}
				return true
			})
		}
	}
	t.Run("stale ones are not made, and a replacement is", func(t *testing.T) {
		a := schedules[0]
		sendTicks(t, through, a, time.Now(), time.Minute, api.TicksAppend)
		if _, err := c.tryDeploy(t, "clock", queued, func(d *client.Deployment) { d.Exec = 19 * time.Second }); err != nil {
			t.Fatal(err)
		}
		changed := time.Now().Add(time.Second) // by then all coordinators know
		within(t, time.Minute, "it says so", func() bool {
			s, err := through.Schedule(t.Context(), a.ID)
			return err == nil && s.Code == api.CodeStaleRevision && s.Stale == s.Left && s.Left > 0
		})
		before, err := through.Schedule(t.Context(), a.ID)
		if err != nil {
			t.Fatal(err)
		}
		sendTicks(t, through, a, time.Now(), 8*time.Second, api.TicksReplace)
		within(t, time.Minute, "what is new is made", func() bool {
			s, err := through.Schedule(t.Context(), a.ID)
			return err == nil && s.Next == 0 && s.Made >= before.Made+3 && s.Code == ""
		})
		dead, err := through.DeadLetters(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range dead {
			// One that was due just as the revisions changed may have been accepted before.
			if d.Code != api.CodeReplay && (d.Code != api.CodeStaleRevision || d.Arrived > changed.UnixMilli()) {
				t.Errorf("%+v", d)
			}
		}
	})
}

func sendTicks(t *testing.T, c *client.Client, a *client.Ahead, from time.Time, span time.Duration, mode string) {
	t.Helper()
	ticks, err := c.SealTicks(t.Context(), a, from, from.Add(span))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.PutTicks(t.Context(), a, ticks, mode); err != nil {
		t.Fatal(err)
	}
}

// TestScheduleByCommand goes through what somebody does with faasd-sec schedule, and
// looks for the data wherever it could have been left.
func TestScheduleByCommand(t *testing.T) {
	const canary = "canary-of-a-schedule-81c2-that-nobody-is-to-find-anywhere"
	c := up(t, 1)
	dir := c.configDir(t)
	if err := client.PinBroker(dir, c.gateway, c.Broker()); err != nil {
		t.Fatal(err)
	}
	c.keyring = client.NewKeyring(filepath.Join(dir, "functions", "default"), []byte("passphrase"), rand.Reader)
	fn := c.deploy(t, "report")
	within(t, 30*time.Second, "it serves", func() bool { return (&entry{client: c.client}).call(t.Context(), fn) == nil })
	command, must := c.commands(t, dir)
	says := func(out string, words ...string) {
		t.Helper()
		for _, w := range words {
			if !strings.Contains(out, w) {
				t.Errorf("no %q in\n%s", w, out)
			}
		}
	}
	for _, wrong := range [][]string{{"--cron", "often"}, {"--cron", "@hourly", "--for", "5 minutes"}, {"--cron", "@hourly", "--for", "1m", "--data", strings.Repeat("x", 70<<10)}} {
		if out, err := command(append([]string{"schedule", "put", "report"}, wrong...)...); err == nil {
			t.Errorf("%.60v was taken: %s", wrong, out)
		}
	}
	says(must("schedule", "put", "report", "--cron", "@every 1s", "--for", "10s", "--path", "/echo", "--data", canary), "ticks of report are sealed", "top-up report")
	if out, err := command("schedule", "put", "report", "--cron", "@every 1s"); err == nil {
		t.Errorf("a second one of the name: %s", out)
	}
	says(must("schedule", "top-up", "report", "--for", "5s"), "ticks of report are sealed")
	says(must("describe", "report"), "report, @every 1s, put from here")
	nowhere := func() {
		t.Helper()
		f, err := newFinder(forms("the data", canary))
		if err != nil {
			t.Fatal(err)
		}
		for _, place := range []string{dir, filepath.Join(c.State(), "coordinator"), filepath.Join(c.State(), "logs")} {
			files, _, err := f.tree(place, time.Time{}, nil, func(n needle, where string) { t.Errorf("%s, %s, is in %s", n.secret, n.form, where) })
			if err != nil || files == 0 {
				t.Errorf("%s: %d files, %v", place, files, err)
			}
		}
	}
	nowhere()
	within(t, time.Minute, "all ticks are made", func() bool { return strings.Contains(must("schedule", "list"), "ran out: top-up") })
	within(t, 20*time.Second, "that it ended is an anomaly, under the mark that the list shows", func() bool {
		for _, l := range c.anomalies(t, url.Values{"kind": {"schedule"}}) {
			if l.Code == "ended" && l.Function == string(fn) && l.Numbers["left"] == 0 && strings.Contains(must("schedule", "list"), l.Sandbox) {
				return true
			}
		}
		return false
	})
	says(must("audit", "show", "--cluster", "--kind", "schedule"), "ending", "ended", "schedule-")
	within(t, time.Minute, "their results open", func() bool {
		return strings.Count(must("schedule", "results", "report", "--last", "14", "--bodies"), canary) == 14
	})
	nowhere()
	says(must("schedule", "results", "report", "--last", "1"), "done", "200", "tick-")

	says(must("schedule", "put", "report", "--name", "hours", "--cron", "@hourly", "--for", "30d"), "hours: 720 ticks")
	file := filepath.Join(dir, "function.yml")
	text := "functions:\n  report:\n    image: test/report@" + c.pushTestImage(t, "test/report") + "\n    sealed: {upstream: unix, timeouts: {exec: 19s}}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	says(must("deploy", "-f", file), "720 ticks of schedule hours", "will not be called", "faasd-sec schedule top-up --replace hours")
	within(t, 30*time.Second, "it is known that they are stale", func() bool {
		return strings.Contains(must("schedule", "list"), "720 ticks stale: top-up --replace")
	})
	says(must("describe", "report"), "for a former revision: faasd-sec schedule top-up --replace hours")
	must("schedule", "top-up", "hours", "--replace", "--for", "12h")
	if out := must("schedule", "list"); strings.Contains(out, "stale") {
		t.Error(out)
	}
	says(must("schedule", "remove", "hours"), "removed hours")
	if out := must("schedule", "list"); strings.Contains(out, "hours") {
		t.Error(out)
	}
	if out, err := command("schedule", "results", "hours"); err == nil {
		t.Errorf("it is gone: %s", out)
	}
}
