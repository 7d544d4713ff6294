package nbio

import (
	"errors"
	"os"
	"sync"
	"time"
)

// deadline is the deadline of one direction. A server moves both with every
// message, to a later time than before nearly always, and to tell the runtime each
// time would cost as much as the message's system call. So the runtime keeps the
// earlier one until that has passed, and is told the later one then.
type deadline struct {
	mu    sync.Mutex
	until time.Time // zero for none
	told  time.Time // what the runtime goes by, zero for none: never later than until
}

// set moves the deadline; tell tells the runtime.
func (d *deadline) set(t time.Time, tell func(time.Time) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if t.IsZero() || !d.told.IsZero() && !t.Before(d.told) {
		d.until = t
		return nil
	}
	if err := tell(t); err != nil {
		return err
	}
	d.until, d.told = t, t
	return nil
}

// early reports whether err, of a call that waited, is a time-out although the
// deadline lies ahead: then the runtime knows it now, and the call is to go on.
func (d *deadline) early(err error, tell func(time.Time) error) bool {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.until.IsZero() && !time.Now().Before(d.until) || tell(d.until) != nil {
		return false
	}
	d.told = d.until
	return true
}
