package coordinator

import (
	"bytes"
	"io"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/blob"
)

// A coordinator that was alone gets others beside it, and is alone again later: what
// it took before runs, and its results stay, also at a coordinator without its disk.
func TestLargeBodiesStayWhenACoordinatorGetsOthersBesideIt(t *testing.T) {
	var s *Stores
	w := asyncWorld(t, 1, func(w *world) {
		s = &Stores{Files: w.async.Blobs, Pieces: w.async.Queue.NewChunks(t.Context(), 8<<20, 64<<20)}
		w.async.Blobs = s
	})
	w.eventually("it is registered", w.async.Queue.Registered)
	msg := w.message(700<<10, time.Minute)
	send := func() string {
		t.Helper()
		a := w.later(msg)
		if a.status != 202 {
			t.Fatalf("%d %s %v", a.status, a.body, a.err)
		}
		return a.header.Get(api.HeaderCallID)
	}
	whole := func(id string) {
		t.Helper()
		if r := w.result(id); r.status != 200 || !bytes.Equal(r.body, msg) {
			t.Fatalf("%d, %d bytes back", r.status, len(r.body))
		}
	}
	id := send()
	whole(id)

	s.Several = true
	w.rest()
	w.eventually("files are in the store", func() bool {
		if _, err := s.Collect(t.Context(), 0, w.async.Queue.BlobUsed); err != nil {
			t.Fatal(err)
		}
		n, _, err := s.Files.(*blob.Dir).Usage()
		return err == nil && n == 0
	})
	whole(id)
	empty, err := blob.Open(filepath.Join(t.TempDir(), "blobs"), 8<<20)
	if err != nil {
		t.Fatal(err)
	}
	s.Files = empty // of another coordinator
	whole(id)
	msg = w.message(600<<10, time.Minute)
	id = send()
	whole(id)

	s.Several = false
	whole(id)
}

// failing refuses one body of those that it is given.
type failing struct {
	Bodies
	put atomic.Int32 // how many it was given
	one int32        // the one that it refuses, from 1
}

func (f *failing) Put(r io.Reader) (string, int64, func(), error) {
	if f.put.Add(1) == f.one {
		return "", 0, nil, api.Errorf(api.CodeUnavailable, "no majority")
	}
	return f.Bodies.Put(r)
}

func TestACallIsNotAcceptedWithoutItsLargeBody(t *testing.T) {
	w := asyncWorld(t, 1, func(w *world) { w.async.Blobs = &failing{Bodies: w.async.Blobs, one: 1} })
	if a := w.later(w.message(700<<10, time.Minute), api.HeaderCallID, "lost"); a.status != 503 || a.code != api.CodeUnavailable {
		t.Fatalf("%d %s %v", a.status, a.body, a.err)
	}
	if a := w.do("GET", "/v1/results/lost", "", nil); a.status != 404 {
		t.Fatalf("%d %s", a.status, a.body)
	}
}

func TestACallWhoseLargeResultCannotBeStoredIsAttemptedAgain(t *testing.T) {
	w := asyncWorld(t, 1, func(w *world) { w.async.Blobs = &failing{Bodies: w.async.Blobs, one: 2} })
	msg := w.message(700<<10, time.Minute)
	a := w.later(msg)
	if a.status != 202 {
		t.Fatalf("%d %s %v", a.status, a.body, a.err)
	}
	r := w.result(a.header.Get(api.HeaderCallID))
	if r.status != 200 || !bytes.Equal(r.body, msg) || r.header.Get(api.HeaderAttempts) != "2" {
		t.Fatalf("%d, %d bytes back, %v", r.status, len(r.body), r.header)
	}
}
