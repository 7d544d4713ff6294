package gossip

import (
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/hashicorp/memberlist"
)

// Config says how to take part in a mesh. Start from DefaultLAN or DefaultLocal
// and set Meta, Bind, Label and Keys.
type Config struct {
	// Meta is what this member says of itself. Meta.ID is its name in the mesh.
	// Encoded it must fit into 512 bytes.
	Meta api.NodeMeta

	// Bind is the "ip:port" to listen on with UDP and TCP; port 0 lets the kernel
	// choose. Ignored if Transport is set.
	Bind string
	// Advertise is the "ip:port" at which others reach this member, "" for Bind.
	// Required if Bind's address is unspecified, since guessing picks the wrong
	// interface sooner or later.
	Advertise string
	// Seeds are members to find the mesh by, "host:port". This member's own
	// address may be among them. A seed that is not among the live members is
	// joined again every RejoinMin..RejoinMax, for ever or until SetSeeds; so name
	// seeds by the addresses they advertise.
	Seeds []string

	// Label is the name of the cluster, at most 64 bytes. Members with another
	// label do not understand each other, even with the same key.
	Label string
	// Keys is the key ring: the first seals, all open. See Key for rotation.
	Keys []Key

	// Epoch orders this life of the daemon after earlier ones: unix
	// milliseconds, 0 for now.
	Epoch uint64

	GossipInterval time.Duration // between rounds of gossip
	GossipNodes    int           // members told in each round
	ProbeInterval  time.Duration // between probes of one random member
	ProbeTimeout   time.Duration // for a probe's answer; above the network's p99 round trip
	SuspicionMult  int           // a suspect is dead after SuspicionMult * log10(members) * ProbeInterval
	RetransmitMult int           // membership news are sent RetransmitMult * log10(members+1) times
	SyncInterval   time.Duration // between exchanges of all state with one random member; grows with log2 of the members beyond 32
	StreamTimeout  time.Duration // for one exchange over TCP
	ReclaimAfter   time.Duration // after which a dead member's name may come back at another address
	PacketBytes    int           // largest UDP payload, sealing included; 1280..65507

	// LoadInterval is the least time between two announcements of this member's
	// load. Broadcasts keep LoadInterval * max(1, members/16), since one
	// broadcast costs the whole mesh members * log(members) messages;
	// coordinators are told directly and keep getting LoadInterval.
	LoadInterval time.Duration
	// UrgentInterval takes its place when the first warm slot of a revision
	// appears or the last one goes. A change of draining waits for nothing.
	UrgentInterval time.Duration
	// SettleInterval is how long a change below LoadThreshold waits.
	SettleInterval time.Duration
	// LoadThreshold is the change that counts as large, as a share of capacity
	// for resources and of the last value for counts; 0..1.
	LoadThreshold float64
	// ViewInterval is the least time between two snapshots; at least 10 µs per
	// member are kept, since a snapshot is copied whole.
	ViewInterval time.Duration

	RejoinMin, RejoinMax time.Duration // bounds of the random wait between rounds of rejoining

	// Suspect, if not nil, is told of a member that answers neither this member's
	// probe nor those it asks of others: it is dead unless it is heard of soon. Of
	// one member at most once in ReclaimAfter. It must not block.
	Suspect func(id string)

	// Logger receives memberlist's messages too, at most a few each second. nil
	// discards.
	Logger *slog.Logger
	// Transport takes the place of UDP and TCP, for tests and benchmarks. What
	// passes through it is sealed.
	Transport memberlist.NodeAwareTransport
	// Rand is where salts come from, nil for crypto/rand.Reader. Anything weaker
	// breaks the sealing.
	Rand io.Reader
}

// DefaultLAN suits machines in one data centre: a death is seen within some
// seconds. BenchmarkMesh measures what it costs: at rest each of 10, 100 and 1,000
// members sends about 0.3, 0.7 and 2.6 kB a second, of which probes are the first
// 0.3 and exchanges of state the rest.
func DefaultLAN() Config {
	return Config{
		GossipInterval: 200 * time.Millisecond, GossipNodes: 3,
		ProbeInterval: time.Second, ProbeTimeout: 500 * time.Millisecond,
		SuspicionMult: 4, RetransmitMult: 4,
		SyncInterval: 30 * time.Second, StreamTimeout: 10 * time.Second, ReclaimAfter: 30 * time.Second,
		PacketBytes:  1400, // below the usual MTU of 1500, with room for tunnels
		LoadInterval: time.Second, UrgentInterval: 200 * time.Millisecond, SettleInterval: 10 * time.Second, LoadThreshold: 0.1,
		ViewInterval: 20 * time.Millisecond,
		RejoinMin:    15 * time.Second, RejoinMax: 30 * time.Second,
	}
}

