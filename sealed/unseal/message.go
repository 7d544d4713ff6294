package unseal

import (
	"errors"
	"fmt"
	"io"

	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/internal/slab"
)

// ErrUnfinished means that a request's head or body was asked for before its end
// was verified, and the request does not allow that.
var ErrUnfinished = errors.New("unseal: the request must be read to its end first")

// ErrTooLong means that a body is longer than its reader wants, or has room for.
var ErrTooLong = errors.New("unseal: the body is too long")

var errTaken = errors.New("unseal: the body was taken already, or the message closed")

// Message is an opened message whose body is still to be read. It is not safe
// for concurrent use.
type Message struct {
	Grant  sealed.GrantHeader
	Header sealed.MessageHeader

	src     source
	recs    records // off src
	link    sealed.Link
	request sealed.RequestHead
	reply   sealed.ReplyHead

	text  []byte // of the record that is being read; aliases the source's buffer
	body  stream // what Stream and Hold hand out
	taken bool
	done  bool

	chunks []chunk // what Hold keeps
	spool  io.Closer
	again  *source // reads the spool
}

type chunk struct {
	buf *slab.Buffer
	n   int
}

// readHead reads the first record and splits the head off.
func (m *Message) readHead() error {
	text, err := m.recs.next(nil, nil)
	if err != nil {
		return err
	}
	head, body, err := sealed.SplitHead(text)
	if err == nil {
		if m.Grant.Role == sealed.RoleRequest {
			m.request, err = sealed.ParseRequestHead(head)
		} else {
			m.reply, err = sealed.ParseReplyHead(head)
		}
	}
	if err != nil {
		return refuse(sealed.CodeFormat, err.Error())
	}
	m.text = body
	return nil
}

// Link returns a request's export secret, to seal the reply with; zero in every
// other role.
func (m *Message) Link() sealed.Link { return m.link }

// early reports whether plaintext may leave before the final record. Only a
// request is held back: it starts work that cannot be undone.
func (m *Message) early() bool {
	return m.Grant.Role != sealed.RoleRequest || m.Header.Flags&sealed.FlagEarlyInput != 0 || m.recs.final
}

// RequestHead returns a request's head: at once if the message carries
// sealed.FlagEarlyInput, else after its end was verified (Hold, Body, ReadAll),
// and ErrUnfinished before.
func (m *Message) RequestHead() (sealed.RequestHead, error) {
	if m.Grant.Role != sealed.RoleRequest {
		return sealed.RequestHead{}, fmt.Errorf("unseal: a %s has no request head", m.Grant.Role)
	}
	if !m.early() {
		return sealed.RequestHead{}, ErrUnfinished
	}
	return m.request, nil
}

// ReplyHead returns a reply's head. What it says is the function's, but the body
// may still turn out to be cut: see Complete.
func (m *Message) ReplyHead() (sealed.ReplyHead, error) {
	if m.Grant.Role != sealed.RoleReply {
		return sealed.ReplyHead{}, fmt.Errorf("unseal: a %s has no reply head", m.Grant.Role)
	}
	return m.reply, nil
}

// Body returns the body as the message's flags allow: for a request without
// sealed.FlagEarlyInput it is Hold, else Stream.
func (m *Message) Body(spool SpoolFunc) (io.Reader, error) {
	if m.early() {
		return m.Stream()
	}
	return m.Hold(spool)
}

// Stream returns a reader of verified records, in constant memory; it ends in
// io.EOF only after the final record and the end of the transport body were
// seen. A request without sealed.FlagEarlyInput refuses with ErrUnfinished.
func (m *Message) Stream() (io.Reader, error) {
	if err := m.take(); err != nil {
		return nil, err
	}
	if !m.early() {
		m.taken = false
		return nil, ErrUnfinished
	}
	return m.stream(), nil
}

// stream reads the records from here on; there is one per message.
func (m *Message) stream() io.Reader {
	m.body = stream{m: m, recs: &m.recs, text: m.text}
	return &m.body
}

func (m *Message) take() error {
	if m.taken || m.done {
		return errTaken
	}
	m.taken = true
	return nil
}

// stream reads records off recs, beginning with text.
type stream struct {
	m    *Message
	recs *records
	text []byte
	err  error
}

var _ io.WriterTo = (*stream)(nil)

func (s *stream) advance() {
	switch {
	case s.err != nil:
	case s.m.done:
		s.err = errTaken
	case s.recs.final:
		s.err = io.EOF
	default:
		s.text, s.err = s.recs.next(nil, nil)
	}
}

// Read implements io.Reader.
func (s *stream) Read(p []byte) (int, error) {
	if s.m.done {
		return 0, errTaken // the buffer is somebody else's by now
	}
	if len(p) == 0 {
		return 0, nil
	}
	for len(s.text) == 0 {
		if s.advance(); s.err != nil {
			return 0, s.err
		}
	}
	n := copy(p, s.text)
	s.text = s.text[n:]
	return n, nil
}

// WriteTo implements io.WriterTo: whole records, without a copy.
func (s *stream) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for {
		if s.m.done {
			return total, errTaken
		}
		if len(s.text) > 0 {
			n, err := w.Write(s.text)
			total += int64(n)
			if err == nil && n != len(s.text) {
				err = io.ErrShortWrite
			}
			s.text = s.text[n:]
			if err != nil {
				return total, err
			}
		}
		if s.advance(); s.err != nil {
			if errors.Is(s.err, io.EOF) {
				return total, nil
			}
			return total, s.err
		}
	}
}

// ReadAll reads a body of at most limit bytes to its end, and verifies it before
// it returns. The bytes are the caller's. A longer body gives ErrTooLong.
func (m *Message) ReadAll(limit int64) ([]byte, error) {
	if err := m.take(); err != nil {
		return nil, err
	}
	out := make([]byte, 0, len(m.text))
	text := m.text
	for {
		if int64(len(out))+int64(len(text)) > limit {
			clear(out)
			return nil, ErrTooLong
		}
		out = append(out, text...)
		if m.recs.final {
			return out, nil
		}
		var err error
		if text, err = m.recs.next(nil, nil); err != nil {
			clear(out)
			return nil, err
		}
	}
}

// Complete reports whether the final record was verified, and nothing followed
// it.
func (m *Message) Complete() bool { return m.recs.final }

// Close forgets the message's key and link, wipes its buffers and gives them
// back, and closes its spool. Readers of the body end in an error afterwards.
func (m *Message) Close() error {
	if m.done {
		return nil
	}
	m.done = true
	m.recs.src.close()
	if m.again != nil {
		m.again.close()
	}
	for _, c := range m.chunks {
		slab.Put(c.buf, c.n)
	}
	m.recs.aead, m.recs.base, m.link, m.text, m.chunks = nil, [12]byte{}, sealed.Link{}, nil, nil
	if m.spool != nil {
		if err := m.spool.Close(); err != nil {
			return fmt.Errorf("unseal: close the spool: %w", err)
		}
	}
	return nil
}
