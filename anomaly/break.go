package anomaly

import "fmt"

// Reason says in which way a log is not what its signatures say. Reasons are
// stable.
type Reason string

// The reasons.
const (
	ReasonLength    Reason = "length"    // a record's length is impossible, or the segment ends inside a record
	ReasonEncoding  Reason = "encoding"  // a record is not the deterministic CBOR of its type
	ReasonChain     Reason = "chain"     // a record's digest does not follow from it and from what is before
	ReasonOrder     Reason = "order"     // a record stands where its type does not belong
	ReasonSequence  Reason = "sequence"  // a number does not follow the one before
	ReasonSignature Reason = "signature" // a checkpoint's or HEAD's signature does not verify
	ReasonKey       Reason = "key"       // another key signs than the one trusted
	ReasonIdentity  Reason = "identity"  // a segment belongs to another log, or another place in this one
	ReasonPrevious  Reason = "previous"  // a segment does not follow from the end of the one before
	ReasonMissing   Reason = "missing"   // segments are not there, and no signed tombstone says that retention took them
	ReasonUnsealed  Reason = "unsealed"  // a segment that others follow does not end in its final signature
	ReasonHead      Reason = "head"      // HEAD is not there, or signs what the log does not hold: it was cut or put back
	ReasonAnchor    Reason = "anchor"    // the log does not hold the anchor that was remembered
	ReasonDamaged   Reason = "damaged"   // the writer itself found damage when it opened the log, and says so
)

// Break is a place where a log is not what its signatures say, as an error too.
type Break struct {
	Segment  uint64 `json:"segment"` // number of the segment; 0 where none is meant
	Offset   int64  `json:"offset"`  // of the record in its file, in bytes
	Seq      uint64 `json:"seq"`     // of the last event that stands before it
	Reason   Reason `json:"reason"`
	Detail   string `json:"detail"`
	Unsigned bool   `json:"unsigned,omitempty"` // no signature covers this place
}

// Error names place and reason.
func (b *Break) Error() string {
	where := "the log"
	if b.Segment != 0 {
		where = fmt.Sprintf("segment %d, byte %d, after event %d", b.Segment, b.Offset, b.Seq)
	}
	if b.Unsigned {
		where += " (not signed yet)"
	}
	return fmt.Sprintf("%s: %s: %s", where, b.Reason, b.Detail)
}
