package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/runtime"
	"github.com/faasd-sec/faasd-sec/runtime/runtimetest"
)

// needBind ends a test of blanks on a machine that cannot bind them.
func needBind(t testing.TB, r runtime.Runtime) {
	t.Helper()
	if err := r.CanBind(runtime.Image{}); err != nil {
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

// blank makes a sandbox without a function whose launcher is admitted.
func (b *bench) blank(t testing.TB, r *Runtime, spec runtime.Spec) (runtime.Sandbox, *runtimetest.Agent) {
	t.Helper()
	needBind(t, r)
	s, err := r.CreateBlank(t.Context(), runtime.BlankSpec{ID: spec.ID, AgentPath: spec.AgentPath, SocketDir: spec.SocketDir})
	if err != nil {
		t.Fatal(err)
	}
	a := dial(t, spec.SocketDir)
	pid, err := a.Launcher()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.AdmitLauncher(t.Context(), pid); err != nil {
		t.Fatal(err)
	}
	return s, a
}

// tryBind makes a blank and binds it, or leaves nothing.
func (b *bench) tryBind(ctx context.Context, t testing.TB, r runtime.Runtime, spec runtime.Spec) (_ runtime.Sandbox, err error) {
	s, err := r.CreateBlank(ctx, runtime.BlankSpec{ID: spec.ID, AgentPath: spec.AgentPath, SocketDir: spec.SocketDir})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Remove(context.WithoutCancel(ctx), 0))
		}
	}()
	a := dial(t, spec.SocketDir)
	pid, err := a.Launcher()
	if err != nil {
		return nil, err
	}
	if err := s.AdmitLauncher(ctx, pid); err != nil {
		return nil, err
	}
	if err := s.Bind(ctx, spec); err != nil {
		return nil, err
	}
	i := s.Info()
	return s, a.Enter(i.UID, i.GID, spec.AllowInet)
}

// bind makes a blank and binds it.
func (b *bench) bind(t testing.TB, r *Runtime, spec runtime.Spec) (runtime.Sandbox, *runtimetest.Agent) {
	t.Helper()
	needBind(t, r)
	s, err := b.tryBind(t.Context(), t, r, spec)
	if err != nil {
		t.Fatal(err)
	}
	return s, dial(t, spec.SocketDir)
}

func TestABlankBecomesASandboxOfAnImage(t *testing.T) {
	b := need(t)
	r := b.open(t)
	spec := b.spec(t, r, b.basic(t, r))
	s, a := b.bind(t, r, spec)
	if err := a.Launch("/bin/fn", "x"); err != nil {
		t.Fatal(err)
	}
	ans, err := a.Wait("ls", "/", "/bin/fn", "/etc/passwd", "/tmp", "/proc/1", "/proc/kcore", "/dev/null", "/dev/shm", "/.faasd-sec/agent", "/run/faasd-sec", "/fn", "/var/openfaas/secrets")
	if err != nil {
		t.Fatal(err)
	}
	t.Log(ans.Output, ans.Status)
	remove := s.Remove(t.Context(), 0)
	if remove != nil {
		t.Fatal(remove)
	}
}

// BenchmarkBindToFirstOutput is from a blank in the pool to the first byte of a
// function that runs in it.
func BenchmarkBindToFirstOutput(b *testing.B) {
	for _, older := range []bool{false, true} {
		with := *need(b)
		with.shim, with.older = with.own, older
		b.Run(fmt.Sprintf("older=%v", older), func(b *testing.B) { bindToFirstOutput(b, &with) })
	}
}

func bindToFirstOutput(b *testing.B, bn *bench) {
	r := bn.open(b)
	img := bn.basic(b, r)
	bind, all := make([]float64, 0, b.N), make([]float64, 0, b.N)
	for b.Loop() {
		b.StopTimer()
		spec := bn.spec(b, r, img)
		s, a := bn.blank(b, r, spec)
		b.StartTimer()
		t := time.Now()
		if err := s.Bind(b.Context(), spec); err != nil {
			b.Fatal(err)
		}
		bind = append(bind, time.Since(t).Seconds()*1e3)
		i := s.Info()
		if err := a.Enter(i.UID, i.GID, false); err != nil {
			b.Fatal(err)
		}
		if err := a.Launch("/bin/fn", "say"); err != nil {
			b.Fatal(err)
		}
		if _, err := a.Wait("say"); err != nil {
			b.Fatal(err)
		}
		all = append(all, time.Since(t).Seconds()*1e3)
		b.StopTimer()
		if err := s.Remove(b.Context(), 0); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	slices.Sort(bind)
	slices.Sort(all)
	b.ReportMetric(bind[len(bind)/2], "bind-ms-median")
	b.ReportMetric(all[len(all)/2], "ms-median")
	b.ReportMetric(all[len(all)*99/100], "ms-p99")
}