// DefaultLocal suits a cluster on one machine, and tests: everything is quicker.
func DefaultLocal() Config {
	c := DefaultLAN()
	c.GossipInterval = 50 * time.Millisecond
	c.ProbeInterval, c.ProbeTimeout = 500*time.Millisecond, 200*time.Millisecond
	c.SuspicionMult = 3
	c.SyncInterval, c.StreamTimeout, c.ReclaimAfter = 5*time.Second, 2*time.Second, 5*time.Second
	c.LoadInterval, c.UrgentInterval, c.SettleInterval = 200*time.Millisecond, 50*time.Millisecond, 2*time.Second
	c.ViewInterval = 5 * time.Millisecond
	c.RejoinMin, c.RejoinMax = time.Second, 2*time.Second
	return c
}

const maxLabel = 64

// check refuses what does not make sense, naming the field.
func (c *Config) check() error {
	if err := checkKeys(c.Keys); err != nil {
		return err
	}
	if len(c.Label) == 0 || len(c.Label) > maxLabel {
		return api.Invalid("gossip.label", "name the cluster in 1 to 64 bytes", fmt.Sprintf("the label has %d bytes", len(c.Label)))
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"gossip_interval", c.GossipInterval}, {"probe_interval", c.ProbeInterval}, {"probe_timeout", c.ProbeTimeout},
		{"sync_interval", c.SyncInterval}, {"stream_timeout", c.StreamTimeout}, {"load_interval", c.LoadInterval},
		{"urgent_interval", c.UrgentInterval}, {"settle_interval", c.SettleInterval}, {"view_interval", c.ViewInterval},
		{"rejoin_min", c.RejoinMin},
	} {
		if d.value <= 0 {
			return api.Invalid("gossip."+d.name, "start from gossip.DefaultLAN()", fmt.Sprintf("%v is not a positive time", d.value))
		}
	}
	if c.RejoinMax < c.RejoinMin {
		return api.Invalid("gossip.rejoin_max", "make it at least rejoin_min", fmt.Sprintf("%v is less than %v", c.RejoinMax, c.RejoinMin))
	}
	if c.ReclaimAfter < 0 {
		return api.Invalid("gossip.reclaim_after", "write 0 or more", fmt.Sprintf("%v is negative", c.ReclaimAfter))
	}
	for _, n := range []struct {
		name  string
		value int
	}{{"gossip_nodes", c.GossipNodes}, {"suspicion_mult", c.SuspicionMult}, {"retransmit_mult", c.RetransmitMult}} {
		if n.value < 1 {
			return api.Invalid("gossip."+n.name, "write 1 or more", fmt.Sprintf("%d is too small", n.value))
		}
	}
	if !(c.LoadThreshold >= 0 && c.LoadThreshold <= 1) {
		return api.Invalid("gossip.load_threshold", "write a share from 0 to 1", fmt.Sprintf("%v is no share", c.LoadThreshold))
	}
	// Below the first bound a node's meta does not fit, above the second UDP ends.
	if c.PacketBytes < minPacketBytes || c.PacketBytes > 65507 {
		return api.Invalid("gossip.packet_bytes", fmt.Sprintf("write %d to 65507", minPacketBytes), fmt.Sprintf("%d is out of range", c.PacketBytes))
	}
	return nil
}

// minPacketBytes holds the longest alive message (meta, name, addresses) and the
// longest load, sealed.
const minPacketBytes = 1280

// addresses parses Bind and Advertise. The second is invalid if Advertise is "".
func (c *Config) addresses() (bind, advertise netip.AddrPort, err error) {
	if c.Advertise != "" {
		advertise, err = netip.ParseAddrPort(c.Advertise)
		if err != nil || advertise.Addr().IsUnspecified() || advertise.Port() == 0 {
			return bind, advertise, api.Invalid("gossip.advertise", `write the "ip:port" at which others reach this machine`, fmt.Sprintf("%q is no such address", c.Advertise))
		}
	}
	if c.Transport != nil {
		return bind, advertise, nil
	}
	bind, err = netip.ParseAddrPort(c.Bind)
	if err != nil || bind.Addr().Zone() != "" {
		return bind, advertise, api.Invalid("gossip.bind", `write "ip:port", as in "10.0.0.5:7946"`, fmt.Sprintf("%q is no such address", c.Bind))
	}
	if bind.Addr().IsUnspecified() && c.Advertise == "" {
		return bind, advertise, api.Invalid("gossip.advertise", "name the address at which others reach this machine", "bind listens on all addresses")
	}
	return bind, advertise, nil
}
