package coordinator

import (
	"context"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/queue"
	"github.com/faasd-sec/faasd-sec/schedule"
	"github.com/faasd-sec/faasd-sec/store"
)

// catchUp is how far back a coordinator looks for ticks that nobody made: while all
// were away, or when its clock was late. An id that is made of function and tick
// keeps others from being made twice.
const catchUp = 5 * time.Minute

// planned is a function's schedule, parsed once for each stored record.
type planned struct {
	rec  *store.Function
	when *schedule.Schedule // nil for none
}

// clock makes the calls of functions that have a schedule. All coordinators do, and
// each call is accepted once.
func (c *Coordinator) clock() {
	plans := map[api.FunctionName]planned{}
	last := time.Now().Add(-catchUp)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-c.life.Done():
			return
		}
		now := time.Now()
		if now.Before(last) { // a clock that was set back makes no tick again
			continue
		}
		functions := c.dep.Cache.Snapshot().Functions
		for name := range plans {
			if functions[name] == nil {
				delete(plans, name)
			}
		}
		whole := true
		for name, rec := range functions {
			if rec.Plain == nil {
				continue // nobody but its owner can seal a call to a sealed function
			}
			p, ok := plans[name]
			if !ok || p.rec != rec {
				p = planned{rec: rec}
				var err error
				if p.when, err = schedule.Of(rec.Plain.Annotations); err != nil {
					c.log.Warn("function is not called by the clock", "function", name, "err", err)
				}
				plans[name] = p
			}
			if p.when == nil {
				continue
			}
			from := last
			if deployed := time.Unix(rec.UpdatedAt, 0); from.Before(deployed) {
				from = deployed
			}
			for _, t := range p.when.Between(from, now) {
				if err := c.callAt(name, t); err != nil {
					whole = false
					if c.life.Err() == nil {
						c.log.Warn("scheduled call not made; tried again", "function", name, "tick", t, "err", err)
					}
				}
			}
		}
		if whole || now.Sub(last) > catchUp {
			last = now
		}
	}
}

// callAt accepts a function's call of a tick, unless it was accepted already.
func (c *Coordinator) callAt(name api.FunctionName, tick time.Time) error {
	r, err := c.routeOf(name)
	if err != nil {
		return err
	}
	retry, err := retryOf(r.rec.Plain.Annotations, c.async.Retry)
	if err != nil {
		return err
	}
	id := schedule.CallID(name, tick)
	call := queue.Call{ID: id, Function: name, Owner: tenant(r), Expires: tick.Add(c.async.MaxAge).UnixMilli(), Retry: retry, Method: "POST",
		Header: map[string][]string{"x-topic": {schedule.Topic}, "x-connector": {"cron-connector"}, lowerCallID: {id}, lowerTarget: {"/"}}}
	ctx, cancel := context.WithTimeout(c.life, storeTimeout)
	defer cancel()
	_, _, err = c.async.Queue.Accept(ctx, call, []byte{}, queue.Key{})
	if api.CodeOf(err) == api.CodeConflict {
		return nil // another coordinator was first
	}
	c.met.async.accepted.WithLabelValues(outcome(err)).Inc()
	return err
}

// The names of headers as stored calls have them.
const (
	lowerCallID = "x-call-id"
	lowerTarget = "x-faasd-sec-target"
)
