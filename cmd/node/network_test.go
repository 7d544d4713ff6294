package main

import (
	"slices"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/network"
	"github.com/faasd-sec/faasd-sec/node"
)

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
