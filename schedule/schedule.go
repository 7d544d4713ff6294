// Package schedule reads when a function is to be called by the clock, from the
// annotations that OpenFaaS's cron connector reads: topic with the value
// cron-function, and schedule.
//
// It promises that equal annotations have equal ticks, in every process: an id
// made of function and tick names one call, however many coordinators make it.
// Ticks are in UTC unless the schedule names a zone (CRON_TZ=Europe/Berlin 0 3 * * *).
// Not promised: anything about times a zone skips or repeats; there it does as
// robfig/cron does.
package schedule

import (
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/emmansun/gmsm/sm3"
	"github.com/robfig/cron/v3"

	"github.com/faasd-sec/faasd-sec/api"
)

// Annotations of a function that is called by the clock.
const (
	AnnotationTopic    = "topic"
	AnnotationSchedule = "schedule"
	Topic              = "cron-function"
)

// Schedule is when a function is called.
type Schedule struct {
	text  string
	ticks cron.Schedule
}

// Of reads a function's annotations. It is nil for a function that is not called
// by the clock.
func Of(annotations map[string]string) (*Schedule, error) {
	listed := false
	for s := range strings.SplitSeq(annotations[AnnotationTopic], ",") {
		listed = listed || strings.TrimSpace(s) == Topic
	}
	text, ok := annotations[AnnotationSchedule]
	if !listed || !ok {
		return nil, nil
	}
	return Parse(text)
}

// Parse reads a schedule: five fields, or one of @hourly, @every 5m and their
// like, perhaps after CRON_TZ=ZONE.
func Parse(text string) (*Schedule, error) {
	const remedy = `write five fields, such as "*/5 * * * *", or @hourly, @every 5m; CRON_TZ=ZONE before them names a time zone`
	full := strings.TrimSpace(text)
	if !strings.HasPrefix(full, "TZ=") && !strings.HasPrefix(full, "CRON_TZ=") {
		full = "CRON_TZ=UTC " + full
	}
	s, err := cron.ParseStandard(full)
	if err != nil {
		return nil, api.Invalid("annotations."+AnnotationSchedule, remedy, err.Error())
	}
	if every, ok := s.(cron.ConstantDelaySchedule); ok {
		// From a common start, or every process would have ticks of its own.
		return &Schedule{text: text, ticks: fixed(every.Delay)}, nil
	}
	return &Schedule{text: text, ticks: s}, nil
}

// fixed ticks at multiples of a duration since 1970.
type fixed time.Duration

// Next implements cron.Schedule.
func (f fixed) Next(t time.Time) time.Time {
	d := int64(time.Duration(f) / time.Second)
	return time.Unix((t.Unix()/d+1)*d, 0).UTC()
}

// maxTicks bounds one look: a schedule has no more than one a second.
const maxTicks = 1000

// Between are the ticks after from, up to and with to, the oldest first.
func (s *Schedule) Between(from, to time.Time) []time.Time {
	var out []time.Time
	for t := s.ticks.Next(from); !t.IsZero() && !t.After(to) && len(out) < maxTicks; t = s.ticks.Next(t) {
		out = append(out, t)
	}
	return out
}

// Next is the first tick after a time, zero for none.
func (s *Schedule) Next(after time.Time) time.Time { return s.ticks.Next(after) }

// CallID is the id of a function's call at a tick.
func CallID(name api.FunctionName, tick time.Time) string {
	sum := sm3.Sum(fmt.Appendf(nil, "faasd-sec/v1 schedule\x00%s\x00%d", name, tick.Unix()))
	return "cron-" + hex.EncodeToString(sum[:12])
}

// TickID is the id of the call that a schedule of calls sealed ahead has at a tick.
func TickID(schedule string, tick time.Time) string {
	sum := sm3.Sum(fmt.Appendf(nil, "faasd-sec/v1 tick\x00%s\x00%d", schedule, tick.UnixMilli()))
	return "tick-" + hex.EncodeToString(sum[:12])
}

// Mark stands for a schedule where others than its maker and its function's owner
// read: with its id they could ask for the results of its ticks.
func Mark(id string) string {
	sum := sm3.Sum(fmt.Appendf(nil, "faasd-sec/v1 schedule\x00%s", id))
	return "schedule-" + hex.EncodeToString(sum[:6])
}
