package sealed

import "time"

// ReplayConfig sets a ReplaySet's bounds.
type ReplayConfig struct {
	Size  int              // entries; a full set refuses; zero means 1<<18
	Clock func() time.Time // nil means time.Now
}

// ReplaySet remembers (grant, id) until the message expires. Openers keep one
// per function; a node keeps one per function it hosts, fed by Peek, which
// outlives sandboxes. It is safe for concurrent use.
type ReplaySet struct{}

// NewReplaySet checks cfg.
func NewReplaySet(cfg ReplayConfig) (*ReplaySet, error) { panic("sealed") }

// Now returns the highest time the clock ever showed to this set, in unix
// milliseconds: a clock set back opens nothing again.
func (s *ReplaySet) Now() uint64 { panic("sealed") }

// Add remembers a message, or refuses with CodeReplay one that is known, or all
// when the set is full, and with CodeWindow one that has expired.
func (s *ReplaySet) Add(grant Digest, id ID, expires uint64) error { panic("sealed") }

// Len returns the number of remembered messages.
func (s *ReplaySet) Len() int { panic("sealed") }
