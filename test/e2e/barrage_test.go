package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
)

// tally counts what became of calls.
type tally struct {
	ok      int
	wrong   int
	by      map[string]int // node -> served
	cold    map[string]int // node -> of these, cold
	errors  map[api.Code]int
	example map[api.Code]string
	slowest time.Duration // of the calls that failed
	took    time.Duration
}

func (y *tally) String() string {
	s := fmt.Sprintf("%v: %d answered by %v, cold %v, %d wrong", y.took.Round(time.Millisecond), y.ok, y.by, y.cold, y.wrong)
	for code, n := range y.errors {
		s += fmt.Sprintf(", %d %s (such as %s)", n, code, y.example[code])
	}
	if y.slowest > 0 {
		s += fmt.Sprintf("; slowest failure %v", y.slowest)
	}
	return s
}

// barrage is calls made by several callers, each after its last was answered.
type barrage struct {
	began  time.Time
	cancel atomic.Bool
	wg     sync.WaitGroup
	mu     sync.Mutex
	tally  tally
}

func (m *machines) barrage(t *testing.T, fn api.FunctionName, callers int, d time.Duration) *tally {
	t.Helper()
	b := m.startBarrage(t, fn, callers)
	time.Sleep(d) // the length of the load, nothing is waited for
	return b.stop()
}

func (m *machines) startBarrage(t *testing.T, fn api.FunctionName, callers int) *barrage {
	b := &barrage{began: time.Now(), tally: tally{by: map[string]int{}, cold: map[string]int{}, errors: map[api.Code]int{}, example: map[api.Code]string{}}}
	for w := range callers {
		b.wg.Add(1)
		go func() {
			defer b.wg.Done()
			for n := 0; !b.cancel.Load(); n++ {
				want := bytes.Repeat([]byte(fmt.Sprintf("caller %d call %d ", w, n)), 50)
				began := time.Now()
				resp, got, err := m.invoke(t, fn, client.Request{Body: bytes.NewReader(want)})
				b.note(want, got, resp, err, time.Since(began))
				if err != nil {
					time.Sleep(20 * time.Millisecond) // as a caller would before it tries again
				}
			}
		}()
	}
	t.Cleanup(func() { b.stop() })
	return b
}

func (b *barrage) note(want, got []byte, resp *client.Response, err error, took time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	y := &b.tally
	switch {
	case err != nil:
		code := api.CodeOf(err)
		y.errors[code]++
		y.example[code] = err.Error()
		y.slowest = max(y.slowest, took)
	case resp.Failure() != "":
		y.errors[resp.Failure()]++
		y.example[resp.Failure()] = string(got)
		y.slowest = max(y.slowest, took)
	case resp.Status != http.StatusOK || !bytes.Equal(want, got):
		y.wrong++
	default:
		y.ok++
		y.by[resp.Meta.Node]++
		if fresh(resp.Meta.Start) {
			y.cold[resp.Meta.Node]++
		}
	}
}

func (b *barrage) served(node string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.tally.by[node]
}

func (b *barrage) ok() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.tally.ok
}

// stop lets the calls under way end.
func (b *barrage) stop() *tally {
	b.cancel.Store(true)
	b.wg.Wait()
	if b.tally.took == 0 {
		b.tally.took = time.Since(b.began)
	}
	return &b.tally
}
