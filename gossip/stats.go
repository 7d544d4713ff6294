package gossip

import "sync/atomic"

// Stats are counts since Join, and a few present values. They are for metrics;
// the numbers of one call are not from one instant.
type Stats struct {
	PacketsSent, PacketsReceived         uint64 // sealed UDP payloads; received ones that opened
	PacketBytesSent, PacketBytesReceived uint64 // of these, sealing included
	PacketsForged                        uint64 // dropped: another key or label, damaged, or no packet of ours
	PacketsReplayed                      uint64 // dropped: seen before, too old, or our own sent back
	StreamsDialed, StreamsAccepted       uint64
	StreamBytesSent, StreamBytesReceived uint64
	StreamsForged                        uint64 // broken off: another key or label, damaged, reordered or cut
	StreamsRefused                       uint64 // too many at a time

	LoadsReceived  uint64 // by gossip and exchange, newer than what was known
	LoadsStale     uint64 // not newer
	LoadsStray     uint64 // about no member, or of an earlier life of one
	LoadsMalformed uint64 // packets or exchanges that did not decode
	LoadsObserved  uint64 // by Observe, newer than what was known
	LoadsBroadcast uint64 // of this member, handed to gossip
	LoadsDirect    uint64 // of this member, sent to a coordinator
	LoadsTrimmed   uint64 // encoded with hints left out for want of room
	Usurped        uint64 // times another claimed a later load of this member, overruled since
	MembersRefused uint64 // announcements of members whose meta does not decode
	Conflicts      uint64 // announcements of a member's name from another address

	Rejoins, RejoinsFailed uint64 // joins of a missing seed
	LogsDropped            uint64 // lines of memberlist beyond the limit

	Members      int    // live, this one included
	SeedsMissing int    // at the last look
	Queued       int    // loads waiting to be gossiped
	Health       int    // memberlist's view of this process: 0 is well
	ViewVersion  uint64 // of the newest snapshot
}

// counters are the Stats in the making.
type counters struct {
	packetsSent, packetsReceived, packetBytesSent, packetBytesReceived atomic.Uint64
	packetsForged, packetsReplayed                                     atomic.Uint64
	streamsDialed, streamsAccepted, streamBytesSent                    atomic.Uint64
	streamBytesReceived, streamsForged, streamsRefused                 atomic.Uint64
	loadsReceived, loadsStale, loadsStray, loadsMalformed              atomic.Uint64
	loadsObserved, loadsBroadcast, loadsDirect, loadsTrimmed           atomic.Uint64
	usurped, membersRefused, conflicts                                 atomic.Uint64
	rejoins, rejoinsFailed, logsDropped                                atomic.Uint64
	seedsMissing                                                       atomic.Int64
}

func (c *counters) stats() Stats {
	return Stats{
		PacketsSent: c.packetsSent.Load(), PacketsReceived: c.packetsReceived.Load(),
		PacketBytesSent: c.packetBytesSent.Load(), PacketBytesReceived: c.packetBytesReceived.Load(),
		PacketsForged: c.packetsForged.Load(), PacketsReplayed: c.packetsReplayed.Load(),
		StreamsDialed: c.streamsDialed.Load(), StreamsAccepted: c.streamsAccepted.Load(),
		StreamBytesSent: c.streamBytesSent.Load(), StreamBytesReceived: c.streamBytesReceived.Load(),
		StreamsForged: c.streamsForged.Load(), StreamsRefused: c.streamsRefused.Load(),
		LoadsReceived: c.loadsReceived.Load(), LoadsStale: c.loadsStale.Load(), LoadsStray: c.loadsStray.Load(),
		LoadsMalformed: c.loadsMalformed.Load(), LoadsObserved: c.loadsObserved.Load(),
		LoadsBroadcast: c.loadsBroadcast.Load(), LoadsDirect: c.loadsDirect.Load(), LoadsTrimmed: c.loadsTrimmed.Load(),
		Usurped: c.usurped.Load(), MembersRefused: c.membersRefused.Load(), Conflicts: c.conflicts.Load(),
		Rejoins: c.rejoins.Load(), RejoinsFailed: c.rejoinsFailed.Load(), LogsDropped: c.logsDropped.Load(),
		SeedsMissing: int(c.seedsMissing.Load()),
	}
}
