package containerd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/runtime/runtimetest"
)

// The two benchmarks measure the same thing, an image that is local to the
// first byte from its first process: ours with user namespace, seccomp,
// idmapped layers and limits read back, and containerd's client with its own
// defaults. Quote their ratio from one run.

// spread reports the middle and the tail of durations.
func spread(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	b.ReportMetric(ms(took[len(took)/2]), "ms-median")
	b.ReportMetric(ms(took[len(took)*99/100]), "ms-p99")
	b.ReportMetric(0, "ns/op")
}

func BenchmarkCreateToFirstByte(b *testing.B) {
	s := need(b)
	r := s.open(b)
	img := s.basic(b, r)
	var took []time.Duration
	for b.Loop() {
		spec := s.spec(b, r, img)
		begin := time.Now()
		box, err := r.Create(b.Context(), spec)
		if err != nil {
			b.Fatal(err)
		}
		ping(b, spec.SocketDir)
		took = append(took, time.Since(begin))
		if err := box.Remove(b.Context(), 0); err != nil {
			b.Fatal(err)
		}
	}
	spread(b, took)
}

func BenchmarkRemove(b *testing.B) {
	s := need(b)
	r := s.open(b)
	img := s.basic(b, r)
	var took []time.Duration
	for b.Loop() {
		box, err := r.Create(b.Context(), s.spec(b, r, img))
		if err != nil {
			b.Fatal(err)
		}
		begin := time.Now()
		if err := box.Remove(b.Context(), 0); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(begin))
	}
	spread(b, took)
}

func ping(b *testing.B, dir string) {
	ctx, cancel := context.WithTimeout(b.Context(), 10*time.Second)
	defer cancel()
	a, err := runtimetest.Dial(ctx, dir)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := a.Do(runtimetest.Command{Do: "ping"}); err != nil {
		b.Fatal(err)
	}
	if err := a.Close(); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkBareContainerdToFirstByte(b *testing.B) {
	s := need(b)
	r := s.open(b)
	held := s.basic(b, r)
	ctx := b.Context()
	img, err := r.client.GetImage(ctx, held.Ref)
	if err != nil {
		b.Fatal(err)
	}
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		id := fmt.Sprintf("bare%d", i)
		dir := filepath.Join(r.cfg.RunDir, "sock", id)
		if err := os.MkdirAll(dir, 0o711); err != nil {
			b.Fatal(err)
		}
		mounts := []specs.Mount{
			{Destination: api.AgentRunDir, Type: "bind", Source: dir, Options: []string{"rbind", "rw"}},
		}
		begin := time.Now()
		c, err := r.client.NewContainer(ctx, id, client.WithNewSnapshot(id, img),
			client.WithNewSpec(oci.WithImageConfig(img), oci.WithProcessArgs("/bin/fn"), oci.WithMounts(mounts)))
		if err != nil {
			b.Fatal(err)
		}
		task, err := c.NewTask(ctx, cio.NullIO)
		if err != nil {
			b.Fatal(err)
		}
		if err := task.Start(ctx); err != nil {
			b.Fatal(err)
		}
		ping(b, dir)
		took = append(took, time.Since(begin))
		exit, err := task.Wait(ctx)
		if err != nil {
			b.Fatal(err)
		}
		if err := task.Kill(ctx, syscall.SIGKILL); err != nil {
			b.Fatal(err)
		}
		<-exit
		if _, err := task.Delete(ctx); err != nil {
			b.Fatal(err)
		}
		if err := c.Delete(ctx, client.WithSnapshotCleanup); err != nil {
			b.Fatal(err)
		}
	}
	spread(b, took)
}
