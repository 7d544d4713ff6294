package node

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/runtime"
)

// counted is a runtime that counts what it is asked, but for the list of images,
// which the node asks for in its own time.
type counted struct {
	runtime.Runtime
	calls *atomic.Int64
}

func (c counted) Pull(ctx context.Context, ref, digest string) (runtime.Image, error) {
	c.calls.Add(1)
	return c.Runtime.Pull(ctx, ref, digest)
}

func (c counted) Create(ctx context.Context, s runtime.Spec) (runtime.Sandbox, error) {
	c.calls.Add(1)
	sb, err := c.Runtime.Create(ctx, s)
	if err != nil {
		return nil, err
	}
	return countedSandbox{sb, c.calls}, nil
}

func (c counted) CreateBlank(ctx context.Context, s runtime.BlankSpec) (runtime.Sandbox, error) {
	c.calls.Add(1)
	return c.Runtime.CreateBlank(ctx, s)
}

func (c counted) CanBind(img runtime.Image) error {
	c.calls.Add(1)
	return c.Runtime.CanBind(img)
}

// countedSandbox counts what an invocation could ask of a sandbox.
type countedSandbox struct {
	runtime.Sandbox
	calls *atomic.Int64
}

func (c countedSandbox) Info() runtime.Info { c.calls.Add(1); return c.Sandbox.Info() }

func (c countedSandbox) Usage(ctx context.Context) (runtime.Usage, error) {
	c.calls.Add(1)
	return c.Sandbox.Usage(ctx)
}

func (c countedSandbox) Thaw(ctx context.Context) error {
	c.calls.Add(1)
	return c.Sandbox.Thaw(ctx)
}

// lineCount counts what is logged.
type lineCount struct{ n *atomic.Int64 }

func (l lineCount) Enabled(context.Context, slog.Level) bool  { return true }
func (l lineCount) Handle(context.Context, slog.Record) error { l.n.Add(1); return nil }
func (l lineCount) WithAttrs([]slog.Attr) slog.Handler        { return l }
func (l lineCount) WithGroup(string) slog.Handler             { return l }

func TestWarmInvocationsAskNoRuntimeAndLogNothing(t *testing.T) {
	var calls, logged atomic.Int64
	w := newWorld(t, func(w *world) {
		w.log = lineCount{&logged}
		w.watched = func(r runtime.Runtime) runtime.Runtime { return counted{r, &calls} }
	})
	f, g := w.hosted("f"), w.gateway()
	if calls.Load() == 0 {
		t.Fatal("nothing is counted")
	}
	w.eventually("the start is logged", func() bool { return logged.Load() > 0 })
	g.post(f, w.message(f, 1000))
	before, said := calls.Load(), logged.Load()
	for range 100 {
		if a := g.post(f, w.message(f, 1000)); a.status != 200 || a.header.Get(api.HeaderStart) != "warm" {
			t.Fatalf("%d %s", a.status, a.Detail)
		}
		if status, _, body := w.invoke(f); status != 200 {
			t.Fatalf("%d %s", status, body)
		}
	}
	if n := calls.Load() - before; n != 0 {
		t.Errorf("200 warm invocations asked the runtime %d times", n)
	}
	if n := logged.Load() - said; n != 0 {
		t.Errorf("200 warm invocations logged %d lines", n)
	}
}
