package gossip

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	// viewCost is how much longer the interval between views gets by member.
	viewCost = 10 * time.Microsecond
	// broadcastScale is how many members share one LoadInterval of broadcasts.
	broadcastScale = 16
	// maxListeners is how many coordinators are told of a load directly.
	maxListeners = 8
	// resolveTimeout bounds looking one seed's name up.
	resolveTimeout = 5 * time.Second
)

// run publishes views and tells loads until ctx ends.
func (m *Mesh) run(ctx context.Context) {
	defer m.tasks.Done()
	direct := &announcer{interval: m.cfg.LoadInterval, urgent: m.cfg.UrgentInterval, settle: m.cfg.SettleInterval, threshold: m.cfg.LoadThreshold}
	broadcast := *direct
	published := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.wake:
		case <-timer.C:
		}
		now := time.Now()
		var next time.Time
		later := func(t time.Time) {
			if next.IsZero() || t.Before(next) {
				next = t
			}
		}
		members := m.table.size()
		if m.table.changed() {
			due := published.Add(max(m.cfg.ViewInterval, time.Duration(members)*viewCost))
			if due.After(now) {
				later(due)
			} else {
				published = now
				m.publish()
			}
		}
		factor := time.Duration(max(1, members/broadcastScale))
		m.announce(now, direct, 1, later, m.tellDirectly)
		m.announce(now, &broadcast, factor, later, m.tellAll)
		if !next.IsZero() {
			timer.Reset(max(0, time.Until(next)))
		}
	}
}

// announce tells this member's load over one way if that is due, or asks to be
// called again when it is.
func (m *Mesh) announce(now time.Time, a *announcer, factor time.Duration, later func(time.Time), tell func([]byte)) {
	m.mu.Lock()
	load, ok, capacity, between := m.load, m.loaded, m.meta.Capacity, m.steps
	m.mu.Unlock()
	if !ok {
		return
	}
	due, ok := a.due(load, between, capacity, factor)
	switch {
	case !ok:
		return
	case due.After(now):
		later(due)
		return
	}
	a.told, a.toldAt = load, now
	b, trimmed, err := m.codec.encodeLoad(load)
	if err != nil { // SetLoad has checked it, so this does not happen
		m.logger.Error("gossip: own load not told", "error", err)
		return
	}
	if trimmed {
		m.count.loadsTrimmed.Add(1)
	}
	tell(b)
}

// tellDirectly sends a load to the coordinators, which are the ones who place.
// Were it left to broadcasts, a cluster of a thousand would have the choice
// between loads that are a minute old and a network full of gossip.
func (m *Mesh) tellDirectly(load []byte) {
	msg := append([]byte{kindDirect}, load...)
	for _, p := range m.table.listeners(m.id, m.id, maxListeners) {
		to := memberlist.Address{Addr: p.addr.String(), Name: p.id}
		if err := m.list.SendToAddress(to, msg); err != nil {
			m.logger.Debug("gossip: load not sent", "to", p.id, "error", err)
			continue
		}
		m.count.loadsDirect.Add(1)
	}
}

// tellAll hands a load to gossip.
func (m *Mesh) tellAll(load []byte) {
	m.queue.QueueBroadcast(loadMessage{node: m.id, msg: append([]byte{kindRelay}, load...)})
	m.count.loadsBroadcast.Add(1)
}

// rejoin joins the seeds that are not among the live members, until ctx ends.
// memberlist forgets members it holds for dead, so that without this the halves
// of a network that was split, or a machine that started before its seeds, would
// stay apart for ever. tried is closed once one was joined, or after the first round:
// of machines without power each takes a while to be given up.
func (m *Mesh) rejoin(ctx context.Context, tried chan<- struct{}) {
	defer m.tasks.Done()
	wait := max(m.cfg.RejoinMin/32, 10*time.Millisecond)
	r := round{first: true, joined: sync.OnceFunc(func() { close(tried) }), silent: map[string]bool{}}
	for ; ; r.first = false {
		m.joinMissing(ctx, r)
		r.joined()
		// Alone, try again soon, and less and less so; otherwise at leisure, each
		// member at another time.
		pause := m.cfg.RejoinMin + rand.N(m.cfg.RejoinMax-m.cfg.RejoinMin+1)
		if m.table.size() == 1 && wait < pause {
			pause = wait/2 + rand.N(wait/2+1)
			wait *= 2
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// round is what one round of rejoin needs to know.
type round struct {
	first  bool
	joined func()          // called when a seed was joined
	silent map[string]bool // seeds that did not answer before: said once
}

// joinMissing is one round of rejoin. The seeds come in random order, lest a
// cluster that starts all at once asks the same one for everything.
func (m *Mesh) joinMissing(ctx context.Context, r round) {
	missing := 0
	seeds := *m.seeds.Load()
	for _, i := range rand.Perm(len(seeds)) {
		seed := seeds[i]
		if ctx.Err() != nil || m.left.Load() {
			return
		}
		addrs, err := resolve(ctx, seed)
		if err != nil {
			missing++
			m.count.rejoinsFailed.Add(1)
			m.logger.Warn("gossip: seed not found", "seed", seed, "error", err)
			continue
		}
		live := m.table.addresses()
		if anyOf(addrs, live) {
			delete(r.silent, seed)
			continue
		}
		missing++
		for _, a := range addrs {
			if _, err := m.list.Join([]string{a.String()}); err != nil {
				m.count.rejoinsFailed.Add(1)
				level := slog.LevelInfo
				if r.silent[seed] {
					level = slog.LevelDebug
				}
				m.logger.Log(ctx, level, "gossip: seed does not answer", "seed", a, "error", err)
				r.silent[seed] = true
				continue
			}
			missing--
			delete(r.silent, seed)
			r.joined()
			if !r.first {
				m.count.rejoins.Add(1)
				m.logger.Info("gossip: joined a seed again", "seed", a)
			}
			break
		}
	}
	m.count.seedsMissing.Store(int64(missing))
}

func anyOf(addrs []netip.AddrPort, live map[netip.AddrPort]bool) bool {
	for _, a := range addrs {
		if live[a] {
			return true
		}
	}
	return false
}

// resolve finds the addresses of a seed.
func resolve(ctx context.Context, seed string) ([]netip.AddrPort, error) {
	if a, err := netip.ParseAddrPort(seed); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(a.Addr().Unmap(), a.Port())}, nil
	}
	host, port, err := net.SplitHostPort(seed)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	n, err := net.DefaultResolver.LookupPort(ctx, "tcp", port)
	if err != nil {
		return nil, err
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	out := make([]netip.AddrPort, len(ips))
	for i, ip := range ips {
		out[i] = netip.AddrPortFrom(ip.Unmap(), uint16(n))
	}
	return out, nil
}
