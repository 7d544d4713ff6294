package container

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/shim/shimtest"
	"github.com/faasd-sec/faasd-sec/shim/stage"
)

func TestMain(m *testing.M) { os.Exit(shimtest.Main(m)) }

func ptr[T any](v T) *T { return &v }

func parse(t testing.TB, s *specs.Spec) (*specs.Spec, error) {
	t.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return Parse(b)
}

func plan(t testing.TB, s *specs.Spec) *Plan {
	t.Helper()
	s, err := parse(t, s)
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewPlan(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// end kills a container and removes it.
func end(t testing.TB, c *Container) uint32 {
	t.Helper()
	if err := c.Signal(unix.SIGKILL); err != nil && !errors.Is(err, ErrExited) {
		t.Error(err)
	}
	code, err := c.Wait()
	if err != nil {
		t.Error(err)
	}
	if err := errors.Join(c.Groups.Remove(deadline(t)), c.Close()); err != nil {
		t.Error(err)
	}
	return code
}

// dryProgram makes the program of a plan without running it.
func dryProgram(t testing.TB, pl *Plan) error {
	t.Helper()
	p, err := stage.New()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	return pl.program(p, nil, nil)
}
