package e2e

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/manifest"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// drawn is one task of the mix, and how it ended.
type drawn struct {
	needs client.Needs
	works time.Duration

	id    string
	code  api.Code // empty for success
	node  string
	wrong string // why the end is none of those allowed
	took  time.Duration
	said  string // beside the code
	why   string // the placing of one that found no room
}

// mix draws tasks of random needs, out of some dozen kinds, so that some find a
// sandbox of their kind and others none.
type mix struct {
	r     *rand.Rand
	kinds []manifest.Needs
}

func newMix(seed uint64) *mix {
	x := &mix{r: rand.New(rand.NewPCG(seed, 1))}
	for range 30 {
		x.kinds = append(x.kinds, x.kind())
	}
	return x
}

func one[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

func (x *mix) kind() manifest.Needs {
	r := x.r
	n := manifest.Needs{
		CPUMillis: one[uint64](r, 0, 50, 200, 700), MemoryBytes: one[uint64](r, 0, 40<<20, 64<<20, 160<<20),
		StorageBytes: one[uint64](r, 0, 1<<20, 8<<20), PIDs: one[uint64](r, 0, 48, 96),
	}
	if r.IntN(3) == 0 { // a network has both directions, and ports need one
		n.IngressBPS, n.EgressBPS = one[uint64](r, 5e6, 60e6), one[uint64](r, 5e6, 60e6)
	}
	switch r.IntN(8) {
	case 0:
		n.Ports = []manifest.Port{{Protocol: manifest.TCP, Count: uint16(1 + r.IntN(3))}}
	case 1:
		n.Ports = []manifest.Port{{Protocol: manifest.UDP, Number: uint16(firstPort + r.IntN(3)), Count: 1}}
	}
	if len(n.Ports) > 0 && n.IngressBPS == 0 {
		n.IngressBPS, n.EgressBPS = 5e6, 5e6
	}
	if r.IntN(20) == 0 {
		n.AntiAffinity = manifest.ReplicasApart
	}
	return n
}

func (x *mix) task(t *testing.T) *drawn {
	r := x.r
	d := &drawn{works: time.Duration(r.IntN(250)) * time.Millisecond}
	if r.IntN(8) == 0 {
		d.works = 1500 * time.Millisecond
	}
	d.needs = client.Needs{Needs: x.kinds[r.IntN(len(x.kinds))], Priority: r.IntN(10)}
	for i := range d.needs.Task {
		d.needs.Task[i] = byte(r.Uint32())
	}
	d.id = d.needs.Task.String()
	if r.IntN(2) == 0 {
		d.needs.Retry = manifest.Retry{MaxAttempts: uint8(2 + r.IntN(3)), AfterNodeDeath: r.IntN(2) == 0}
		for _, c := range []api.Code{api.CodeStartFailed, api.CodeUnavailable} {
			if r.IntN(2) == 0 {
				d.needs.Retry.Codes = append(d.needs.Retry.Codes, string(c))
			}
		}
	}
	return d
}

// deadline is drawn as late as the task is sent.
func (x *mix) deadline() time.Time {
	switch x.r.IntN(5) {
	case 0:
		return time.Now().Add(time.Duration(300+x.r.IntN(3000)) * time.Millisecond)
	case 1, 2:
		return time.Now().Add(time.Duration(20+x.r.IntN(20)) * time.Second)
	}
	return time.Time{}
}

// ends are how a task may end here beside success. None of them is a defect of
// ours, nor a word about a task that was sent well.
var ends = map[api.Code]bool{
	api.CodeDeadline: true, api.CodeNoRoom: true, api.CodeBusy: true, api.CodeNodeLost: true, api.CodeUnavailable: true,
	api.CodeStartFailed: true, api.CodeReplay: true, api.CodeDraining: true, api.CodeFunctionCrashed: true,
	api.Code(sealed.CodeWindow): true,
}

// unrun are the ends that say that no function had the task.
var unrun = map[api.Code]bool{api.CodeNoRoom: true, api.CodeBusy: true, api.CodeUnavailable: true, api.CodeStartFailed: true, api.CodeDraining: true}

// stream sends tasks by several senders, each after its last has ended.
type stream struct {
	tasks []*drawn
	ended atomic.Int64
	wg    sync.WaitGroup
}

func (m *machines) send(t *testing.T, fn api.FunctionName, x *mix, total, senders int) *stream {
	s := &stream{}
	var mu sync.Mutex
	next := func() *drawn {
		mu.Lock()
		defer mu.Unlock()
		if len(s.tasks) == total {
			return nil
		}
		d := x.task(t)
		d.needs.Deadline = x.deadline()
		s.tasks = append(s.tasks, d)
		return d
	}
	for range senders {
		s.wg.Go(func() {
			for d := next(); d != nil && t.Context().Err() == nil; d = next() {
				m.runTask(t.Context(), fn, d)
				s.ended.Add(1)
			}
		})
	}
	return s
}

// runTask sends one task and notes its end.
func (m *machines) runTask(ctx context.Context, fn api.FunctionName, d *drawn) {
	// Twice what a task of these can take: the wait for room, and the exchange.
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	began := time.Now()
	resp, err := m.client.Invoke(ctx, fn, client.Request{Path: "/once", Query: fmt.Sprintf("ms=%d", d.works.Milliseconds()),
		Body: strings.NewReader(d.id), Needs: &d.needs})
	var body []byte
	if err == nil {
		body, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	d.took = time.Since(began)
	if api.CodeOf(err) == api.CodeNoRoom {
		p, perr := m.client.Placement(ctx, d.id)
		d.why = fmt.Sprintf("%+v, %v", p, perr)
	}
	switch {
	case ctx.Err() != nil:
		d.wrong = "it does not end"
	case err != nil:
		d.code, d.said = api.CodeOf(err), err.Error()
		if !ends[d.code] {
			d.wrong = err.Error()
		}
	case resp.Failure() != "":
		d.code = resp.Failure()
		if !ends[d.code] {
			d.wrong = string(body)
		}
	case resp.Status != http.StatusOK || string(body) != d.id:
		d.wrong = fmt.Sprintf("status %d: %s", resp.Status, body)
	default:
		d.node = resp.Meta.Node
	}
}

// past waits until n tasks have ended.
func (s *stream) past(t *testing.T, n int) {
	t.Helper()
	waitFor(t, 2*time.Minute, fmt.Sprintf("%d tasks to end", n), func() error {
		if k := s.ended.Load(); k < int64(n) {
			return fmt.Errorf("%d have", k)
		}
		return nil
	})
}
