package enrol

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/gossip"
)

const (
	// maxPeers are enough to find any mesh by.
	maxPeers = 16
	// forgetAfter is how long a coordinator that is gone is looked for while
	// another one is there.
	forgetAfter = 24 * time.Hour
	// peersRest is the least time between two writes of the file. The first
	// change is written at once: whoever is killed a moment later needs it.
	peersRest = time.Second
)

// KnownPeers are the seeds of a daemon that starts on dir: those that FollowPeers
// wrote down, then told. A file that cannot be read is as good as none.
func KnownPeers(dir string, told []string, log *slog.Logger) []string {
	var known Peers
	if err := Load(dir, PeersFile, "", &known); err != nil && api.CodeOf(err) != api.CodeNotFound {
		log.Warn("members of the last time", "err", err)
	}
	var all []string
	for _, seed := range slices.Concat(known.Gossip, told) {
		if !slices.Contains(all, seed) {
			all = append(all, seed)
		}
	}
	return all
}

// FollowPeers keeps the mesh's seeds those by which the cluster can be found
// again, and writes them down in dir, so that a daemon that restarts finds it
// although whoever it joined through is gone for good. It returns nil when ctx ends.
func FollowPeers(ctx context.Context, mesh *gossip.Mesh, dir string, log *slog.Logger) error {
	known := newRoll(mesh.Seeds(), time.Now())
	var kept []string
	for {
		version := mesh.Snapshot().Version
		seeds := known.take(mesh.PeersOf(api.RoleCoordinator), mesh.Peers(), time.Now())
		if len(seeds) > 0 && !slices.Equal(seeds, kept) {
			mesh.SetSeeds(slices.Concat(seeds, known.names))
			if err := Save(dir, PeersFile, Peers{Gossip: seeds}); err != nil {
				log.Warn("keep the members' addresses", "err", err)
			} else {
				kept = seeds
			}
			if !rest(ctx, peersRest) {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-mesh.Changed(version):
		}
	}
}

// rest reports whether d has passed before ctx ended.
func rest(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// roll is who was there, and until when.
type roll struct {
	names []string // seeds that are no addresses: whoever wrote them knows better
	live  []string // coordinators at the last look
	seen  map[string]time.Time
}

// newRoll begins with seeds, which count as coordinators that were there at now.
func newRoll(seeds []string, now time.Time) *roll {
	r := &roll{seen: map[string]time.Time{}}
	for _, s := range seeds {
		if _, err := netip.ParseAddrPort(s); err != nil {
			r.names = append(r.names, s)
			continue
		}
		r.seen[s] = now
	}
	return r
}

// take notes who is live now and returns by whom to look for the mesh: coordinators
// that are there, those that went lately, the latest first, and other members as far as
// there is room. A mesh without any coordinator is more likely our own trouble than the
// cluster's end: then none is forgotten.
func (r *roll) take(coordinators, members []string, now time.Time) []string {
	for _, a := range slices.Concat(r.live, coordinators) {
		r.seen[a] = now // those that went were there until a moment ago
	}
	r.live = coordinators
	if len(coordinators) > 0 {
		maps.DeleteFunc(r.seen, func(_ string, at time.Time) bool { return now.Sub(at) > forgetAfter })
	}
	gone := slices.DeleteFunc(slices.Sorted(maps.Keys(r.seen)), func(a string) bool {
		return slices.Contains(coordinators, a) || slices.Contains(members, a)
	})
	slices.SortStableFunc(gone, func(a, b string) int { return r.seen[b].Compare(r.seen[a]) })
	all := slices.Concat(coordinators, gone)
	for _, a := range members {
		if !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	return all[:min(len(all), maxPeers)]
}
