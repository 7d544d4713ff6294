package anomaly

import (
	"crypto"
	"crypto/rand"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/api"
)

// Config is how a log is kept. DefaultConfig fills all but Dir, Node and Signer.
type Config struct {
	Dir    string        // made with mode 0700; one writer at a time
	Node   string        // the id of the node or coordinator that writes
	Signer crypto.Signer // an SM2 key: what sealed.Sign takes

	SegmentBytes int64         // a segment ends at about this size
	SegmentAge   time.Duration // or when it is this old and holds an event
	MaxBytes     int64         // of all segments; the oldest go first, and a tombstone says so

	CheckpointEvents int           // a signature at least after so many events
	CheckpointAge    time.Duration // and so long after an event
	FlushEvery       time.Duration // writes, each with an fsync, come no closer than this
	QueueBytes       int           // events that wait for the disk; beyond it they are lost and counted

	Random io.Reader        // crypto/rand.Reader outside tests
	Now    func() time.Time // time.Now outside tests
	Boot   func() int64     // milliseconds since the machine booted
}

// DefaultConfig keeps up to 64 MiB, about 300,000 events, with unsigned tails of
// at most 64 events or 10 seconds.
func DefaultConfig() Config {
	return Config{
		SegmentBytes: 4 << 20, SegmentAge: 24 * time.Hour, MaxBytes: 64 << 20,
		CheckpointEvents: 64, CheckpointAge: 10 * time.Second, FlushEvery: 100 * time.Millisecond, QueueBytes: 256 << 10,
		Random: rand.Reader, Now: time.Now, Boot: sinceBoot,
	}
}

// sinceBoot reads CLOCK_BOOTTIME, which no one can set and which sleep does not stop.
func sinceBoot() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0 // no kernel that runs this lacks the clock
	}
	return ts.Nano() / int64(time.Millisecond)
}

func (c *Config) check() error {
	invalid := func(field, remedy, what string) error { return api.Invalid(field, remedy, "the anomaly log "+what) }
	switch {
	case c.Dir == "":
		return invalid("Dir", "name a directory", "has no directory")
	case !isName(c.Node, MaxNode):
		return invalid("Node", "use 1 to 63 of a-z, 0-9, '-' and '.', beginning and ending with a letter or digit", fmt.Sprintf("cannot belong to node %q", c.Node))
	case c.Signer == nil:
		return invalid("Signer", "give an SM2 key", "has no key to sign with")
	case c.SegmentBytes < 1<<10 || c.SegmentBytes > 64<<20:
		return invalid("SegmentBytes", "give 1 KiB to 64 MiB", "cannot have segments of this size")
	case c.MaxBytes < 2*c.SegmentBytes:
		return invalid("MaxBytes", "give at least twice SegmentBytes", "would keep nothing")
	case c.QueueBytes < 4*maxBody || c.QueueBytes > 64<<20:
		return invalid("QueueBytes", "give 4 KiB to 64 MiB", "cannot have a queue of this size")
	case c.CheckpointEvents < 1 || c.CheckpointAge <= 0 || c.SegmentAge <= 0 || c.FlushEvery < 0:
		return invalid("CheckpointEvents, CheckpointAge, SegmentAge, FlushEvery", "begin with DefaultConfig", "has a bound that is not positive")
	case c.Random == nil || c.Now == nil || c.Boot == nil:
		return invalid("Random, Now, Boot", "begin with DefaultConfig", "lacks a source")
	}
	return nil
}
