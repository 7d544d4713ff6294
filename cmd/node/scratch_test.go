package main

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/node"
	"github.com/faasd-sec/faasd-sec/runtime"
	"github.com/faasd-sec/faasd-sec/scratch"
)

// mounted is a sandbox that takes one mount, or refuses.
type mounted struct {
	runtime.Sandbox
	got runtime.Mount
	err error
}

func (m *mounted) Mount(_ context.Context, mount runtime.Mount) error {
	m.got = mount
	return m.err
}

func TestScratchIsGivenAndTaken(t *testing.T) {
	o := options{state: t.TempDir()}
	o.capacity.Scratch = 1 << 30
	var deps node.Deps
	err := lendScratch(t.Context(), o, &deps)
	if errors.Is(err, scratch.ErrUnsupported) && os.Getenv("REQUIRE_ALL") != "1" {
		t.Skip(err)
	}
	if err != nil || len(deps.Fittings) != 1 {
		t.Fatal(deps.Fittings, err)
	}
	if free, err := deps.ScratchFree(); err != nil || free <= 0 {
		t.Errorf("free: %d, %v", free, err)
	}
	d := deps.Fittings[0]
	box := &mounted{}
	f := node.Fitted{ID: "a", Sandbox: box, Needs: api.Needs{Resources: api.Resources{Scratch: scratch.MinBytes}}}
	if err := d.Attach(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	if box.got.Target != runtime.ScratchPath || box.got.Tree == nil {
		t.Errorf("mounted %+v", box.got)
	}
	for range 2 {
		if err := d.Detach(t.Context(), "a"); err != nil {
			t.Error(err)
		}
	}
	box.err = errors.New("refused")
	if err := d.Attach(t.Context(), f); !errors.Is(err, box.err) {
		t.Errorf("a mount that is refused: %v", err)
	}
	f.Sandbox = struct{ runtime.Sandbox }{}
	if err := d.Attach(t.Context(), f); !errors.Is(err, runtime.ErrUnsupported) {
		t.Errorf("a runtime without mounts: %v", err)
	}
}
