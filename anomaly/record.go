package anomaly

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"github.com/faasd-sec/faasd-sec/sealed"
)

const (
	formatVersion = 1
	maxBody       = 1024 // bytes of a record's CBOR; the largest possible is below 900
	overhead      = 4 + 32
)

// The types of records, key 0 of each.
const (
	typeHeader     = 1
	typeEvent      = 2
	typeCheckpoint = 3
	typeHead       = 4 // the file HEAD
)

// header is the first record of a segment.
type header struct {
	Type      uint64 `cbor:"0,keyasint"`
	Version   uint64 `cbor:"1,keyasint"`
	LogID     []byte `cbor:"2,keyasint"` // 16 random bytes, the same in all segments
	Segment   uint64 `cbor:"3,keyasint"` // from 1
	Node      string `cbor:"4,keyasint"`
	Key       []byte `cbor:"5,keyasint"` // SM2 point that signs
	Previous  []byte `cbor:"6,keyasint"` // the previous segment's last digest
	Signature []byte `cbor:"7,keyasint"` // SM3 of the previous segment's last signature
	First     uint64 `cbor:"8,keyasint"` // number of the next event
	TimeMs    uint64 `cbor:"9,keyasint"`
	BootMs    uint64 `cbor:"10,keyasint"`
	Damage    bool   `cbor:"11,keyasint"` // the previous segment is not what it was
	// What retention removed: all up to this segment, its last event and digest.
	PrunedSegment uint64 `cbor:"12,keyasint"`
	PrunedSeq     uint64 `cbor:"13,keyasint"`
	PrunedDigest  []byte `cbor:"14,keyasint"`
}

// wireEvent is a record of an event.
type wireEvent struct {
	Type     uint64           `cbor:"0,keyasint"`
	Seq      uint64           `cbor:"1,keyasint"`
	TimeMs   uint64           `cbor:"2,keyasint"`
	BootMs   uint64           `cbor:"3,keyasint"`
	Kind     uint64           `cbor:"4,keyasint"`
	Node     string           `cbor:"5,keyasint"`
	Function string           `cbor:"6,keyasint"`
	Revision []byte           `cbor:"7,keyasint"` // 32 bytes or none
	Sandbox  string           `cbor:"8,keyasint"`
	Code     string           `cbor:"9,keyasint"`
	Numbers  map[string]int64 `cbor:"10,keyasint"`
}

// checkpoint is a signature over the chain so far; a final one ends its segment.
type checkpoint struct {
	Type      uint64 `cbor:"0,keyasint"`
	Final     bool   `cbor:"1,keyasint"`
	Seq       uint64 `cbor:"2,keyasint"` // of the last event before it
	TimeMs    uint64 `cbor:"3,keyasint"`
	Digest    []byte `cbor:"4,keyasint"` // of the chain before this record
	Signature []byte `cbor:"5,keyasint"`
}

// head is the file HEAD: which checkpoint the log had at least reached.
type head struct {
	Type      uint64 `cbor:"0,keyasint"`
	LogID     []byte `cbor:"1,keyasint"`
	Key       []byte `cbor:"2,keyasint"`
	Segment   uint64 `cbor:"3,keyasint"`
	Seq       uint64 `cbor:"4,keyasint"`
	TimeMs    uint64 `cbor:"5,keyasint"`
	Digest    []byte `cbor:"6,keyasint"` // of the chain after that checkpoint
	Signature []byte `cbor:"7,keyasint"`
}

