package queue

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/blob"
)

// largestBody is 32 MiB, or what FAASD_SEC_BODY_MIB says; 256 is what a coordinator
// takes unless told otherwise.
func largestBody(t *testing.T) int64 {
	t.Helper()
	text := os.Getenv("FAASD_SEC_BODY_MIB")
	if text == "" {
		return 32 << 20
	}
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil || n < 1 {
		t.Fatalf("FAASD_SEC_BODY_MIB: %q", text)
	}
	return n << 20
}

// watched is a stream that nobody holds as a whole; it looks at the live heap now
// and then while it passes.
type watched struct {
	io.Reader
	sum  hash.Hash
	n    int64
	heap uint64 // the most that there was
}

func watch(r io.Reader) *watched { return &watched{Reader: r, sum: sha256.New()} }

func (w *watched) Read(p []byte) (int, error) {
	const every = 8 << 20
	n, err := w.Reader.Read(p)
	w.sum.Write(p[:n])
	if w.n += int64(n); w.n/every != (w.n-int64(n))/every {
		w.heap = max(w.heap, liveHeap())
	}
	return n, err
}

func liveHeap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// passes stores a body through in, reads it through out, and has it collected. It
// returns by how much the live heap grew meanwhile.
func passes(t *testing.T, size int64, in, out interface {
	Put(io.Reader) (string, int64, func(), error)
	Get(string) (io.ReadCloser, error)
	Collect(context.Context, time.Duration, func(context.Context, string) (bool, error)) (int, error)
}) uint64 {
	t.Helper()
	nobody := func(context.Context, string) (bool, error) { return false, nil }
	before, began := liveHeap(), time.Now()
	sent := watch(io.LimitReader(rand.NewChaCha8([32]byte{1}), size))
	name, n, release, err := in.Put(sent)
	if err != nil || n != size {
		t.Fatalf("%d bytes, %v", n, err)
	}
	stored := time.Since(began)
	if n, err := out.Collect(t.Context(), 0, nobody); err != nil || n != 0 {
		t.Fatalf("a body that is held was collected: %d, %v", n, err)
	}
	r, err := out.Get(name)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got := watch(r)
	if n, err := io.Copy(io.Discard, got); err != nil || n != size || string(got.sum.Sum(nil)) != string(sent.sum.Sum(nil)) {
		t.Fatalf("%d bytes back, %v", n, err)
	}
	release()
	if n, err := out.Collect(t.Context(), 0, nobody); err != nil || n != 1 {
		t.Fatalf("%d collected, %v", n, err)
	}
	if _, err := out.Get(name); api.CodeOf(err) != api.CodeNotFound {
		t.Fatal(err)
	}
	grown := max(sent.heap, got.heap, before) - before
	t.Logf("%d MiB: stored in %s, all in %s, heap %.1f MiB more", size>>20, stored.Round(time.Millisecond), time.Since(began).Round(time.Millisecond), float64(grown)/(1<<20))
	return grown
}

func TestLargestBodyPassesThroughFilesInLittleMemory(t *testing.T) {
	size := largestBody(t)
	d, err := blob.Open(t.TempDir(), size)
	if err != nil {
		t.Fatal(err)
	}
	if grown := passes(t, size, d, d); grown > 4<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
}

// In pieces the members' logs keep the latest entries in memory, so that one which was
// away for a moment need not be sent everything: of each member no more than store's
// bound of them.
func TestLargestBodyPassesThroughThreeMembersInBoundedMemory(t *testing.T) {
	size := largestBody(t)
	var all [3]*Chunks
	for i, s := range threeStores(t) {
		etcd, prefix := s.Etcd()
		m := open(t, etcd, prefix, fmt.Sprintf("co-%d", i+1), func(c *Config) { c.LeaseTTL = 10 * time.Second })
		all[i] = m.NewChunks(context.WithoutCancel(t.Context()), size, 2*size)
	}
	const logged = (512 + 100) * chunkSize // store's bound, and etcd drops them by the hundred
	most := 3 * (uint64(min(size, logged)) + 32<<20)
	if grown := passes(t, size, all[0], all[1]); grown > most {
		t.Errorf("the heap grew by %d bytes, more than %d", grown, most)
	}
}
