package network

import (
	"fmt"
	"testing"
)

// One sandbox attached, with a list and a published port, and detached.
func BenchmarkAttach(b *testing.B) {
	r := newRig(b)
	w := want("198.51.100.0/24:443/tcp", "203.0.113.0/24:80/tcp")
	w.Ports = []Port{{"tcp", 2700, 80}}
	p := r.sandbox()
	r.warm()
	for i := 0; b.Loop(); i++ {
		id := fmt.Sprint("bench-", i)
		if _, err := r.Attach(r.ctx, id, p.path, w); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		r.detach(id)
		b.StartTimer()
	}
}

func BenchmarkDetach(b *testing.B) {
	r := newRig(b)
	w := want("198.51.100.0/24:443/tcp", "203.0.113.0/24:80/tcp")
	w.Ports = []Port{{"tcp", 2700, 80}}
	p := r.sandbox()
	r.warm()
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		id := fmt.Sprint("bench-", i)
		if _, err := r.Attach(r.ctx, id, p.path, w); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		r.detach(id)
	}
}
