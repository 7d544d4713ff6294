package gossip

import (
	"strings"
	"sync"
	"time"
)

// suspects tells of members that did not answer. memberlist has a hook for what
// became of a member, and none for its doubts: a line of its log is all that says
// so. Its version is pinned, and a test on a real mesh fails if the line changes.
type suspects struct {
	tell func(id string)
	rest time.Duration // between two words about one member

	mu   sync.Mutex
	told map[string]time.Time
}

func newSuspects(tell func(string), rest time.Duration) *suspects {
	return &suspects{tell: tell, rest: rest, told: map[string]time.Time{}}
}

// read takes a line without its level.
func (s *suspects) read(line string, now time.Time) {
	id, ok := strings.CutPrefix(line, "gossip: Suspect ")
	if !ok || s.tell == nil {
		return
	}
	if id, _, ok = strings.Cut(id, " has failed"); !ok {
		return
	}
	s.mu.Lock()
	for other, at := range s.told {
		if now.Sub(at) >= s.rest {
			delete(s.told, other)
		}
	}
	_, known := s.told[id]
	if !known {
		s.told[id] = now
	}
	s.mu.Unlock()
	if !known {
		s.tell(id)
	}
}
