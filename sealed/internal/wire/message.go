package wire

import "encoding/binary"

// Message is a decoded MESSAGE.
type Message struct {
	ID      [16]byte
	Issued  uint64
	Expires uint64
	Flags   uint8
	Salt    [24]byte
	Grant   [32]byte
	Commit  [32]byte
}

// ParseMessage decodes the first MessageSize bytes of b under a grant of the
// given role, and says what in them is malformed.
func ParseMessage(b []byte, role uint8) (m Message, wrong string) {
	copy(m.ID[:], b[4:])
	m.Issued = binary.BigEndian.Uint64(b[20:])
	m.Expires = binary.BigEndian.Uint64(b[28:])
	m.Flags = b[36]
	copy(m.Salt[:], b[37:])
	copy(m.Grant[:], b[61:])
	copy(m.Commit[:], b[93:])
	switch {
	case string(b[:4]) != MessageMagic:
		return m, "the message's magic is not FSM1"
	case m.Flags&^3 != 0:
		return m, "an unknown flag is set"
	case role != 1 && m.Flags != 0:
		return m, "flags are set outside role 1"
	}
	return m, ""
}

// AppendBound appends m without commit: the BoundSize bytes that its keys are
// derived from.
func (m *Message) AppendBound(b []byte) []byte {
	b = append(b, MessageMagic...)
	b = append(b, m.ID[:]...)
	b = binary.BigEndian.AppendUint64(b, m.Issued)
	b = binary.BigEndian.AppendUint64(b, m.Expires)
	b = append(b, m.Flags)
	b = append(b, m.Salt[:]...)
	return append(b, m.Grant[:]...)
}
