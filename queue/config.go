package queue

import (
	"log/slog"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// Config sets up a Queue; see DefaultConfig.
type Config struct {
	ID     string // of this coordinator, unique in the cluster
	Prefix string // of all keys, ends with '/'

	LeaseTTL time.Duration // after which another takes over what a dead coordinator had; whole seconds
	Timeout  time.Duration // of one operation on the store

	MaxWaiting     int           // calls that wait or run, in all
	MaxWaitingEach int           // of these for the functions of one owner; 0 is three quarters of all
	PerFunction    int           // of one function that run at once, in the whole cluster
	Keep           time.Duration // for which results stay
	KeepDead       time.Duration // for which dead letters stay

	Plans PlanBounds // of calls that were sealed ahead

	Log *slog.Logger
	Now func() time.Time
}

// PlanBounds bound what is kept of calls that were sealed ahead.
type PlanBounds struct {
	Ticks int   // of one plan
	Parts int   // uploads that one plan may have ticks of
	Size  int64 // of the messages of one plan, in bytes
	Each  int   // plans of one maker, and of the functions of one owner
	Bytes int64 // likewise of all their messages
	Total int64 // bytes of all messages of the cluster
}

// DefaultPlanBounds leave the store the most of its room.
func DefaultPlanBounds() PlanBounds {
	return PlanBounds{Ticks: 10_000, Parts: 32, Size: 64 << 20, Each: 100, Bytes: 128 << 20, Total: 256 << 20}
}

// DefaultConfig is what a coordinator runs with unless told otherwise.
func DefaultConfig(id, prefix string, log *slog.Logger) Config {
	return Config{ID: id, Prefix: prefix + "async/", LeaseTTL: 10 * time.Second, Timeout: 5 * time.Second,
		MaxWaiting: 200_000, PerFunction: 64, Keep: 24 * time.Hour, KeepDead: 7 * 24 * time.Hour, Plans: DefaultPlanBounds(), Log: log, Now: time.Now}
}

func (c *Config) check() error {
	switch {
	case c.ID == "" || c.Prefix == "" || c.Log == nil || c.Now == nil:
		return api.Invalid("async", "start from DefaultConfig", "no id, prefix, logger or clock")
	case c.LeaseTTL < 2*time.Second || c.LeaseTTL%time.Second != 0:
		return api.Invalid("async.lease", "use whole seconds, 2 or more", c.LeaseTTL.String())
	case c.Timeout <= 0 || c.Keep <= 0 || c.KeepDead <= 0:
		return api.Invalid("async", "use positive durations", "one is not")
	case c.Plans.Ticks < 1 || c.Plans.Parts < 1 || c.Plans.Size < 1 || c.Plans.Each < 1 || c.Plans.Bytes < 1 || c.Plans.Total < 1:
		return api.Invalid("async.plans", "use positive bounds", "one is not")
	case c.MaxWaiting < 1 || c.MaxWaitingEach < 0 || c.PerFunction < 1:
		return api.Invalid("async", "use positive bounds", "one is not")
	}
	if c.MaxWaitingEach == 0 {
		c.MaxWaitingEach = (3*c.MaxWaiting + 3) / 4
	}
	return nil
}

// MaxInline is the most, in bytes, of a body that a record holds; larger ones are
// in the blob store.
const MaxInline = 64 << 10

// maxRecord bounds one record without its body, in bytes.
const maxRecord = 256 << 10
