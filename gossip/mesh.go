package gossip

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"math"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/hashicorp/memberlist"
)

// Mesh is this process's membership. All its methods are safe for concurrent use.
type Mesh struct {
	cfg    Config
	id     string
	codec  codec
	logger *slog.Logger
	sealer *sealer
	count  counters
	table  *table
	views  *views
	queue  *memberlist.TransmitLimitedQueue
	list   *memberlist.Memberlist
	addr   netip.AddrPort

	seeds atomic.Pointer[[]string] // of Config, or what SetSeeds was told last

	wake   chan struct{} // one slot: something for run to look at
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	mu       sync.Mutex
	meta     api.NodeMeta
	metaWire []byte
	epoch    uint64
	seq      uint64
	load     api.NodeLoad
	loaded   bool
	steps    steps

	publishing sync.Mutex // from making a view to publishing it

	life   sync.Mutex  // held for calls into list that must not overlap
	left   atomic.Bool // Leave was called, or Close
	closed bool        // guarded by life
}

// Join starts taking part in the mesh. It returns once a seed was joined or every
// one was tried, or with ctx's error, and then nothing remains. Seeds that do not
// answer are no error: they are tried again for as long as the mesh lives, so that
// machines may start in any order. Two goroutines of this package and those of memberlist run
// until Close.
func Join(ctx context.Context, cfg Config) (*Mesh, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	bind, advertise, err := cfg.addresses()
	if err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	if cfg.Epoch == 0 {
		cfg.Epoch = uint64(time.Now().UnixMilli())
	}
	m := &Mesh{
		cfg: cfg, id: cfg.Meta.ID, logger: cfg.Logger, meta: cfg.Meta, epoch: cfg.Epoch,
		table: newTable(), wake: make(chan struct{}, 1),
	}
	if m.codec, err = newCodec(); err != nil {
		return nil, err
	}
	if m.metaWire, err = m.codec.encodeMeta(cfg.Meta, cfg.Epoch); err != nil {
		return nil, err
	}
	if m.sealer, err = newSealer(cfg.Keys, cfg.Label, cfg.Rand); err != nil {
		return nil, err
	}
	m.cfg.Keys = nil // the sealer has them; no second copy
	m.SetSeeds(cfg.Seeds)
	// Loads are repeated half as often as news of membership: the next load, the
	// exchange of state or a reply makes up for one that did not get through.
	m.queue = &memberlist.TransmitLimitedQueue{NumNodes: m.table.size, RetransmitMult: max(1, cfg.RetransmitMult/2)}
	std := log.New(newLogBridge(ctx, cfg.Logger, &m.count, newSuspects(cfg.Suspect, cfg.ReclaimAfter)), "", 0)
	inner := cfg.Transport
	if inner == nil {
		t, err := listen(ctx, bind, std)
		if err != nil {
			return nil, err
		}
		inner = t
	}
	transport := newSealedTransport(inner, m.sealer, &m.count)
	m.list, err = memberlist.Create(m.listConfig(transport, advertise, std))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("gossip: start: %w", err), transport.Shutdown())
	}
	self := m.list.LocalNode()
	m.addr = nodeAddr(self)
	m.views = newViews(m.table.view())
	// The mesh outlives ctx, which bounds joining only; Close ends it.
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	m.cancel = cancel
	tried := make(chan struct{})
	m.tasks.Add(2)
	go m.run(life)
	go m.rejoin(life, tried)
	select {
	case <-tried:
		m.publish() // what joining brought is there from the start
		return m, nil
	case <-ctx.Done():
		return nil, errors.Join(fmt.Errorf("gossip: join: %w", ctx.Err()), m.Close())
	}
}

// listConfig is memberlist's configuration.
func (m *Mesh) listConfig(t *sealedTransport, advertise netip.AddrPort, std *log.Logger) *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name, c.Transport, c.Logger = m.id, t, std
	c.Delegate, c.Events, c.Alive, c.Conflict = hooks{m}, hooks{m}, hooks{m}, hooks{m}
	if advertise.IsValid() {
		c.AdvertiseAddr, c.AdvertisePort = advertise.Addr().String(), int(advertise.Port())
	}
	c.GossipInterval, c.GossipNodes = m.cfg.GossipInterval, m.cfg.GossipNodes
	c.GossipToTheDeadTime = m.cfg.SyncInterval
	c.ProbeInterval, c.ProbeTimeout = m.cfg.ProbeInterval, m.cfg.ProbeTimeout
	c.SuspicionMult, c.RetransmitMult = m.cfg.SuspicionMult, m.cfg.RetransmitMult
	c.PushPullInterval, c.TCPTimeout = m.cfg.SyncInterval, m.cfg.StreamTimeout
	c.DeadNodeReclaimTime = m.cfg.ReclaimAfter
	c.UDPBufferSize = m.cfg.PacketBytes - packetOverhead
	// Sealing and the label are our transport's; memberlist's encryption is AES.
	c.Label, c.SecretKey, c.Keyring = "", nil, nil
	// LZW on small binary messages costs 100 times the sealing and gains little;
	// unpacking what others packed is one more thing to get wrong.
	c.EnableCompression = false
	return c
}

