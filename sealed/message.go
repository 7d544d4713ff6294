package sealed

import (
	"io"
	"time"
)

// Link is a request's export secret (export32), and the link that its reply's
// key is derived from: only one who knows it can seal or open that reply. The
// zero value means "none". It is a secret and prints as a placeholder.
type Link [32]byte

// MessageParams are a message's header fields. Issued is required.
type MessageParams struct {
	ID     ID            // zero draws one; a reply must carry its request's
	Issued time.Time     // the sender's clock now, kept in milliseconds
	Life   time.Duration // until the message expires; zero means DefaultLife
	Flags  Flags         // role 1 only
	Link   Link          // role 2 only, and there required
}

// SealRequest starts a request under a grant of role 1. Nothing is written to
// dst before the first record is full, Flush or Close.
func (g *Grant) SealRequest(dst io.Writer, p MessageParams, h RequestHead) (*Writer, error) {
	panic("sealed")
}

// SealReply starts a reply under a grant of role 2.
func (g *Grant) SealReply(dst io.Writer, p MessageParams, h ReplyHead) (*Writer, error) {
	panic("sealed")
}

// Seal starts a message of a role without head (3 to 7).
func (g *Grant) Seal(dst io.Writer, p MessageParams) (*Writer, error) { panic("sealed") }

// AppendRequest appends a whole sealed request to dst and returns the request's
// header and its link: what opening the reply takes.
func (g *Grant) AppendRequest(dst []byte, p MessageParams, h RequestHead, body []byte) ([]byte, MessageHeader, Link, error) {
	panic("sealed")
}

// AppendReply appends a whole sealed reply to dst.
func (g *Grant) AppendReply(dst []byte, p MessageParams, h ReplyHead, body []byte) ([]byte, error) {
	panic("sealed")
}

// Append appends a whole sealed message of a role without head (3 to 7) to dst.
func (g *Grant) Append(dst []byte, p MessageParams, body []byte) ([]byte, error) { panic("sealed") }

// Writer seals a message while it is written, in records of up to MaxRecord
// bytes. It is not safe for concurrent use. Exactly one of Close and Abort ends
// it; both wipe its key.
type Writer struct{}

// Header returns the message's header.
func (w *Writer) Header() MessageHeader { panic("sealed") }

// Link returns a request's export secret; zero in every other role. It is known
// from the start, so a reply may be opened while the request is still written.
func (w *Writer) Link() Link { panic("sealed") }

// Write adds plaintext.
func (w *Writer) Write(p []byte) (int, error) { panic("sealed") }

// ReadFrom adds all of r, without another copy.
func (w *Writer) ReadFrom(r io.Reader) (int64, error) { panic("sealed") }

// Flush sends what is buffered as a short record.
func (w *Writer) Flush() error { panic("sealed") }

// Close writes the final record. It does not close the underlying writer. A
// second Close does nothing.
func (w *Writer) Close() error { panic("sealed") }

// Abort ends the message without a final record, so that no reader takes it for
// whole. After Close it does nothing: defer it.
func (w *Writer) Abort() { panic("sealed") }
