package runtimetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/runtime"
)

// Env is one machine with a runtime for the suite.
type Env struct {
	Runtime runtime.Runtime
	Image   runtime.Image // known to the runtime

	// Spec asks for a small sandbox with a new id and a socket directory of its
	// own, whose agent ends with 0 on SIGTERM.
	Spec func(t *testing.T) runtime.Spec
	// Create makes the sandbox of a spec, in whatever way is under test; nil is
	// Runtime.Create.
	Create func(ctx context.Context, spec runtime.Spec) (runtime.Sandbox, error)
	// Reopen closes the runtime and makes another on the same machine.
	Reopen func(t *testing.T) runtime.Runtime
	// Exit has the agent of a sandbox end with a code.
	Exit func(t *testing.T, s runtime.Sandbox, code uint32)
	// Deafen has it ignore SIGTERM.
	Deafen func(t *testing.T, s runtime.Sandbox)
	// Alive reports whether the agent of a sandbox answers within a moment.
	Alive func(t *testing.T, s runtime.Sandbox) bool
	// Launch starts a process that can be admitted and gives its pid on the host.
	Launch func(t *testing.T, s runtime.Sandbox) int
	// Launcher is the launcher of a blank, as its pid on the host.
	Launcher func(t *testing.T, s runtime.Sandbox) int
	// Hog has the process of the last Launch use more memory than is allowed,
	// Fork has it start more processes; either returns when that has happened.
	Hog, Fork func(t *testing.T, s runtime.Sandbox)
	// Foreign is a process of the host outside of every sandbox.
	Foreign int
}

// Factory makes an Env for one test and ends it with the test.
type Factory func(t *testing.T) Env

// patience is how long the suite waits for what must happen.
const patience = 20 * time.Second

// Run holds an implementation to the contract of runtime.Runtime.
func Run(t *testing.T, factory Factory) {
	for _, c := range []struct {
		name string
		test func(*testing.T, Env)
	}{
		{"CreateTellsWhatItMade", testCreate},
		{"BadSpecsAreRefusedAndLeaveNothing", testBadSpecs},
		{"AnIDIsTakenOnce", testTaken},
		{"ACanceledCreateLeavesNothing", testCanceled},
		{"ImagesAreListedUntilForgotten", testImages},
		{"TheExitOfTheAgentIsReportedOnce", testExit},
		{"RemoveIsGracefulAndIdempotent", testRemove},
		{"RemoveKillsWhoIgnoresIt", testDeaf},
		{"OnlyTheSandboxsOwnProcessesAreAdmitted", testAdmit},
		{"OOMKillsAreReportedAndTheAgentSurvives", testOOM},
		{"RefusedForksAreReported", testPIDs},
		{"RecoverGivesRunningSandboxesBack", testRecover},
		{"RecoverForgetsTheDead", testRecoverDead},
		{"ManyAtOnce", testMany},
		{"CloseLeavesSandboxesRunning", testClose},
		{"AFrozenSandboxStandsStillUntilThawed", testFreeze},
		{"AFrozenSandboxCanBeRemoved", testFrozenRemove},
		{"ABlankIsBoundOnceAndNotRecovered", testBlank},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, factory(t)) })
	}
}

// make makes a sandbox in the way under test.
func (e Env) make(ctx context.Context, spec runtime.Spec) (runtime.Sandbox, error) {
	if e.Create != nil {
		return e.Create(ctx, spec)
	}
	return e.Runtime.Create(ctx, spec)
}

