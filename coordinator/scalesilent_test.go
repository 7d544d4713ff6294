package coordinator

import (
	"bytes"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// logged is what was logged.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) { l.mu.Lock(); defer l.mu.Unlock(); return l.b.Write(p) }

// silences are the lines that say that a coordinator does not tell what waits.
func (l *logged) silences() (lines []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.b.String()) {
		if strings.Contains(line, "count for no replicas until it says how many") {
			lines = append(lines, line)
		}
	}
	return lines
}

// quietly gives a world a log, and lets no one control in it.
func quietly(l *logged) func(*world) {
	return func(w *world) { w.lead, w.log = never, slog.New(slog.NewTextHandler(l, nil)) }
}

// looks has e look until the coordinator has been asked so many times more.
func (o *otherCoordinator) looks(t *testing.T, e *elsewhere, more int) {
	t.Helper()
	count := func() (n int) { o.set(func() { n = o.asked }); return n }
	deadline := time.Now().Add(30 * time.Second)
	for until := count() + more; count() < until; {
		if time.Now().After(deadline) {
			t.Fatal("it is not asked")
		}
		e.ask(t.Context())
		e.asks.Wait()
	}
}

// sum is what e knows of r.
func (e *elsewhere) sum() int {
	all := map[string]int{}
	e.addTo(all, time.Now())
	return all["r"]
}

// TestAnOlderCoordinatorIsNotedOnceAndCountsOnceItIsUpgraded asks one that answers
// 404, as releases do that tell nothing.
func TestAnOlderCoordinatorIsNotedOnceAndCountsOnceItIsUpgraded(t *testing.T) {
	var log logged
	w := newWorld(t, 0, quietly(&log))
	o := w.addCoordinator("coordinator-2")
	o.set(func() { o.older = true })
	e := newElsewhere(w.c)
	defer e.end()
	o.looks(t, e, 20)
	if lines := log.silences(); len(lines) != 1 || !strings.Contains(lines[0], "coordinator-2") {
		t.Errorf("after 20 looks: %q", lines)
	}
	if n := e.sum(); n != 0 {
		t.Errorf("%d calls of one that tells nothing", n)
	}
	o.set(func() { o.older = false })
	o.says(api.Waits{Revision: "r", Calls: 7})
	o.looks(t, e, 1)
	if n := e.sum(); n != 7 {
		t.Errorf("%d calls once it is upgraded", n)
	}
}

// TestGarbageForEverIsNotedOnceAndInFewWords has a coordinator answer with what it
// likes, and now and then with sense.
func TestGarbageForEverIsNotedOnceAndInFewWords(t *testing.T) {
	long := strings.Repeat("7", 1<<20)
	for name, garbage := range map[string]string{
		"a long name": `[{"revision":"` + long + `","calls":1}]`, "a long number": `[{"revision":"r","calls":` + long + `}]`,
		"no list": long, "lines": "[\n\n\n", "nothing": "",
	} {
		t.Run(name, func(t *testing.T) {
			var log logged
			w := newWorld(t, 0, quietly(&log))
			o := w.addCoordinator("coordinator-2")
			e := newElsewhere(w.c)
			defer e.end()
			for range 5 {
				o.set(func() { o.reply = []byte(garbage) })
				o.looks(t, e, 3)
				o.says(api.Waits{Revision: "r", Calls: 7})
				o.looks(t, e, 1)
				if n := e.sum(); n != 7 {
					t.Errorf("%d calls by its last word that made sense", n)
				}
			}
			if lines := log.silences(); len(lines) != 1 || len(lines[0]) > 1024 {
				t.Errorf("%d lines, the first of %d bytes: %.300s", len(lines), len(strings.Join(lines[:min(1, len(lines))], "")), lines)
			}
		})
	}
}

// TestASilenceThatLastsIsNotedAlsoSoonAfterAnother has one that is not noted at once.
func TestASilenceThatLastsIsNotedAlsoSoonAfterAnother(t *testing.T) {
	var log logged
	w := newWorld(t, 0, quietly(&log))
	o := w.addCoordinator("coordinator-2")
	e := newElsewhere(w.c)
	defer e.end()
	o.set(func() { o.broken = true })
	o.looks(t, e, 2)
	o.set(func() { o.broken = false })
	o.looks(t, e, 1)
	o.set(func() { o.broken = true })
	o.looks(t, e, 3)
	if lines := log.silences(); len(lines) != 1 {
		t.Errorf("two silences within a minute: %q", lines)
	}
	e.mu.Lock()
	word := e.said["coordinator-2"]
	word.last = word.last.Add(-waitsWarn)
	e.said["coordinator-2"] = word
	e.mu.Unlock()
	o.looks(t, e, 3)
	if lines := log.silences(); len(lines) != 2 {
		t.Errorf("a silence that lasts for a minute: %q", lines)
	}
}

// TestATermEndsWhileACoordinatorDribbles ends it while one sends its answer for ever,
// byte by byte.
func TestATermEndsWhileACoordinatorDribbles(t *testing.T) {
	var log logged
	w := newWorld(t, 0, quietly(&log))
	begun := make(chan struct{})
	var once sync.Once
	o := w.addCoordinator("coordinator-2")
	o.set(func() {
		o.serve = func(rw http.ResponseWriter, r *http.Request) {
			for range time.Tick(10 * time.Millisecond) {
				if _, err := rw.Write([]byte(" ")); err != nil || r.Context().Err() != nil {
					return
				}
				rw.(http.Flusher).Flush()
				once.Do(func() { close(begun) })
			}
		}
	})
	e := newElsewhere(w.c)
	e.ask(t.Context())
	<-begun
	over := make(chan struct{})
	go func() { defer close(over); e.end() }()
	select {
	case <-over:
	case <-time.After(waitsTimeout / 2):
		t.Error("the end of the term waits for it")
		<-over
	}
	if lines := log.silences(); len(lines) != 0 {
		t.Errorf("what was broken off here is noted as its fault: %q", lines)
	}
}
