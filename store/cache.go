package store

import (
	"context"
	"errors"
	"maps"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/faasd-sec/faasd-sec/api"
)

// Snapshot is all functions at one moment. It is immutable: who receives one
// must change neither the map nor the records.
type Snapshot struct {
	Functions map[api.FunctionName]*Function
	Version   int64 // the store's revision; grows

	replaced chan struct{}
}

// Replaced is closed when a newer snapshot is there.
func (s *Snapshot) Replaced() <-chan struct{} { return s.replaced }

// Cache is a copy of the functions in memory, kept current by a watch. Reading
// takes no lock and allocates nothing, so each invocation may ask it. While
// the store is away it goes on answering with what it saw last.
type Cache struct {
	store *Store
	cur   atomic.Pointer[Snapshot]
	away  atomic.Int64 // unix nanoseconds since when the watch is broken, 0 if it is not
}

// NewCache reads all functions. Run keeps the copy current. Where the embedded
// member has no majority it reads what that member knows.
func (s *Store) NewCache(ctx context.Context) (*Cache, error) {
	c := &Cache{store: s}
	c.cur.Store(&Snapshot{replaced: make(chan struct{})})
	var err error
	if s.member == nil || s.Majority() == nil {
		if err = c.reload(ctx); err == nil {
			return c, nil
		}
	}
	if s.member == nil || s.cfg.Peers == nil || ctx.Err() != nil {
		return nil, err
	}
	s.cfg.Log.Warn("functions are those that this member knows, as the store has no majority", "error", err)
	if err := c.reload(ctx, clientv3.WithSerializable()); err != nil {
		return nil, err
	}
	return c, nil
}

// Get is the function of that name, or nil.
func (c *Cache) Get(n api.FunctionName) *Function { return c.cur.Load().Functions[n] }

// Lookup is Get for a name that is still in somebody's buffer; it is not copied.
func (c *Cache) Lookup(name []byte) *Function { return c.cur.Load().Functions[api.FunctionName(name)] }

// Snapshot is the newest picture.
func (c *Cache) Snapshot() *Snapshot { return c.cur.Load() }

// BehindSince is when the watch broke, or the zero time while it works.
func (c *Cache) BehindSince() time.Time {
	if ns := c.away.Load(); ns != 0 {
		return time.Unix(0, ns)
	}
	return time.Time{}
}

// Wait returns once the cache has seen version, as a write or deletion of a
// function returned it. It needs Run.
func (c *Cache) Wait(ctx context.Context, version int64) error {
	for {
		snap := c.cur.Load()
		if snap.Version >= version {
			return nil
		}
		select {
		case <-snap.replaced:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Run keeps the cache current until ctx ends, whose error it returns. After a
// broken watch, or one that fell behind a compaction, it reads everything anew.
func (c *Cache) Run(ctx context.Context) error {
	for {
		err := c.follow(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		// Falling behind a compaction is routine; anything else is trouble.
		if !errors.Is(err, rpctypes.ErrCompacted) {
			c.away.CompareAndSwap(0, time.Now().UnixNano())
			c.store.cfg.Log.Warn("watch of functions broke; reading again", "error", err)
			if err := sleep(ctx, firstPause); err != nil {
				return err
			}
		}
		if err := c.recover(ctx); err != nil {
			return err
		}
		c.away.Store(0)
	}
}

// Pauses between attempts to reach the store again.
const firstPause, mostPause = 50 * time.Millisecond, 2 * time.Second

// recover reloads until it succeeds; it fails only with ctx.
func (c *Cache) recover(ctx context.Context) error {
	for pause := firstPause; ; pause = min(2*pause, mostPause) {
		err := c.reload(ctx)
		if err == nil {
			return nil
		}
		c.away.CompareAndSwap(0, time.Now().UnixNano())
		c.store.cfg.Log.Warn("functions not read; the last picture stays", "again_in", pause, "error", err)
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// follow applies changes until the watch ends, and says why it did.
func (c *Cache) follow(ctx context.Context) error {
	// Its own context frees the watch's resources when this returns. A member
	// that lost its majority must not pretend that nothing changes.
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	s := c.store
	prefix := s.functionPrefix()
	watch := s.client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(c.cur.Load().Version+1))
	for res := range watch {
		if err := res.Err(); err != nil {
			return err
		}
		c.apply(prefix, res)
	}
	return errors.New("the watch was closed")
}

// apply publishes the next snapshot: one copy for all events of a response.
func (c *Cache) apply(prefix string, res clientv3.WatchResponse) {
	if len(res.Events) == 0 {
		return
	}
	old := c.cur.Load()
	next := maps.Clone(old.Functions)
	for _, e := range res.Events {
		name := string(e.Kv.Key[len(prefix):])
		if e.Type == clientv3.EventTypeDelete {
			delete(next, api.FunctionName(name))
			continue
		}
		c.add(next, name, e.Kv.Value, e.Kv.ModRevision)
	}
	// Not the header's revision: while a watcher catches up in batches that is
	// ahead of the events it has been given.
	c.publish(next, res.Events[len(res.Events)-1].Kv.ModRevision)
}

// reload reads everything and publishes it.
func (c *Cache) reload(ctx context.Context, opts ...clientv3.OpOption) error {
	next := map[api.FunctionName]*Function{}
	version, err := c.store.list(ctx, "functions", c.store.functionPrefix(), func(key string, value []byte, version int64) {
		c.add(next, key, value, version)
	}, opts...)
	if err != nil {
		return err
	}
	c.publish(next, version)
	return nil
}

// add puts a record into m. One that is damaged is left out, so that it takes
// no other function down with it; it answers as if it were not deployed.
func (c *Cache) add(m map[api.FunctionName]*Function, key string, value []byte, version int64) {
	f, err := parseFunction(key, value, version)
	if err != nil {
		c.store.cfg.Log.Error("function left out", "function", key, "error", err)
		delete(m, api.FunctionName(key))
		return
	}
	m[f.Name] = f
}

func (c *Cache) publish(m map[api.FunctionName]*Function, version int64) {
	old := c.cur.Swap(&Snapshot{Functions: m, Version: version, replaced: make(chan struct{})})
	close(old.replaced)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
