package nbio

import (
	"io"
	"net"
	"time"
)

// How slow a peer may be. A server's own deadlines are those of a header and a small
// body: much needs time in proportion.
const (
	patience = 20 * time.Second // with each piece, and with all of it before its size counts
	slowest  = 64 << 10         // bytes a second, of all of it
)

// pace is how far a body has come.
type pace struct {
	set   func(time.Time) error // a deadline of the connection
	began time.Time             // zero before the first piece
	moved int64                 // bytes
}

// next gives the next piece its time.
func (p *pace) next() error {
	now := time.Now()
	if p.began.IsZero() {
		p.began = now
	}
	until := p.began.Add(patience + time.Duration(p.moved/slowest)*time.Second)
	if soon := now.Add(patience); soon.Before(until) {
		until = soon
	}
	return p.set(until)
}

// Upload is body, which comes over c: its sender has the more time the more there
// is, so that a large body is bound by no fixed time, and one that stalls still ends.
func Upload(c net.Conn, body io.Reader) io.Reader {
	return &paced{pace{set: c.SetReadDeadline}, body}
}

// Download is body, which whoever reads it writes to c, piece by piece: its receiver
// has the more time the more there is.
func Download(c net.Conn, body io.ReadCloser) io.ReadCloser {
	return struct {
		io.Reader
		io.Closer
	}{&paced{pace{set: c.SetWriteDeadline}, body}, body}
}

type paced struct {
	pace
	body io.Reader
}

// Read implements io.Reader.
func (p *paced) Read(b []byte) (int, error) {
	if err := p.next(); err != nil {
		return 0, err
	}
	n, err := p.body.Read(b)
	p.moved += int64(n)
	return n, err
}
