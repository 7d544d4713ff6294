// Package anomaly keeps a node's or coordinator's log of what went wrong: typed
// events in segment files, chained with SM3 and signed with SM2.
// docs/anomaly-log.md has the format to the byte.
//
// What it promises. Everything up to the last signature is evident of
// tampering: an event that is edited, removed, moved, put in or repeated, a
// segment that is missing, and an end that is cut below what the signed file
// HEAD names, are found by Verify, offline and with the public key alone. Events
// that the log itself had to leave out (a full queue, a value that did not pass)
// are counted in it, and so is what was cut, adopted or found damaged when it was
// opened, and what its own retention removed. An event holds numbers, names and
// codes from closed lists, and no text of a function or caller.
//
// What it does not. Events after the last signature, at most
// Config.CheckpointEvents or Config.CheckpointAge of them, can be changed or cut
// by whoever writes to the directory; Verify says how many they are. The whole
// directory, HEAD included, can be put back to an earlier state: only who
// remembered an Anchor elsewhere notices. And whoever is root on the machine
// holds the signing key: they can write lies from then on, or a whole other
// history. What stands against them is the past up to the last Anchor that was
// remembered elsewhere.
//
// Append costs its caller a check and a copy, never a wait for the disk. A crash
// of the process loses what was not written yet, at most Config.FlushEvery; a
// crash of the machine loses no more.
package anomaly

// Sink takes events. Producers hold one; a Log is one, and so is Discard.
type Sink interface {
	// Append notes e. It does not block on a disk and does not fail: what cannot
	// be noted is counted, and the count is noted.
	Append(e Event)
}

// Discard is a Sink that keeps nothing.
type Discard struct{}

// Append forgets e.
func (Discard) Append(Event) {}

var (
	_ Sink = (*Log)(nil)
	_ Sink = Discard{}
)
