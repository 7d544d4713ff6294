package main

import (
	"strings"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
)

func TestBoundsOnSchedulesThatCannotBeNameTheirFlag(t *testing.T) {
	flagsAreNamed(t, func(o *asyncOptions) error { return o.checkSchedules(2 << 30) }, []named{
		{"", ""},
		{"-schedule-ticks=100 -schedule-bytes=1000 -schedules-each-bytes=1000 -schedules-bytes=1000", ""},
		{"-schedule-ticks=0", "-schedule-ticks"},
		{"-schedule-parts=100", "-schedule-parts"},
		{"-schedule-bytes=268435456", "-schedule-bytes"},
		{"-schedules-each=0", "-schedules-each"},
		{"-schedules-each-bytes=536870912", "-schedules-each-bytes"},
		{"-schedules-bytes=2147483648", "-schedules-bytes"},
		{"-schedule-warn=-1h", "schedule-warn"},
		{"-schedule-upload-time=1h", "schedule-upload-time"},
	})
}

func TestBoundsOnAsynchronousCallsThatCannotBeNameTheirFlag(t *testing.T) {
	flagsAreNamed(t, (*asyncOptions).check, []named{
		{"", ""},
		{"-async-waiting-each=0 -async-min-wait=0", ""},
		{"-async-waiting=0", "-async-waiting"},
		{"-async-waiting-each=-1", "-async-waiting-each"},
		{"-async-workers=0", "-async-workers"},
		{"-async-each=0", "-async-each"},
		{"-async-attempts=0", "-async-attempts"},
		{"-async-max-body=0", "-async-max-body"},
		{"-async-max-body=9223372036854775807", "-async-max-body"},
		{"-async-keep=0", "-async-keep"},
		{"-async-keep-dead=-1s", "-async-keep-dead"},
		{"-async-max-age=0", "-async-max-age"},
		{"-async-min-wait=-1s", "-async-min-wait"},
		{"-async-max-wait=1ms", "-async-max-wait"},
	})
}

// named are arguments, and the flag that an error names, "" for no error.
type named struct{ args, names string }

func flagsAreNamed(t *testing.T, check func(*asyncOptions) error, cases []named) {
	t.Helper()
	addresses := []string{"-cluster-advertise", "10.0.0.1:7443", "-gossip-advertise", "10.0.0.1:7945"}
	for _, c := range cases {
		o, err := parse(append(strings.Fields(c.args), addresses...))
		if err != nil {
			t.Fatal(err)
		}
		err = check(&o.async)
		if c.names == "" && err != nil || c.names != "" && (api.CodeOf(err) != api.CodeInvalid || !strings.Contains(err.Error(), c.names)) {
			t.Errorf("%s: %v", c.args, err)
		}
	}
}
