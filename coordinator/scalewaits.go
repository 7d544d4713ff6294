package coordinator

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
)

const (
	waitsTimeout  = time.Second            // for another coordinator to say what waits there
	waitsPatience = 250 * time.Millisecond // that a round of the controller has for those that answered the last time
	waitsOld      = 2 * time.Second        // that a coordinator's last word counts while it does not answer
	waitsWarn     = time.Minute            // between two warnings of one coordinator that answers now and then only
)

// ServeWaits tells another coordinator how many calls of which revisions wait for
// room here. Its caller made sure that it is a coordinator that asks.
func (c *Coordinator) ServeWaits(ctx *fasthttp.RequestCtx) { c.reply(ctx, listWaits(c.waits())) }

// waits counts the calls that wait here for a replica, by the digest of the revision
// that is to serve them. As renew does it, those of a plain function's former
// revision are for the current one, and what was sealed for one will be refused.
func (c *Coordinator) waits() map[string]int {
	calls := map[string]int{}
	for of, n := range c.queue.waits() {
		r, err := c.routeOf(of.name)
		switch {
		case err != nil: // it was removed
		case r.beside(of.revision) != nil:
			calls[of.revision] += n
		case r.plain != nil:
			calls[r.hex] += n
		}
	}
	return calls
}

// listWaits is what is told of calls that wait, most of them first.
func listWaits(calls map[string]int) []api.Waits {
	list := make([]api.Waits, 0, len(calls))
	for revision, n := range calls {
		list = append(list, api.Waits{Revision: revision, Calls: n})
	}
	slices.SortFunc(list, func(a, b api.Waits) int {
		return cmp.Or(cmp.Compare(b.Calls, a.Calls), strings.Compare(a.Revision, b.Revision))
	})
	return list[:min(len(list), api.MaxWaits)]
}

// parseWaits reads what another coordinator told.
func parseWaits(b []byte) (map[string]int, error) {
	var list []api.Waits
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("what waits: %w", err)
	}
	if len(list) > api.MaxWaits {
		return nil, api.Invalid("waits", fmt.Sprintf("name at most %d revisions", api.MaxWaits), fmt.Sprint(len(list)))
	}
	calls := make(map[string]int, len(list))
	for _, w := range list {
		if _, twice := calls[w.Revision]; twice || w.Revision == "" || len(w.Revision) > revisionSize || w.Calls < 1 || w.Calls > maxTold {
			return nil, api.Invalid("waits", fmt.Sprintf("name each revision once, with 1 to %d calls", maxTold), fmt.Sprintf("%d calls of a name of %d bytes", w.Calls, len(w.Revision)))
		}
		calls[w.Revision] = w.Calls
	}
	return calls, nil
}

const (
	maxTold      = 1 << 20 // what is believed of one revision: no gateway has as many callers
	revisionSize = 64      // of a digest as hex
	maxLogged    = 256     // bytes of what another coordinator answered instead
)

// elsewhere is what waits for room in the other coordinators, by the last word of
// each. It belongs to the controller, for one term.
//
// Who does not answer is not waited for again until it does, and what it said
// before counts for waitsOld after it was asked, no longer: a coordinator that
// died, or was cut off, holds no replicas with the calls that it had.
type elsewhere struct {
	c    *Coordinator
	life context.Context
	stop context.CancelFunc
	asks sync.WaitGroup

	mu   sync.Mutex
	said map[string]word // by coordinator
}

// word is what one coordinator said last.
type word struct {
	at     time.Time // when it was asked
	calls  map[string]int
	asking bool      // a question is under way
	silent bool      // the last question had no answer
	warned bool      // of this silence
	last   time.Time // warning of any
}

func newElsewhere(c *Coordinator) *elsewhere {
	e := &elsewhere{c: c, said: map[string]word{}}
	e.life, e.stop = context.WithCancel(c.life)
	return e
}

// end breaks off the questions under way.
func (e *elsewhere) end() {
	e.stop()
	e.asks.Wait()
}

// ask asks the others, and returns once those have answered that did so the last
// time, or after waitsPatience.
func (e *elsewhere) ask(ctx context.Context) {
	others := e.c.otherCoordinators(e.c.dep.Mesh.Snapshot())
	ctx, cancel := context.WithTimeout(ctx, waitsPatience)
	defer cancel()
	answered, awaited := make(chan struct{}, len(others)), 0
	there := map[string]bool{}
	for _, v := range others {
		there[v.Meta.ID] = true
		begun, silent := e.begin(v.Meta.ID)
		if !begun {
			continue
		}
		if !silent {
			awaited++
		}
		p := e.c.others.get(v)
		e.asks.Go(func() {
			e.askOne(p)
			if !silent {
				answered <- struct{}{}
			}
		})
	}
	e.forget(there)
	for ; awaited > 0; awaited-- {
		select {
		case <-answered:
		case <-ctx.Done():
			return
		}
	}
}

// begin notes that a coordinator is about to be asked, unless it is being asked.
func (e *elsewhere) begin(id string) (begun, silent bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	w := e.said[id]
	if w.asking {
		return false, w.silent
	}
	w.asking = true
	e.said[id] = w
	return true, w.silent
}

// askOne asks one coordinator.
func (e *elsewhere) askOne(p *peer) {
	ctx, cancel := context.WithTimeout(e.life, waitsTimeout)
	defer cancel()
	at := time.Now()
	b, err := e.c.ask(ctx, p, http.MethodGet, api.GatewayPathWaits, nil)
	var calls map[string]int
	if err == nil {
		calls, err = parseWaits(b)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	w := e.said[p.id]
	w.asking = false
	switch {
	case err == nil:
		w = word{at: at, calls: calls, last: w.last}
	case e.life.Err() != nil: // it was broken off here
	default:
		w.silent = true
		if now := time.Now(); !w.warned && now.Sub(w.last) >= waitsWarn {
			w.warned, w.last = true, now
			text := err.Error()
			e.c.log.Warn("calls that wait at another coordinator count for no replicas until it says how many", "coordinator", p.id, "err", text[:min(len(text), maxLogged)])
		}
	}
	e.said[p.id] = w
}

// forget drops the words of those that are members no more, once they count for
// nothing.
func (e *elsewhere) forget(there map[string]bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	maps.DeleteFunc(e.said, func(id string, w word) bool { return !there[id] && !w.asking && !w.counts(time.Now()) })
}

// counts reports whether what was said is young enough.
func (w word) counts(now time.Time) bool { return now.Sub(w.at) < waitsOld }

// addTo adds what the others said to calls, by revision.
func (e *elsewhere) addTo(calls map[string]int, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, w := range e.said {
		if !w.counts(now) {
			continue
		}
		for revision, n := range w.calls {
			calls[revision] += n
		}
	}
}

// waiting counts the calls that wait, here and elsewhere. It is asked for after a
// census: a call that found its slot in between is in neither, rather than in both
// and worth two replicas.
func (s *scaler) waiting(ctx context.Context) map[string]int {
	if s.other != nil {
		s.other.ask(ctx)
	}
	calls := s.c.waits()
	if s.other != nil {
		s.other.addTo(calls, time.Now())
	}
	return calls
}

// with is the census, and what waits.
func (c *census) with(waiting map[string]int) *census {
	all := *c
	all.waiting = waiting
	return &all
}
