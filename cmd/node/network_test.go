package main

import (
	"errors"
	"slices"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/network"
	"github.com/faasd-sec/faasd-sec/node"
)

// What a task may open is within what its node lets functions open, or its node is
// another one.
func TestTasksOpenNoMoreThanTheNodeLetsThem(t *testing.T) {
	reach := func(s string) network.Allow {
		a, err := api.ParseReach("test", s)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	n := &networks{allow: []network.Allow{reach("10.0.0.0/8:1-1000/tcp"), reach("192.0.2.7/32:53/udp")}}
	for _, c := range []struct {
		list []string
		ok   bool
	}{
		{nil, true}, {[]string{"10.3.0.0/16:443/tcp", "192.0.2.7/32:53/udp"}, true},
		{[]string{"10.3.0.0/16:443/tcp", "192.0.2.8/32:53/udp"}, false}, {[]string{"10.0.0.0/8:1-1001/tcp"}, false}, {[]string{"0.0.0.0/0:443/tcp"}, false},
	} {
		err := n.Examine(api.Needs{Allow: c.list})
		var e *api.Error
		if c.ok && err != nil || !c.ok && (!errors.As(err, &e) || e.Code != api.CodeNoRoom || e.Field != "needs.allow" || e.Remedy == "") {
			t.Errorf("%q: %v", c.list, err)
		}
	}
	if list, err := n.list(api.Needs{}); err != nil || !slices.Equal(list, n.allow) {
		t.Errorf("without a list: %v, %v", list, err)
	}
	if list, err := n.list(api.Needs{Allow: []string{"10.3.0.0/16:443/tcp"}}); err != nil || !slices.Equal(list, []network.Allow{reach("10.3.0.0/16:443/tcp")}) {
		t.Errorf("with one: %v, %v", list, err)
	}
}

func TestPortsLeadToTheirNumbersOrToTheFirstInside(t *testing.T) {
	got := inside(node.Fitted{
		Needs: api.Needs{Ports: []api.PortNeed{{Protocol: "tcp", Number: 30007, Count: 1}, {Protocol: "tcp", Count: 2}, {Protocol: "udp", Count: 1}}},
		Ports: []node.Port{{Protocol: "tcp", Number: 30009}, {Protocol: "tcp", Number: 30007}, {Protocol: "udp", Number: 30001}, {Protocol: "tcp", Number: 30002}},
	})
	want := []network.Port{
		{Protocol: "udp", Host: 30001, Sandbox: 8080}, {Protocol: "tcp", Host: 30002, Sandbox: 8080},
		{Protocol: "tcp", Host: 30007, Sandbox: 30007}, {Protocol: "tcp", Host: 30009, Sandbox: 8081},
	}
	if !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}