func (h *header) append(b []byte) []byte {
	b = appendHead(b, majorMap, 15)
	b = appendUint(append(b, 0), typeHeader)
	b = appendUint(append(b, 1), h.Version)
	b = appendBytes(append(b, 2), h.LogID)
	b = appendUint(append(b, 3), h.Segment)
	b = appendText(append(b, 4), h.Node)
	b = appendBytes(append(b, 5), h.Key)
	b = appendBytes(append(b, 6), h.Previous)
	b = appendBytes(append(b, 7), h.Signature)
	b = appendUint(append(b, 8), h.First)
	b = appendUint(append(b, 9), h.TimeMs)
	b = appendUint(append(b, 10), h.BootMs)
	b = appendBool(append(b, 11), h.Damage)
	b = appendUint(append(b, 12), h.PrunedSegment)
	b = appendUint(append(b, 13), h.PrunedSeq)
	return appendBytes(append(b, 14), h.PrunedDigest)
}

// append writes an event; node stands in for an empty Node.
func (e *Event) append(b []byte, node string) []byte {
	if e.Node != "" {
		node = e.Node
	}
	b = appendHead(b, majorMap, 11)
	b = appendUint(append(b, 0), typeEvent)
	b = appendUint(append(b, 1), e.Seq)
	b = appendUint(append(b, 2), uint64(e.TimeMs))
	b = appendUint(append(b, 3), uint64(e.BootMs))
	b = appendUint(append(b, 4), uint64(e.Kind))
	b = appendText(append(b, 5), node)
	b = appendText(append(b, 6), e.Function)
	if b = append(b, 7); e.Revision.IsZero() {
		b = appendBytes(b, nil)
	} else {
		b = appendBytes(b, e.Revision[:])
	}
	b = appendText(append(b, 8), e.Sandbox)
	b = appendText(append(b, 9), e.Code)
	b = appendHead(append(b, 10), majorMap, uint64(len(e.Numbers)))
	var sorted [MaxNumbers]string // no allocation: this runs in Append
	names := sorted[:0]
	for n := range e.Numbers {
		i := len(names)
		names = append(names, n)
		for ; i > 0 && lessKey(n, names[i-1]); i-- {
			names[i] = names[i-1]
		}
		names[i] = n
	}
	for _, n := range names {
		b = appendInt(appendText(b, n), e.Numbers[n])
	}
	return b
}

func (c *checkpoint) append(b []byte) []byte {
	b = appendHead(b, majorMap, 6)
	b = appendUint(append(b, 0), typeCheckpoint)
	b = appendBool(append(b, 1), c.Final)
	b = appendUint(append(b, 2), c.Seq)
	b = appendUint(append(b, 3), c.TimeMs)
	b = appendBytes(append(b, 4), c.Digest)
	return appendBytes(append(b, 5), c.Signature)
}

// signed is what the signature is over, after its label.
func (c *checkpoint) signed(logID []byte, segment uint64) []byte {
	b := append([]byte(nil), logID...)
	b = binary.BigEndian.AppendUint64(b, segment)
	b = append(b, 0)
	if c.Final {
		b[len(b)-1] = 1
	}
	b = binary.BigEndian.AppendUint64(b, c.Seq)
	b = binary.BigEndian.AppendUint64(b, c.TimeMs)
	return append(b, c.Digest...)
}

func (h *head) append(b []byte) []byte {
	b = appendHead(b, majorMap, 8)
	b = appendUint(append(b, 0), typeHead)
	b = appendBytes(append(b, 1), h.LogID)
	b = appendBytes(append(b, 2), h.Key)
	b = appendUint(append(b, 3), h.Segment)
	b = appendUint(append(b, 4), h.Seq)
	b = appendUint(append(b, 5), h.TimeMs)
	b = appendBytes(append(b, 6), h.Digest)
	return appendBytes(append(b, 7), h.Signature)
}

func (h *head) signed() []byte {
	b := append([]byte(nil), h.LogID...)
	b = binary.BigEndian.AppendUint64(b, h.Segment)
	b = binary.BigEndian.AppendUint64(b, h.Seq)
	b = binary.BigEndian.AppendUint64(b, h.TimeMs)
	return append(b, h.Digest...)
}

// parser reads bodies. What it accepts has one encoding: it is encoded again and
// compared, by an encoder that shares nothing with the decoder.
type parser struct {
	mode cbor.DecMode
	buf  []byte
}

