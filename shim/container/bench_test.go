package container

import (
	"context"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/shim/shimtest"
)

func BenchmarkPlan(b *testing.B) {
	f := shimtest.New(b)
	s := f.Spec("sleep")
	for b.Loop() {
		plan(b, s)
	}
}

func BenchmarkCreateStartRemove(b *testing.B) {
	f := shimtest.New(b)
	for b.Loop() {
		p := plan(b, f.Spec("sleep"))
		c, err := Create(context.Background(), p)
		if err != nil {
			b.Fatal(err)
		}
		if err := c.Start(b.Context()); err != nil {
			b.Fatal(err)
		}
		if err := c.Signal(unix.SIGKILL); err != nil {
			b.Fatal(err)
		}
		_, err = c.Wait()
		if err := errors.Join(err, c.Groups.Remove(b.Context()), c.Close()); err != nil {
			b.Fatal(err)
		}
	}
}