// SetLoad replaces what this member has free and returns it stamped with Node,
// Epoch and Seq, to be put on replies as well. It keeps Warm and Images: the
// caller must not change them afterwards. It is cheap, so call it on every change;
// when others are told is decided here. Amounts below zero count as zero. The
// error is an *api.Error of CodeInvalid, and then nothing has changed.
func (m *Mesh) SetLoad(l api.NodeLoad) (api.NodeLoad, error) {
	l.Node = m.id
	l, err := normalize(l)
	if err != nil {
		return api.NodeLoad{}, err
	}
	m.mu.Lock()
	m.seq++
	l.Epoch, l.Seq = m.epoch, m.seq
	m.steps.note(m.load, l, m.meta.Capacity, m.cfg.LoadThreshold)
	m.load, m.loaded = l, true
	m.table.observe(l, nil)
	m.mu.Unlock()
	m.nudge()
	return l, nil
}

// Load is what SetLoad returned last; false before the first.
func (m *Mesh) Load() (api.NodeLoad, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.load, m.loaded
}

// Observe takes a load that a member put on a reply. It reports whether it was
// news: not if it is older than what is known, malformed, or about no member. It
// keeps Warm and Images. It is not passed on.
func (m *Mesh) Observe(l api.NodeLoad) bool {
	if l.Node == m.id || checkLoad(l) != nil || m.table.observe(l, nil) != loadTaken {
		return false
	}
	m.count.loadsObserved.Add(1)
	m.nudge()
	return true
}

// overrule makes sure that this member's own load wins over one that claims to
// be later: the clock was set back between two lives, or somebody else speaks in
// its name. The epoch then moves past the claim.
func (m *Mesh) overrule(claim api.NodeLoad) {
	m.mu.Lock()
	if !m.loaded || !claim.Newer(m.load) || claim.Epoch == math.MaxUint64 {
		m.mu.Unlock()
		return
	}
	m.epoch = claim.Epoch + 1
	m.load.Epoch = m.epoch
	m.table.observe(m.load, nil)
	m.mu.Unlock()
	m.count.usurped.Add(1)
	m.nudge()
}

// Snapshot is the newest view. It is never nil and must not be changed.
func (m *Mesh) Snapshot() *api.ClusterView { return m.views.current.Load() }

// Changed gives a channel that is closed once a view newer than version, which is
// that of a snapshot, is out, or the mesh is closed. It needs no clean-up.
func (m *Mesh) Changed(version uint64) <-chan struct{} { return m.views.changed(version) }

// Wait returns a view newer than version as soon as there is one, or ctx's error,
// or ErrClosed.
func (m *Mesh) Wait(ctx context.Context, version uint64) (*api.ClusterView, error) {
	return m.views.wait(ctx, version)
}

// Peers are the addresses of the other live members, "host:port", sorted: what a
// member that restarts can find the mesh by.
func (m *Mesh) Peers() []string {
	var out []string
	for _, n := range m.list.Members() {
		if n.Name != m.id {
			out = append(out, n.Address())
		}
	}
	slices.Sort(out)
	return out
}

// PeersOf are those of Peers that have the role, sorted.
func (m *Mesh) PeersOf(role string) []string {
	var out []string
	for _, a := range m.table.addressesOf(role, m.id) {
		out = append(out, a.String())
	}
	slices.Sort(out)
	return out
}

// Seeds are those of Config, or what SetSeeds was told last.
func (m *Mesh) Seeds() []string { return slices.Clone(*m.seeds.Load()) }

// SetSeeds replaces the seeds, which see Config.Seeds, from the next round of
// rejoining on. It keeps the list.
func (m *Mesh) SetSeeds(seeds []string) { m.seeds.Store(&seeds) }

// Addr is where the others reach this member.
func (m *Mesh) Addr() netip.AddrPort { return m.addr }

// Rotate replaces the key ring, see Key. On an error the old one stays.
func (m *Mesh) Rotate(keys []Key) error { return m.sealer.rotate(keys) }

// Stats are the counts so far.
func (m *Mesh) Stats() Stats {
	s := m.count.stats()
	s.Members, s.Queued = m.table.size(), m.queue.NumQueued()
	s.Health, s.ViewVersion = m.list.GetHealthScore(), m.Snapshot().Version
	return s
}

// publish makes the table's present state the newest view.
func (m *Mesh) publish() {
	m.publishing.Lock()
	defer m.publishing.Unlock()
	m.views.publish(m.table.view())
}

// nudge has run look again.
func (m *Mesh) nudge() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}