func newParser() (*parser, error) {
	m, err := cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField, TagsMd: cbor.TagsForbidden,
		MaxArrayElements: 16, MaxMapPairs: 16, MaxNestedLevels: 4,
	}.DecMode()
	if err != nil {
		return nil, fmt.Errorf("anomaly: make the CBOR decoder: %w", err)
	}
	return &parser{mode: m}, nil
}

// typeOf is a body's key 0, or 0 if there is none.
func typeOf(body []byte) byte {
	if len(body) < 3 || body[0]&0xe0 != majorMap || body[1] != 0 {
		return 0
	}
	return body[2]
}

var (
	errCBOR      = errors.New("it is not the CBOR of a record")
	errShortest  = errors.New("it is not in its one encoding")
	errField     = errors.New("a field has an impossible length or value")
	errEventForm = errors.New("a field of the event has a form that no event has")
)

func (p *parser) decode(body []byte, v any, encode func([]byte) []byte) error {
	if len(body) > maxBody {
		return errField
	}
	if err := p.mode.Unmarshal(body, v); err != nil {
		return errCBOR
	}
	if p.buf = encode(p.buf[:0]); string(p.buf) != string(body) {
		return errShortest
	}
	return nil
}

func (p *parser) header(body []byte) (*header, error) {
	h := new(header)
	if err := p.decode(body, h, h.append); err != nil {
		return nil, err
	}
	if h.Version != formatVersion {
		return nil, fmt.Errorf("version %d is not known, only %d", h.Version, formatVersion)
	}
	if h.Type != typeHeader || len(h.LogID) != 16 || len(h.Previous) != 32 || len(h.Signature) != 32 || len(h.PrunedDigest) != 32 ||
		h.Segment == 0 || h.First == 0 || h.PrunedSegment >= h.Segment || !isName(h.Node, MaxNode) {
		return nil, errField
	}
	if _, err := sealed.ParsePublicKey(h.Key); err != nil {
		return nil, errField
	}
	return h, nil
}

func (p *parser) event(body []byte) (Event, error) {
	var w wireEvent
	if len(body) > maxBody {
		return Event{}, errField
	}
	if err := p.mode.Unmarshal(body, &w); err != nil {
		return Event{}, errCBOR
	}
	e := Event{Seq: w.Seq, TimeMs: int64(w.TimeMs), BootMs: int64(w.BootMs), Kind: Kind(w.Kind), Node: w.Node,
		Function: w.Function, Sandbox: w.Sandbox, Code: w.Code, Numbers: w.Numbers}
	copy(e.Revision[:], w.Revision)
	if e.TimeMs < 0 || e.BootMs < 0 || w.Kind == 0 || w.Kind > 1<<16-1 || w.Seq == 0 || w.Type != typeEvent || e.Node == "" {
		return Event{}, errField
	}
	if field, _ := e.malformed(); field != "" {
		return Event{}, errEventForm
	}
	if p.buf = e.append(p.buf[:0], ""); string(p.buf) != string(body) {
		return Event{}, errShortest
	}
	return e, nil
}

func (p *parser) checkpoint(body []byte) (*checkpoint, error) {
	c := new(checkpoint)
	if err := p.decode(body, c, c.append); err != nil {
		return nil, err
	}
	if c.Type != typeCheckpoint || len(c.Digest) != 32 || len(c.Signature) > 72 {
		return nil, errField
	}
	return c, nil
}

func (p *parser) head(body []byte) (*head, error) {
	h := new(head)
	if err := p.decode(body, h, h.append); err != nil {
		return nil, err
	}
	if h.Type != typeHead || len(h.LogID) != 16 || len(h.Digest) != 32 || len(h.Signature) > 72 || h.Segment == 0 {
		return nil, errField
	}
	if _, err := sealed.ParsePublicKey(h.Key); err != nil {
		return nil, errField
	}
	return h, nil
}
