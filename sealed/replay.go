package sealed

import (
	"fmt"
	"hash/maphash"
	"sync"
	"time"
)

// DefaultReplaySize is how many messages a ReplaySet remembers by default: at
// about 70 bytes each, 18 MiB when full.
const DefaultReplaySize = 1 << 18

// ReplayConfig sets a ReplaySet's bounds.
type ReplayConfig struct {
	Size  int              // entries; a full set refuses; zero means DefaultReplaySize
	Clock func() time.Time // nil means time.Now
}

// ReplaySet remembers (grant, id) until the message expires. Openers keep one
// per function; a node keeps one per function it hosts, fed by Peek, which
// outlives sandboxes. It is safe for concurrent use.
type ReplaySet struct {
	size  int
	clock func() time.Time

	mu    sync.Mutex
	now   uint64 // high-water mark, unix milliseconds
	swept uint64 // the second that was last swept
	seeds [2]maphash.Seed
	seen  map[replayKey]struct{}
	due   map[uint64][]replayKey // by the second in which they expire
}

// replayKey stands for a message: 128 bits of a hash under seeds of this process
// alone, a third of what digest and id take. Nobody who does not know the seeds
// can aim at another's key, and by chance two messages in a million share one
// with a probability of 2^-89; the second would be refused, and sealed again.
type replayKey [2]uint64

func (s *ReplaySet) key(grant Digest, id ID) replayKey {
	m := struct {
		grant Digest
		id    ID
	}{grant, id}
	return replayKey{maphash.Comparable(s.seeds[0], m), maphash.Comparable(s.seeds[1], m)}
}

// NewReplaySet checks cfg.
func NewReplaySet(cfg ReplayConfig) (*ReplaySet, error) {
	if cfg.Size < 0 {
		return nil, fmt.Errorf("sealed: replay set: size is %d, want 0 or more", cfg.Size)
	}
	if cfg.Size == 0 {
		cfg.Size = DefaultReplaySize
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	return &ReplaySet{
		size: cfg.Size, clock: cfg.Clock, seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()},
		seen: make(map[replayKey]struct{}), due: make(map[uint64][]replayKey),
	}, nil
}

// Now returns the highest time the clock ever showed to this set, in unix
// milliseconds: a clock set back opens nothing again.
func (s *ReplaySet) Now() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tick()
}

func (s *ReplaySet) tick() uint64 {
	if t := s.clock().UnixMilli(); t > 0 && uint64(t) > s.now {
		s.now = uint64(t)
	}
	return s.now
}

// Add remembers a message, or refuses with CodeReplay one that is known, or all
// when the set is full, and with CodeWindow one that has expired. Looking and
// remembering is one step.
func (s *ReplaySet) Add(grant Digest, id ID, expires uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.tick()
	if expires < now {
		// Its entry may be forgotten already, so its absence proves nothing.
		return refuse(CodeWindow, "the message has expired")
	}
	s.sweep(now / 1000)
	k := s.key(grant, id)
	if _, known := s.seen[k]; known {
		return refuse(CodeReplay, "this message was opened before; a retry needs a new one")
	}
	if len(s.seen) >= s.size {
		return refuse(CodeReplay, "the replay set is full; try again when messages have expired")
	}
	s.seen[k] = struct{}{}
	s.due[expires/1000] = append(s.due[expires/1000], k)
	return nil
}

// Remove forgets a message that Add remembered and that no reader accepted after
// all: whoever alters a copy must not use up the original's id.
func (s *ReplaySet) Remove(grant Digest, id ID, expires uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, sec := s.key(grant, id), expires/1000
	due := s.due[sec]
	for i := len(due) - 1; i >= 0; i-- { // it is among the last
		if due[i] == k {
			due[i] = due[len(due)-1]
			s.due[sec] = due[:len(due)-1]
			delete(s.seen, k)
			return
		}
	}
}

// sweep forgets what expired in the seconds before sec. It looks at the seconds
// since the last sweep, or at all there are if those are fewer.
func (s *ReplaySet) sweep(sec uint64) {
	if sec <= s.swept {
		return
	}
	if sec-s.swept > uint64(len(s.due)) {
		for at := range s.due {
			if at < sec {
				s.forget(at)
			}
		}
	} else {
		for at := s.swept; at < sec; at++ {
			s.forget(at)
		}
	}
	s.swept = sec
}

func (s *ReplaySet) forget(sec uint64) {
	for _, k := range s.due[sec] {
		delete(s.seen, k)
	}
	delete(s.due, sec)
}

// Len returns the number of remembered messages that have not expired.
func (s *ReplaySet) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweep(s.tick() / 1000)
	return len(s.seen)
}