func create(t *testing.T, e Env) (runtime.Sandbox, runtime.Spec) {
	t.Helper()
	spec := e.Spec(t)
	spec.Reserved = `{"of":"` + spec.ID + `"}`
	s, err := e.make(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return s, spec
}

// remove gives no grace: an agent that has only just started does not hear
// SIGTERM yet, which for PID 1 of a namespace means that it is lost.
func remove(t *testing.T, s runtime.Sandbox) {
	t.Helper()
	if err := s.Remove(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
}

// await reads events until one of a kind comes for a sandbox; others of that
// kind and sandbox must not have come before.
func await(t *testing.T, r runtime.Runtime, kind runtime.EventKind, id string) runtime.Event {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		select {
		case e, ok := <-r.Events():
			if !ok {
				t.Fatalf("events ended before %s of %s", kind, id)
			}
			if e.Kind == kind && e.ID == id {
				return e
			}
		case <-timer.C:
			t.Fatalf("no event %s of %s", kind, id)
		}
	}
}

func testCreate(t *testing.T, e Env) {
	spec := e.Spec(t)
	spec.Function, spec.Revision = "greet.team", "abcdef"
	before := time.Now().Add(-time.Second)
	s, err := e.make(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer remove(t, s)
	i := s.Info()
	if s.ID() != spec.ID || i.ID != spec.ID || i.Function != spec.Function || i.Revision != spec.Revision ||
		i.SocketDir != spec.SocketDir || i.Resources != spec.Resources {
		t.Errorf("info %+v does not match spec %+v", i, spec)
	}
	if i.PID <= 1 || i.UID == 0 || i.GID == 0 || i.CreatedAt.Before(before) {
		t.Errorf("pid, ids or time not set: %+v", i)
	}
	if _, err := s.Usage(t.Context()); err != nil {
		t.Error(err)
	}
	if n, err := s.OOMKills(t.Context()); err != nil || n != 0 {
		t.Errorf("OOM kills of a new sandbox: %d, %v", n, err)
	}
}

func testBadSpecs(t *testing.T, e Env) {
	for name, spoil := range map[string]func(*runtime.Spec){
		"no id":              func(s *runtime.Spec) { s.ID = "" },
		"id with a slash":    func(s *runtime.Spec) { s.ID = "a/../b" },
		"upper-case id":      func(s *runtime.Spec) { s.ID = "A" },
		"no cpu":             func(s *runtime.Spec) { s.Resources.CPU = 0 },
		"no memory":          func(s *runtime.Spec) { s.Resources.Memory = 0 },
		"negative memory":    func(s *runtime.Spec) { s.Resources.Memory = -1 },
		"no pids":            func(s *runtime.Spec) { s.Resources.PIDs = 0 },
		"tmp over memory":    func(s *runtime.Spec) { s.Resources.Tmp = s.Resources.Memory + 1 },
		"storage and tmp":    func(s *runtime.Spec) { s.Resources.Storage, s.Resources.Tmp = s.Resources.Memory, 1 },
		"negative storage":   func(s *runtime.Spec) { s.Resources.Storage = -1 },
		"mount on proc":      func(s *runtime.Spec) { s.Mounts = []runtime.Mount{{Tree: os.Stdin, Target: "/proc"}} },
		"mount of nothing":   func(s *runtime.Spec) { s.Mounts = []runtime.Mount{{Target: "/x"}} },
		"tmpfs on proc":      func(s *runtime.Spec) { s.Tmpfs = []runtime.Tmpfs{{Path: "/proc", Bytes: 1}} },
		"relative tmpfs":     func(s *runtime.Spec) { s.Tmpfs = []runtime.Tmpfs{{Path: "x", Bytes: 1}} },
		"tmpfs without size": func(s *runtime.Spec) { s.Tmpfs = []runtime.Tmpfs{{Path: "/x"}} },
		"unknown image":      func(s *runtime.Spec) { s.Image.Digest = "sha256:" + fmt.Sprintf("%064d", 0) },
		"no such agent":      func(s *runtime.Spec) { s.AgentPath = filepath.Join(t.TempDir(), "none") },
		"no socket dir":      func(s *runtime.Spec) { s.SocketDir = filepath.Join(s.SocketDir, "none") },
	} {
		good := e.Spec(t)
		bad := good
		spoil(&bad)
		if _, err := e.make(t.Context(), bad); err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		if e.Create != nil {
			continue // a blank that could not be bound took its directory along
		}
		// The socket directory is the caller's as long as there is no sandbox.
		if _, err := os.Stat(good.SocketDir); err != nil {
			t.Errorf("%s: the refused sandbox's socket directory: %v", name, err)
		}
	}
	if left, err := e.Runtime.Recover(t.Context()); err != nil || len(left) != 0 {
		t.Errorf("after refusals only: %d sandboxes, %v", len(left), err)
	}
}

func testTaken(t *testing.T, e Env) {
	s, spec := create(t, e)
	if _, err := e.make(t.Context(), spec); !errors.Is(err, &api.Error{Code: api.CodeConflict}) {
		t.Errorf("second Create of one id: %v, want a conflict", err)
	}
	remove(t, s)
	if err := os.MkdirAll(spec.SocketDir, 0o711); err != nil {
		t.Fatal(err)
	}
	again, err := e.make(t.Context(), spec)
	if err != nil {
		t.Fatalf("Create after Remove: %v", err)
	}
	remove(t, again)
}

func testCanceled(t *testing.T, e Env) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	spec := e.Spec(t)
	if _, err := e.make(ctx, spec); err == nil {
		t.Fatal("Create with a context that is over succeeded")
	}
	s, err := e.make(t.Context(), spec)
	if err != nil {
		t.Fatalf("the same sandbox afterwards: %v", err)
	}
	remove(t, s)
}

func testImages(t *testing.T, e Env) {
	listed := func() bool {
		t.Helper()
		l, err := e.Runtime.Images(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return slices.Contains(l, e.Image.Digest)
	}
	if !listed() {
		t.Error("an image that is there is not listed")
	}
	img, err := e.Runtime.Pull(t.Context(), "registry.invalid/x:latest", e.Image.Digest)
	if err != nil || img.Digest != e.Image.Digest {
		t.Errorf("Pull of what is there: %+v, %v", img, err)
	}
	if _, err := e.Runtime.Pull(t.Context(), "127.0.0.1:1/x", "sha256:"+fmt.Sprintf("%064d", 1)); err == nil {
		t.Error("Pull of what is nowhere succeeded")
	}
	for range 2 {
		if err := e.Runtime.Forget(t.Context(), e.Image.Digest); err != nil {
			t.Fatal(err)
		}
	}
	if listed() {
		t.Error("a forgotten image is listed")
	}
}

func testExit(t *testing.T, e Env) {
	s, spec := create(t, e)
	e.Exit(t, s, 7)
	if ev := await(t, e.Runtime, runtime.EventExit, spec.ID); ev.ExitCode != 7 || ev.At.IsZero() {
		t.Errorf("event %+v, want exit code 7", ev)
	}
	remove(t, s)
	select {
	case ev := <-e.Runtime.Events():
		t.Errorf("an event after the exit: %+v", ev)
	case <-time.After(50 * time.Millisecond):
	}
	if _, err := s.Usage(t.Context()); !errors.Is(err, runtime.ErrGone) {
		t.Errorf("Usage of a removed sandbox: %v, want ErrGone", err)
	}
}

func testRemove(t *testing.T, e Env) {
	s, spec := create(t, e)
	e.Launch(t, s) // only an agent that is up can obey
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if err := s.Remove(t.Context(), patience); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if ev := await(t, e.Runtime, runtime.EventExit, spec.ID); ev.ExitCode != 0 {
		t.Errorf("exit code %d of an agent that obeyed SIGTERM", ev.ExitCode)
	}
	if _, err := os.Stat(spec.SocketDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket directory of a removed sandbox: %v", err)
	}
}

func testDeaf(t *testing.T, e Env) {
	s, spec := create(t, e)
	e.Deafen(t, s)
	if err := s.Remove(t.Context(), 50*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if ev := await(t, e.Runtime, runtime.EventExit, spec.ID); ev.ExitCode != 137 {
		t.Errorf("exit code %d of an agent that was killed, want 137", ev.ExitCode)
	}
}

func testAdmit(t *testing.T, e Env) {
	s, _ := create(t, e)
	if err := s.AdmitLauncher(t.Context(), e.Foreign); !errors.Is(err, &api.Error{Code: api.CodeForbidden}) {
		t.Errorf("a foreign process: %v, want forbidden", err)
	}
	if err := s.AdmitLauncher(t.Context(), e.Launch(t, s)); err != nil {
		t.Error(err)
	}
	remove(t, s)
	if err := s.AdmitLauncher(t.Context(), e.Foreign); err == nil {
		t.Error("a removed sandbox admits a process")
	}
}

func testOOM(t *testing.T, e Env) {
	s, spec := create(t, e)
	defer remove(t, s)
	if err := s.AdmitLauncher(t.Context(), e.Launch(t, s)); err != nil {
		t.Fatal(err)
	}
	e.Hog(t, s)
	await(t, e.Runtime, runtime.EventOOM, spec.ID)
	if n, err := s.OOMKills(t.Context()); err != nil || n < 1 {
		t.Errorf("OOM kills: %d, %v", n, err)
	}
	e.Launch(t, s) // the agent still answers
}

func testPIDs(t *testing.T, e Env) {
	s, spec := create(t, e)
	defer remove(t, s)
	if err := s.AdmitLauncher(t.Context(), e.Launch(t, s)); err != nil {
		t.Fatal(err)
	}
	e.Fork(t, s)
	await(t, e.Runtime, runtime.EventPIDsLimit, spec.ID)
	e.Launch(t, s)
}

func testRecover(t *testing.T, e Env) {
	s, spec := create(t, e)
	if s.Info().Reserved != spec.Reserved {
		t.Errorf("kept %q, was given %q", s.Info().Reserved, spec.Reserved)
	}
	r := e.Reopen(t)
	found, err := r.Recover(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 || found[0].Info() != s.Info() {
		t.Fatalf("recovered %d sandboxes, want the one: %+v", len(found), s.Info())
	}
	if _, err := r.Create(t.Context(), spec); !errors.Is(err, &api.Error{Code: api.CodeConflict}) {
		t.Errorf("Create of a recovered id: %v, want a conflict", err)
	}
	if err := found[0].AdmitLauncher(t.Context(), e.Launch(t, found[0])); err != nil {
		t.Error(err)
	}
	e.Exit(t, found[0], 3)
	if ev := await(t, r, runtime.EventExit, spec.ID); ev.ExitCode != 3 {
		t.Errorf("exit code %d of a recovered sandbox, want 3", ev.ExitCode)
	}
	remove(t, found[0])
}

func testRecoverDead(t *testing.T, e Env) {
	s, spec := create(t, e)
	e.Exit(t, s, 1)
	await(t, e.Runtime, runtime.EventExit, spec.ID)
	r := e.Reopen(t)
	found, err := r.Recover(t.Context())
	if err != nil || len(found) != 0 {
		t.Fatalf("recovered %d sandboxes, %v; want none", len(found), err)
	}
	if _, err := os.Stat(spec.SocketDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket directory of a dead sandbox: %v", err)
	}
}

func testMany(t *testing.T, e Env) {
	const n = 6
	var wg sync.WaitGroup
	for range n {
		spec := e.Spec(t)
		wg.Go(func() {
			s, err := e.make(t.Context(), spec)
			if err != nil {
				t.Error(err)
				return
			}
			if err := s.Remove(t.Context(), 0); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	exits := make(map[string]bool)
	for range n {
		select {
		case ev := <-e.Runtime.Events():
			if ev.Kind != runtime.EventExit || exits[ev.ID] {
				t.Errorf("unexpected event %+v", ev)
			}
			exits[ev.ID] = true
		case <-time.After(patience):
			t.Fatalf("%d exits of %d were reported", len(exits), n)
		}
	}
}

func testClose(t *testing.T, e Env) {
	s, spec := create(t, e)
	for range 2 {
		if err := e.Runtime.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, open := <-e.Runtime.Events(); open {
		t.Error("an event after Close")
	}
	if _, err := e.make(t.Context(), e.Spec(t)); err == nil {
		t.Error("a closed runtime creates sandboxes")
	}
	e.Launch(t, s)
	r := e.Reopen(t)
	found, err := r.Recover(t.Context())
	if err != nil || len(found) != 1 || found[0].ID() != spec.ID {
		t.Fatalf("recovered %d sandboxes, %v; want %s", len(found), err, spec.ID)
	}
	remove(t, found[0])
}
