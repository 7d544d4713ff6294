package sealed

// MessageHeader is what of a message is in clear.
type MessageHeader struct {
	ID      ID
	Issued  uint64 // unix milliseconds
	Expires uint64 // unix milliseconds
	Flags   Flags
	Salt    [24]byte
	Grant   Digest // of the grant it stands under
	Commit  [32]byte
}

// MaxPeek is the most bytes from the start of a body that Peek needs.
const MaxPeek = 202 + 255 + 2 + 141 + 1 + 72 + 125

// Peeked is the clear part of an envelope, as claimed by whoever sent it.
type Peeked struct {
	Grant   GrantHeader
	Message MessageHeader
	Len     int // bytes of grant and message header; records follow
}

// Peek reads the clear part from the first bytes of a body (MaxPeek are always
// enough) without any key. It checks lengths, magic, suite, role, name and zero
// fields, but no signature, no digest and no curve point: the result may route
// or rate-limit, never authorise. Too few bytes give CodeTruncated.
func Peek(body []byte) (Peeked, error) { panic("sealed") }
