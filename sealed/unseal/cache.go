package unseal

import (
	"bytes"
	"container/list"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/internal/keysched"
)

// CacheConfig bounds a Cache; see DefaultCacheConfig.
type CacheConfig struct {
	Size      int // grants, each about 1.4 KiB
	PerSender int // grants of one signing key
}

// DefaultCacheConfig is 1,024 grants, 32 per sender.
func DefaultCacheConfig() CacheConfig { return CacheConfig{Size: 1024, PerSender: 32} }

// Cache keeps opened grants, so that the messages after a grant's first cost no
// public-key operation. It holds no verdict that could age: key, name, revision,
// time and sender are checked again for every message. It is safe for concurrent
// use.
type Cache struct {
	cfg CacheConfig

	mu       sync.Mutex
	entries  map[sealed.Digest]*entry
	recent   list.List // of *entry, most recently used first
	bySender map[sealed.Fingerprint]*list.List
	swept    uint64 // when it was last looked for ended grants, unix milliseconds
}

// sweepEvery is how often, in milliseconds, a new grant pays for looking for
// ended ones.
const sweepEvery = 60_000

// entry is an opened grant. Whoever uses it holds a reference; the last one to
// let go wipes it.
type entry struct {
	digest      sealed.Digest
	grant       []byte // as it was received; what it says is public
	header      sealed.GrantHeader
	fingerprint sealed.Fingerprint // of the sender
	schedule    *keysched.Schedule
	refs        atomic.Int64

	all, own *list.Element // in Cache.recent and Cache.bySender; guarded by Cache.mu
}

func (e *entry) release() {
	if e != nil && e.refs.Add(-1) == 0 && e.schedule != nil {
		e.schedule.Wipe()
	}
}

// NewCache checks cfg.
func NewCache(cfg CacheConfig) (*Cache, error) {
	if cfg.Size < 1 || cfg.PerSender < 1 {
		return nil, fmt.Errorf("unseal: cache: size is %d and per sender %d, want 1 or more", cfg.Size, cfg.PerSender)
	}
	c := &Cache{cfg: cfg}
	c.reset()
	return c, nil
}

func (c *Cache) reset() {
	c.entries = make(map[sealed.Digest]*entry)
	c.bySender = make(map[sealed.Fingerprint]*list.List)
	c.recent.Init()
}

// get returns the entry of a grant with a reference, or nil. The digest is what a
// message claims of its grant and only finds the entry: that grant has to be the
// one whose digest it is, byte for byte, so an entry is that grant and no other.
func (c *Cache) get(digest sealed.Digest, grant []byte) *entry {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[digest]
	if e == nil || !bytes.Equal(e.grant, grant) {
		return nil
	}
	c.recent.MoveToFront(e.all)
	c.bySender[e.fingerprint].MoveToFront(e.own)
	e.refs.Add(1)
	return e
}

// put keeps e, of which the caller holds a reference of its own. A sender beyond
// its share loses its own least recent grant, never another's.
func (c *Cache) put(e *entry, nowMS uint64) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if nowMS >= c.swept+sweepEvery {
		c.expire(nowMS)
	}
	if c.entries[e.digest] != nil {
		return // somebody was faster
	}
	own := c.bySender[e.fingerprint]
	if own != nil && own.Len() >= c.cfg.PerSender {
		c.drop(own.Back().Value.(*entry))
	} else if len(c.entries) >= c.cfg.Size {
		c.drop(c.recent.Back().Value.(*entry))
	}
	own = c.bySender[e.fingerprint] // drop may have removed the list
	if own == nil {
		own = list.New()
		c.bySender[e.fingerprint] = own
	}
	e.refs.Add(1)
	e.all, e.own = c.recent.PushFront(e), own.PushFront(e)
	c.entries[e.digest] = e
}

func (c *Cache) drop(e *entry) {
	delete(c.entries, e.digest)
	c.recent.Remove(e.all)
	own := c.bySender[e.fingerprint]
	own.Remove(e.own)
	if own.Len() == 0 {
		delete(c.bySender, e.fingerprint)
	}
	e.release()
}

// forget removes the entry of a grant, if it is there.
func (c *Cache) forget(digest sealed.Digest) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entries[digest]; e != nil {
		c.drop(e)
	}
}

// Expire wipes the grants whose window ended before nowMS, in unix milliseconds.
// New grants cause the same now and then; call it where they may stop coming.
func (c *Cache) Expire(nowMS uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expire(nowMS)
}

func (c *Cache) expire(nowMS uint64) {
	c.swept = nowMS
	for _, e := range c.entries {
		if e.header.NotAfter < nowMS/1000 {
			c.drop(e)
		}
	}
}

// Len returns the number of grants kept.
func (c *Cache) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.entries)
}

// Clear wipes all entries: when a key retires or a policy changes. An entry that
// a message is being opened under is wiped when that is done.
func (c *Cache) Clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.entries {
		e.release()
	}
	c.reset()
}
