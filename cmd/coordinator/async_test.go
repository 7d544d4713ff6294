package main

import (
	"strings"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
)

func TestBoundsOnSchedulesThatCannotBeNameTheirFlag(t *testing.T) {
	const quota = 2 << 30
	addresses := []string{"-cluster-advertise", "10.0.0.1:7443", "-gossip-advertise", "10.0.0.1:7945"}
	for _, c := range []struct{ args, names string }{
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
	} {
		o, err := parse(append(strings.Fields(c.args), addresses...))
		if err != nil {
			t.Fatal(err)
		}
		err = o.async.checkSchedules(quota)
		if c.names == "" && err != nil || c.names != "" && (api.CodeOf(err) != api.CodeInvalid || !strings.Contains(err.Error(), c.names)) {
			t.Errorf("%s: %v", c.args, err)
		}
	}
}
