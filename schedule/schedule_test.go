package schedule

import (
	"fmt"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

func TestTicksAreTheSameWhoeverAsks(t *testing.T) {
	from := time.Date(2026, 3, 1, 11, 58, 30, 0, time.UTC)
	for text, want := range map[string]string{
		"*/5 * * * *":                      "[12:00:00 12:05:00]",
		"@every 150s":                      "[12:00:00 12:02:30 12:05:00]",
		"@hourly":                          "[12:00:00]",
		"CRON_TZ=Asia/Shanghai 0 20 * * *": "[12:00:00]",
		"TZ=America/New_York 5 7 * * *":    "[12:05:00]",
		"0 0 * * *":                        "[]",
	} {
		s, err := Of(map[string]string{"topic": "other, cron-function", "schedule": text})
		if err != nil {
			t.Fatal(err)
		}
		for _, offset := range []time.Duration{0, 100 * time.Millisecond, 900 * time.Millisecond} {
			var got []string
			for _, tick := range s.Between(from.Add(offset), from.Add(7*time.Minute)) {
				got = append(got, tick.UTC().Format("15:04:05"))
			}
			if g := fmt.Sprint(got); g != want {
				t.Errorf("%s from %v: %s, want %s", text, offset, g, want)
			}
		}
	}
}

func TestFunctionsWithoutTopicOrScheduleAreNotCalled(t *testing.T) {
	for _, a := range []map[string]string{nil, {"topic": "cron-function"}, {"schedule": "* * * * *"}, {"topic": "x", "schedule": "* * * * *"}} {
		if s, err := Of(a); s != nil || err != nil {
			t.Errorf("%v: %v, %v", a, s, err)
		}
	}
}

func TestScheduleThatDoesNotParseIsNamed(t *testing.T) {
	for _, text := range []string{"", "x", "* * * *", "61 * * * *", "CRON_TZ=Nowhere/Else * * * * *", "@every x"} {
		_, err := Parse(text)
		e, ok := err.(*api.Error)
		if !ok || e.Field != "annotations.schedule" || e.Remedy == "" {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestCallIDNamesFunctionAndTick(t *testing.T) {
	tick := time.Unix(1_700_000_000, 5)
	if CallID("f.ns", tick) != CallID("f.ns", time.Unix(1_700_000_000, 0)) || CallID("f.ns", tick) == CallID("g.ns", tick) || CallID("f.ns", tick) == CallID("f.ns", tick.Add(time.Second)) {
		t.Error("ids")
	}
}
