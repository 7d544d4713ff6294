package main

import (
	"net"
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

func TestImagesGoToTheFirstGatewayThatAnswers(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	up, down := "http://"+l.Addr().String(), "http://"+closed.Addr().String()
	for _, c := range []struct {
		list []string
		want string
	}{{[]string{up, down}, up}, {[]string{down, up}, up}, {[]string{down, down}, down}, {[]string{down}, down}, {[]string{":", up}, up}} {
		if got := answering(t.Context(), c.list); got != c.want {
			t.Errorf("%v: %s", c.list, got)
		}
	}
}
