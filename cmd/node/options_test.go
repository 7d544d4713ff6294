package main

import (
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/node"
)

func TestWhatANodeLendsIsReadFromFlags(t *testing.T) {
	o, err := parse([]string{"-advertise", "10.0.0.1:7480", "-ingress", "500M", "-egress", "2G", "-scratch", "50Gi", "-port-range", "30000-30999", "-pin-cores", "5,2-3", "-capacity-memory", "1Gi"})
	if err != nil {
		t.Fatal(err)
	}
	c := o.capacity
	if o.cores.String() != "2-3,5" || c.Cores != 3 {
		t.Errorf("cores %v, %d", o.cores, c.Cores)
	}
	if c.Ingress != 500e6 || c.Egress != 2e9 || c.Scratch != 50<<30 || c.Ports != 2000 || o.ports != (node.PortRange{Low: 30000, High: 30999}) {
		t.Errorf("%+v, ports %+v", c, o.ports)
	}
	if o, err = parse([]string{"-listen", "10.0.0.1:7480", "-capacity-memory", "1Gi"}); err != nil || o.capacity.Ingress|o.capacity.Egress|o.capacity.Scratch|o.capacity.Ports|o.capacity.Cores != 0 {
		t.Errorf("lent without a word: %+v, %v", o.capacity, err)
	}
	if _, err := parse([]string{"-capacity-memory", "1Gi"}); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("a node that nobody reaches: %v", err)
	}
	for _, bad := range [][]string{
		{"-ingress", "1Gi"}, {"-egress", "-1"}, {"-egress", "x"}, {"-scratch", "x"},
		{"-port-range", "30000"}, {"-port-range", "80-90"}, {"-port-range", "31000-30000"}, {"-port-range", "60000-70000"},
		{"-pin-cores", "3-2"}, {"-pin-cores", "all"}, {"-pin-cores", "1,1"},
		{"-labels", "zone=a,zone=b"}, {"-labels", "zone"}, {"-advertise", "0.0.0.0:7480"}, {"-advertise", "[::]:7480"}, {"-advertise", ":7480"},
	} {
		if _, err := parse(append([]string{"-capacity-memory", "1Gi", "-advertise", "10.0.0.1:7480"}, bad...)); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
