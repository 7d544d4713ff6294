package coordinator

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/faasd-sec/faasd-sec/anomaly"
	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/schedule"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// gauges reads a metric by the value of one of its labels, "" where it has none.
func gauges(t *testing.T, reg *prometheus.Registry, name, label string) map[string]float64 {
	t.Helper()
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range all {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			key := ""
			for _, l := range m.GetLabel() {
				if l.GetName() == label {
					key = l.GetValue()
				}
			}
			out[key] = m.GetGauge().GetValue()
		}
	}
	return out
}

// codes are those of a schedule's events, in their order.
func (n *noted) codes(mark string) (codes []string) {
	for _, e := range n.events() {
		if e.Kind == anomaly.Schedule && e.Sandbox == mark {
			codes = append(codes, e.Code)
		}
	}
	return codes
}

func TestAScheduleThatEndsIsAnAnomalyAndAMetric(t *testing.T) {
	log, reg := &noted{}, prometheus.NewRegistry()
	w := asyncWorld(t, 1, func(w *world) {
		w.watching.Anomalies, w.reg = log, reg
		a := *w.async
		a.Schedules = DefaultSchedules()
		a.Schedules.Warn, a.Schedules.Metrics = time.Minute, 2
		w.async = &a
	})
	for id, from := range map[string]time.Duration{"short": 6 * time.Second, "long": 20 * time.Minute, "longer": 40 * time.Minute} {
		if a := w.putTicks(w.owner, id, "new", w.ticks(w.owner, "x", every(from, 3)...)); a.status != 200 {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	short, long := schedule.Mark("short"), schedule.Mark("long")
	w.eventually("it is said to end", func() bool { return slices.Equal(log.codes(short), []string{"ending"}) || len(log.codes(short)) > 1 })
	w.eventually("two have metrics of their own", func() bool { return len(gauges(t, reg, "faasd_sec_schedule_seconds_left", "schedule")) == 2 })
	if s := gauges(t, reg, "faasd_sec_schedule_seconds_left", "schedule"); s[long] < 19*60 || s[long] > 21*60 {
		t.Errorf("%v", s)
	}
	if n := gauges(t, reg, "faasd_sec_schedule_ticks_left", "schedule")[long]; n != 3 {
		t.Errorf("%v ticks are left", n)
	}
	if w := gauges(t, reg, "faasd_sec_schedule_warn_seconds", "schedule")[""]; w != 60 {
		t.Errorf("it warns %v s before", w)
	}
	w.eventuallyWithin(time.Minute, "and to have ended", func() bool { return slices.Equal(log.codes(short), []string{"ending", "ended"}) })
	if n, ok := gauges(t, reg, "faasd_sec_schedule_ticks_left", "schedule")[short]; n != 0 || !ok {
		t.Errorf("%v ticks are left, told %v", n, ok)
	}
	if n := gauges(t, reg, "faasd_sec_schedules_ended", "schedule")[""]; n != 1 {
		t.Errorf("%v have ended", n)
	}
	// What is continued is another matter, and others are none.
	if a := w.putTicks(w.owner, "short", "append", w.ticks(w.owner, "x", every(2*time.Second, 1)...)); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	w.eventually("it is said to end again", func() bool { return slices.Equal(log.codes(short), []string{"ending", "ended", "ending"}) })
	if c := log.codes(long); len(c) != 0 {
		t.Errorf("one with ticks left: %v", c)
	}
	for _, e := range log.events() {
		if e.Kind != anomaly.Schedule {
			continue
		}
		if err := e.Validate(); err != nil || e.Function != "f.ns" || strings.Contains(e.Sandbox, "short") {
			t.Errorf("%+v: %v", e, err)
		}
	}
}

func TestTicksThatAreNotMadeAreAnomalies(t *testing.T) {
	log := &noted{}
	w := asyncWorld(t, 1, func(w *world) { w.watching.Anomalies = log })
	w.deploy(3, func(d *sealed.Descriptor) { d.Decryption[0].NotBefore -= 3600 })
	if a := w.putTicks(w.owner, "s1", "new", w.ticks(w.owner, "x", slices.Concat(every(-4*time.Minute, 2), every(5*time.Second, 60))...)); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	mark := schedule.Mark("s1")
	w.eventually("two were missed", func() bool { return slices.Contains(log.codes(mark), "missed") })
	w.deploy(4, func(d *sealed.Descriptor) { d.Config.Labels = map[string]string{"new": "one"} })
	w.eventuallyWithin(time.Minute, "the others are refused", func() bool { return slices.Contains(log.codes(mark), "refused") })
	if n := len(slices.DeleteFunc(log.codes(mark), func(c string) bool { return c != "refused" })); n != 1 {
		t.Errorf("said %d times", n)
	}
}

func TestSettingsOfSchedulesAreChecked(t *testing.T) {
	for what, change := range map[string]func(*Schedules){
		"schedule-warn":        func(s *Schedules) { s.Warn = 0 },
		"schedule-uploads":     func(s *Schedules) { s.Uploads = 0 },
		"schedule-upload-time": func(s *Schedules) { s.UploadTime = time.Hour },
		"schedule-metrics":     func(s *Schedules) { s.Metrics = -1 },
	} {
		s := DefaultSchedules()
		if err := s.Check(); err != nil {
			t.Fatal(err)
		}
		change(&s)
		if err := s.Check(); api.CodeOf(err) != api.CodeInvalid || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
