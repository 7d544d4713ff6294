package agent

import (
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// BenchmarkBecome is the agent's own part of a start, without processes and
// sockets: it verifies the descriptor, opens the key release, checks the keys,
// and makes all that requests and replies will need.
func BenchmarkBecome(b *testing.B) {
	w := newWorld(b, nil)
	bind := &api.Bind{Descriptor: w.signed, Image: w.image}
	ephemeral, err := unseal.NewKey(w.cfg.Random)
	if err != nil {
		b.Fatal(err)
	}
	st, err := statement(ephemeral.PublicKey(), w.cfg.Random, time.Now())
	if err != nil {
		b.Fatal(err)
	}
	release, err := w.sealRelease(st)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		n, err := newBinding(bind)
		if err != nil {
			b.Fatal(err)
		}
		f := newFunction(&w.cfg, n, nil, nil, nil)
		if err := n.takeKeys(&w.cfg, ephemeral, release); err != nil {
			b.Fatal(err)
		}
		if err := f.unlock(nil); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDescriptor is the part of it that needs no keys.
func BenchmarkDescriptor(b *testing.B) {
	w := newWorld(b, nil)
	bind := &api.Bind{Descriptor: w.signed, Image: w.image}
	for b.Loop() {
		if _, err := newBinding(bind); err != nil {
			b.Fatal(err)
		}
	}
}
