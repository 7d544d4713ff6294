package runtimetest

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/runtime"
)

func testFreeze(t *testing.T, e Env) {
	s, _ := create(t, e)
	defer remove(t, s)
	if !e.Alive(t, s) { // and listens, which it may not have done yet
		t.Fatal("the agent does not answer")
	}
	for range 2 { // both are idempotent
		if err := s.Freeze(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if e.Alive(t, s) {
		t.Error("a frozen agent answers")
	}
	for range 2 {
		if err := s.Thaw(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if !e.Alive(t, s) {
		t.Error("a thawed agent does not answer")
	}
}

func testFrozenRemove(t *testing.T, e Env) {
	s, spec := create(t, e)
	if err := s.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), 50*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	await(t, e.Runtime, runtime.EventExit, spec.ID)
	if err := s.Freeze(t.Context()); !errors.Is(err, runtime.ErrGone) {
		t.Errorf("Freeze of a removed sandbox: %v, want ErrGone", err)
	}
}

func testBlank(t *testing.T, e Env) {
	if err := e.Runtime.CanBind(e.Image); err != nil {
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatal(err)
		}
		t.Skipf("not on this machine: %v", err)
	}
	blank := func() (runtime.Sandbox, runtime.Spec) {
		t.Helper()
		spec := e.Spec(t)
		spec.Reserved = "kept for " + spec.ID
		s, err := e.Runtime.CreateBlank(t.Context(), runtime.BlankSpec{ID: spec.ID, AgentPath: spec.AgentPath, SocketDir: spec.SocketDir})
		if err != nil {
			t.Fatal(err)
		}
		return s, spec
	}
	s, spec := blank()
	if i := s.Info(); !i.Blank || i.Start != api.StartPooled || i.Function != "" || i.PID <= 1 {
		t.Errorf("info of a blank: %+v", i)
	}
	if err := s.Bind(t.Context(), spec); err == nil {
		t.Error("a blank was bound whose launcher nobody had seen")
	}
	remove(t, s)

	s, spec = blank()
	defer func() { remove(t, s) }() // the recovered one
	if err := s.AdmitLauncher(t.Context(), e.Launcher(t, s)); err != nil {
		t.Fatal(err)
	}
	if err := s.Bind(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	if i := s.Info(); i.Blank || i.Function != spec.Function || i.Revision != spec.Revision || i.Resources != spec.Resources || i.Reserved != spec.Reserved || i.UID == 0 {
		t.Errorf("info of a bound sandbox: %+v", i)
	}
	if err := s.Bind(t.Context(), spec); err == nil {
		t.Error("a sandbox was bound twice")
	}

	_, waiting := blank()
	r := e.Reopen(t)
	found, err := r.Recover(t.Context())
	if err != nil || len(found) != 1 || found[0].Info() != s.Info() {
		t.Fatalf("recovered %d sandboxes, %v; want the bound one alone", len(found), err)
	}
	s = found[0]
	if _, err := os.Stat(waiting.SocketDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket directory of a blank of an earlier life: %v", err)
	}
}
