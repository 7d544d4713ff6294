package sealed

import (
	"container/list"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// GrantCacheConfig sets a GrantCache's bounds; see DefaultGrantCacheConfig.
type GrantCacheConfig struct {
	Size   int              // grants kept
	Window time.Duration    // of a new grant, whole seconds, at most MaxGrantWindow
	Renew  time.Duration    // a grant is replaced this long before its window ends
	Clock  func() time.Time // nil means time.Now
	Random io.Reader        // nil means crypto/rand
	Salts  *Salts           // nil means the process's own
}

// DefaultGrantCacheConfig keeps 1,024 grants of an hour, renewed 5 minutes early.
func DefaultGrantCacheConfig() GrantCacheConfig {
	return GrantCacheConfig{Size: 1024, Window: MaxGrantWindow, Renew: 5 * time.Minute}
}

// backdate is how long before its making a grant's window begins: a message may
// carry a time that was taken before its grant was made, or by a clock that was
// then set back a little.
func (c *GrantCacheConfig) backdate() time.Duration {
	return min(time.Minute, c.Window/4).Truncate(time.Second)
}

// GrantCache keeps sender-side grants by what they are for. It is safe for
// concurrent use: callers that want the same grant wait for one to be made,
// others do not wait for them.
type GrantCache struct {
	cfg GrantCacheConfig

	mu      sync.Mutex
	entries map[grantKey]*grantEntry
	recent  list.List // of *grantEntry, most recently used first
}

// grantKey is what two uses of a grant must share.
type grantKey struct {
	role                     Role
	recipient, sender, reply PublicKey
	context                  Digest
	name                     string
}

type grantEntry struct {
	key  grantKey
	elem *list.Element // guarded by GrantCache.mu

	mu    sync.Mutex
	grant *Grant // nil before it was made
	gone  bool   // evicted: whoever waited for mu looks again
}

// NewGrantCache checks cfg.
func NewGrantCache(cfg GrantCacheConfig) (*GrantCache, error) {
	switch {
	case cfg.Size < 1:
		return nil, fmt.Errorf("sealed: grant cache: size is %d, want 1 or more", cfg.Size)
	case cfg.Window < time.Second || cfg.Window > MaxGrantWindow || cfg.Window%time.Second != 0:
		return nil, fmt.Errorf("sealed: grant cache: window is %s, want whole seconds up to %s", cfg.Window, MaxGrantWindow)
	case cfg.Renew < 0 || cfg.Renew >= cfg.Window-cfg.backdate():
		return nil, fmt.Errorf("sealed: grant cache: renew is %s, want less than the window of %s without the %s it begins early", cfg.Renew, cfg.Window, cfg.backdate())
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	return &GrantCache{cfg: cfg, entries: make(map[grantKey]*grantEntry)}, nil
}

// Get returns a grant for p, made now or earlier. NotBefore, NotAfter, Random
// and Salts of p are ignored. The caller gives the grant back with Release.
func (c *GrantCache) Get(p GrantParams) (*Grant, error) {
	sender, err := signerKey(p.Sender)
	if err != nil {
		return nil, fmt.Errorf("sealed: grant cache: sender: %w", err)
	}
	key := grantKey{p.Role, p.Recipient, sender, p.ReplyKey, p.Context, p.Name}
	for range 8 {
		e, evicted := c.entry(key)
		evicted.evict()
		if g, err := c.use(e, p); g != nil || err != nil {
			return g, err
		}
	}
	return nil, errors.New("sealed: grant cache: too small for its load: entries leave before they are used")
}

// entry finds or makes key's entry, and takes the least recent one out when
// there is no room.
func (c *GrantCache) entry(key grantKey) (e, evicted *grantEntry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e = c.entries[key]; e != nil {
		c.recent.MoveToFront(e.elem)
		return e, nil
	}
	if len(c.entries) >= c.cfg.Size {
		evicted = c.recent.Back().Value.(*grantEntry)
		c.recent.Remove(evicted.elem)
		delete(c.entries, evicted.key)
	}
	e = &grantEntry{key: key}
	e.elem = c.recent.PushFront(e)
	c.entries[key] = e
	return e, evicted
}

// use returns e's grant with a reference for the caller, or nil if e was evicted
// meanwhile.
func (c *GrantCache) use(e *grantEntry, p GrantParams) (*Grant, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.gone {
		return nil, nil
	}
	now := c.cfg.Clock()
	if e.grant != nil {
		// A clock that was set back makes the grant's window lie ahead: a message
		// sealed now would be refused, so the grant is replaced then too.
		from, to := int64(e.grant.header.NotBefore), int64(e.grant.header.NotAfter)
		if now.Unix() >= from && now.Before(time.Unix(to, 0).Add(-c.cfg.Renew)) {
			e.grant.retain()
			return e.grant, nil
		}
		e.grant.Release()
		e.grant = nil
	}
	p.NotBefore = now.Truncate(time.Second).Add(-c.cfg.backdate())
	p.NotAfter = p.NotBefore.Add(c.cfg.Window)
	p.Random, p.Salts = c.cfg.Random, c.cfg.Salts
	g, err := NewGrant(p)
	if err != nil {
		return nil, err
	}
	e.grant = g
	g.retain()
	return g, nil
}

func (e *grantEntry) evict() {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.gone = true
	if e.grant != nil {
		e.grant.Release()
		e.grant = nil
	}
}

// Len returns the number of entries.
func (c *GrantCache) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.entries)
}

// Drop forgets all grants: after a restore from a snapshot, or a change of keys.
func (c *GrantCache) Drop() {
	c.mu.Lock()
	old := c.entries
	c.entries = make(map[grantKey]*grantEntry)
	c.recent.Init()
	c.mu.Unlock()
	for _, e := range old {
		e.evict()
	}
}
