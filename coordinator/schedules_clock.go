package coordinator

import (
	"context"
	"errors"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/queue"
	"github.com/faasd-sec/faasd-sec/schedule"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// othersLook is how late a tick is before coordinators look at it whose it is not.
const othersLook = 3 * time.Second

// sealedClock hands in what was sealed ahead, each message at its tick. All
// coordinators do, and each tick is taken once.
func (c *Coordinator) sealedClock() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	ends := endings{}
	for {
		select {
		case <-tick.C:
		case <-c.life.Done():
			return
		}
		for _, p := range c.async.Queue.Due(time.Now(), othersLook) {
			if err := c.handIn(&p); err != nil && !errors.Is(err, queue.ErrFenced) && c.life.Err() == nil {
				c.log.Warn("scheduled call not made; tried again", "schedule", p.ID, "function", p.Function, "tick", time.UnixMilli(p.Cursor.Next), "err", err)
			}
		}
		c.tellEnds(ends, time.Now())
	}
}

// handIn takes the ticks of a plan whose time has come.
func (c *Coordinator) handIn(p *queue.Plan) error {
	ctx, cancel := context.WithTimeout(c.life, storeTimeout)
	defer cancel()
	for {
		now := time.Now()
		tick := time.UnixMilli(p.Cursor.Next)
		switch {
		case p.Cursor.Next == 0 || tick.After(now):
			return nil
		case tick.Before(now.Add(-catchUp)):
			if err := c.missed(ctx, p, now.Add(-catchUp).UnixMilli()); err != nil {
				return err
			}
			continue
		}
		if err := c.handInOne(ctx, p, tick, now); err != nil {
			return err
		}
	}
}

// handInOne takes one tick. What can be no call is not handed in: it would be a dead
// letter each time.
func (c *Coordinator) handInOne(ctx context.Context, p *queue.Plan, tick, now time.Time) error {
	message, err := c.async.Queue.Tick(ctx, p)
	if err != nil {
		return err
	}
	call, err := c.callOfTick(p, message, tick)
	if err == nil && now.UnixMilli() >= call.Expires {
		return c.missed(ctx, p, p.Cursor.Next)
	}
	if err == nil {
		err = c.async.Queue.Make(ctx, p, call, message)
		switch api.CodeOf(err) {
		case api.CodeConflict, api.CodeTooLarge:
		default:
			if err == nil {
				c.met.async.ticks.WithLabelValues("made").Inc()
				c.met.async.accepted.WithLabelValues(outcome(nil)).Inc()
			}
			return err
		}
	}
	before := p.Cursor.Why
	why := &queue.Failure{Code: api.CodeOf(err), Message: api.ProblemOf(err, "").Detail, At: now.UnixMilli()}
	if _, err := c.async.Queue.Pass(ctx, p, p.Cursor.Next, why); err != nil {
		return err
	}
	c.met.async.ticks.WithLabelValues("refused").Inc()
	if before == nil || before.Code != why.Code {
		c.log.Warn("ticks of a schedule are not made: what was sealed cannot be called; its maker replaces it (faasd-sec schedule top-up --replace)",
			"schedule", p.ID, "mark", schedule.Mark(p.ID), "function", p.Function, "maker", p.Maker, "tick", tick, "code", why.Code)
		c.scheduleAnomaly(p, "refused", 1, now)
	}
	return nil
}

// missed passes over ticks that nobody made in time.
func (c *Coordinator) missed(ctx context.Context, p *queue.Plan, until int64) error {
	n, err := c.async.Queue.Pass(ctx, p, until, nil)
	if err != nil {
		return err
	}
	c.met.async.ticks.WithLabelValues("missed").Add(float64(n))
	c.log.Warn("ticks of a schedule were missed: nobody made them in time", "schedule", p.ID, "mark", schedule.Mark(p.ID), "function", p.Function, "number", n)
	c.scheduleAnomaly(p, "missed", n, time.Now())
	return nil
}

// callOfTick makes a call of a tick's message, or says why it can be none.
func (c *Coordinator) callOfTick(p *queue.Plan, message []byte, tick time.Time) (queue.Call, error) {
	r, err := c.routeOf(p.Function)
	if err != nil {
		return queue.Call{}, err
	}
	if r.plain != nil {
		return queue.Call{}, plainFunction(r.name)
	}
	peeked, err := sealed.Peek(message)
	if err != nil {
		return queue.Call{}, api.Wrap(api.CodeInternal, err, "a stored tick does not parse")
	}
	r = r.sealedFor(peeked.Grant.Context)
	if err := r.takes(&peeked, tick); err != nil {
		return queue.Call{}, err
	}
	call := queue.Call{ID: schedule.TickID(p.ID, tick), Function: r.name, Owner: r.rec.Owner, Sender: p.Maker,
		Expires: int64(min(peeked.Message.Expires, 1<<62)), Retry: c.async.Retry, Deliver: p.Deliver}
	call.Body.Type, call.Body.Size = api.ContentTypeSealed, int64(len(message))
	return call, nil
}
