package relay

import (
	"sync"
	"time"
)

// Callers are those that a server's exchanges are under way for. They are looked at
// by one timer for all, which is set while there are any: one for each exchange
// costs most of them more than their message. The zero value is ready for use.
type Callers struct {
	mu    sync.Mutex
	first *watch
	timer *time.Timer // nil before the first caller
	armed bool
	due   []*watch // of the timer alone: whom it looks at in this round
}

// add has w looked at from now on.
func (c *Callers) add(w *watch) {
	w.next = time.Now().Add(lookEvery)
	c.mu.Lock()
	defer c.mu.Unlock()
	if w.after = c.first; w.after != nil {
		w.after.before = w
	}
	c.first = w
	switch {
	case c.armed:
	case c.timer == nil:
		c.timer = time.AfterFunc(lookEvery, c.look)
	default:
		c.timer.Reset(lookEvery)
	}
	c.armed = true
}

// remove ends that.
func (c *Callers) remove(w *watch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w.before != nil {
		w.before.after = w.after
	} else {
		c.first = w.after
	}
	if w.after != nil {
		w.after.before = w.before
	}
	w.before, w.after = nil, nil
}

// look is the timer's: a round over those whose time has come.
func (c *Callers) look() {
	now := time.Now()
	c.mu.Lock()
	for w := c.first; w != nil; w = w.after {
		if !now.Before(w.next) {
			c.due = append(c.due, w)
		}
	}
	c.mu.Unlock()
	for _, w := range c.due { // not under mu: what is found out may end exchanges
		w.pause = w.look()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.due {
		w.next = now.Add(w.pause)
	}
	clear(c.due)
	c.due = c.due[:0]
	if c.first == nil {
		c.armed = false
		return
	}
	wait := lookEvery
	for w := c.first; w != nil; w = w.after {
		wait = min(wait, w.next.Sub(now))
	}
	c.timer.Reset(max(wait, lookAfter))
}
