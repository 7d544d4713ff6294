package main

import (
	"slices"
	"testing"

	"github.com/faasd-sec/faasd-sec/client"
)

func TestAWatchdogInTheImageRunsWhatFprocessSays(t *testing.T) {
	for name, c := range map[string]struct {
		mode, upstream string
		process, entry []string
		want           []string // what is executed, nil for the image's own
		fprocess       string
	}{
		"of-watchdog":              {"http", "", []string{"node", "index.js"}, []string{"/usr/bin/fwatchdog"}, nil, "node index.js"},
		"no watchdog":              {"http", "", []string{"node", "index.js"}, []string{"/bin/sh"}, []string{"node", "index.js"}, ""},
		"not known":                {"http", "", []string{"node"}, nil, []string{"node"}, ""},
		"a process per request":    {"serializing", "", []string{"cat"}, []string{"fwatchdog"}, []string{"cat"}, ""},
		"a handed socket":          {"http", "unix", []string{"serve"}, []string{"fwatchdog"}, []string{"serve"}, ""},
		"the watchdog by name":     {"http", "", []string{"fwatchdog"}, []string{"fwatchdog"}, []string{"fwatchdog"}, ""},
		"nothing said of fprocess": {"http", "", nil, []string{"fwatchdog"}, nil, ""},
	} {
		d := client.Deployment{Mode: c.mode, Upstream: c.upstream, Process: c.process}
		d.Bundle.Env = map[string]string{}
		behindWatchdog(&d, c.entry)
		if !slices.Equal(d.Process, c.want) || d.Bundle.Env["fprocess"] != c.fprocess {
			t.Errorf("%s: %q, fprocess %q", name, d.Process, d.Bundle.Env["fprocess"])
		}
	}
}
