package agent

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// smallReply is the most, in bytes, of a reply that is sealed in one piece.
const smallReply = sealed.MaxRecord

// reply bodies are read through buffers of one record each.
var recordBuffers = sync.Pool{New: func() any { b := make([]byte, sealed.MaxRecord); return &b }}

// resultBody is a function's reply body on its way.
type resultBody interface {
	io.Reader
	// Buffered is the number of bytes that a Read returns at once.
	Buffered() int
	// Finish waits for the end of the exchange once the body was read: nil means
	// that the request was whole and the function ended well.
	Finish() error
	// Close ends the exchange, whatever its state. It is called once.
	Close() error
}

// outcome is what came of an invocation: an error of the request (err), or a
// reply of the function, or a failure to be sealed like one.
type outcome struct {
	err    error // the request broke while it was read: answered in clear
	fail   *api.Error
	status int
	header []sealed.Field
	body   resultBody // nil: empty
	size   int64      // of the body, -1 if unknown
}

// reply seals the outcome to the caller's key and sends it. The invocation is
// released when the last byte is out.
func (inv *invocation) reply(o outcome) {
	ctx, f := inv.ctx, inv.f
	if o.err != nil {
		inv.release()
		problem(ctx, readError(o.err))
		ctx.SetConnectionClose()
		return
	}
	var small []byte
	if o.fail != nil {
		o.status, o.header, small = failure(o.fail, inv.callID)
	}
	if inv.msg.Grant.ReplyKey == (sealed.PublicKey{}) {
		inv.discard(o)
		return
	}
	g, err := f.grants.Get(f.replyGrant(inv.msg.Grant.ReplyKey))
	if err != nil {
		inv.abandon(o)
		f.cfg.Logger.Warn("grant for a reply", "err", err)
		problem(ctx, api.Wrap(api.CodeInternal, err, "the reply could not be sealed"))
		return
	}
	params := sealed.MessageParams{ID: inv.msg.Header.ID, Link: inv.msg.Link(), Issued: f.cfg.Now()}
	head := sealed.ReplyHead{Status: o.status, Header: o.header}
	ctx.SetStatusCode(fasthttp.StatusOK)
	ctx.SetContentType(api.ContentTypeSealed)
	s := &replyStream{inv: inv, grant: g, params: params, head: head, body: o.body, size: o.size}
	if o.body == nil {
		s.whole(small)
		return
	}
	s.begin()
}

// failure is how a failure of the agent's own looks to the caller.
func failure(e *api.Error, callID string) (int, []sealed.Field, []byte) {
	b, err := json.Marshal(api.ProblemOf(e, callID))
	if err != nil {
		b = nil
	}
	return e.Status(), []sealed.Field{{Name: "content-type", Value: api.ContentTypeProblem},
		{Name: "x-faasd-sec-error", Value: string(e.Code)}}, b
}

// abandon ends an exchange whose reply goes nowhere.
func (inv *invocation) abandon(o outcome) {
	if o.body != nil {
		_ = o.body.Close()
	}
	inv.release()
}

// discard serves a request that wants no reply: the function works to its end,
// its output is dropped.
func (inv *invocation) discard(o outcome) {
	if o.body != nil {
		_, err := io.Copy(io.Discard, o.body)
		if err == nil {
			err = o.body.Finish()
		}
		if err != nil {
			inv.f.logs.platform("a request without reply key failed: %v", err)
		}
	}
	inv.abandon(o)
	inv.ctx.SetStatusCode(fasthttp.StatusNoContent)
	setWriteDeadline(inv.ctx, inv.f.b.write)
}

// replyStream seals a reply while the server writes it.
type replyStream struct {
	inv    *invocation
	grant  *sealed.Grant
	params sealed.MessageParams
	head   sealed.ReplyHead
	body   resultBody
	size   int64   // of the body, -1 if unknown
	first  *[]byte // buffer with what was read so far
	n      int
	used   int // bytes of the buffer that ever held plaintext
	once   sync.Once
}

// whole sends a reply of one piece.
func (s *replyStream) whole(body []byte) {
	ctx := s.inv.ctx
	buf := sealedBuffers.Get().(*[]byte)
	defer sealedBuffers.Put(buf)
	b, err := s.grant.AppendReply((*buf)[:0], s.params, s.head, body)
	if err != nil {
		s.head.Status, s.head.Header, body = failure(badHead(err), s.inv.callID)
		b, err = s.grant.AppendReply((*buf)[:0], s.params, s.head, body)
	}
	writeFor := s.inv.f.b.write
	s.finish()
	if err != nil {
		problem(ctx, api.Wrap(api.CodeInternal, err, "the reply could not be sealed"))
		return
	}
	*buf = b[:0]
	ctx.Response.SetBody(b) // copies: the server's buffers are pooled too
	setWriteDeadline(ctx, writeFor)
}

// badHead explains a reply whose head cannot be sealed.
func badHead(err error) *api.Error {
	e := api.Wrap(api.CodeFunctionIO, err, "the function's reply cannot be sealed: "+err.Error())
	e.Remedy = "have it answer with a status of 200 to 999 and fewer or shorter headers"
	return e
}

// begin reads the body as far as it has come. If that is all of it the reply is
// one piece, else it streams.
func (s *replyStream) begin() {
	s.first = recordBuffers.Get().(*[]byte)
	buf := *s.first
	// A server that sends its header alone, and says nothing of a length, means that
	// what follows comes when it comes: the caller is to know as much.
	_, served := s.body.(*httpBody)
	headFirst := served && s.size < 0 && s.body.Buffered() == 0
	for s.n < smallReply && !headFirst {
		m, err := s.body.Read(buf[s.n:])
		s.n += m
		s.used = s.n
		if err == io.EOF {
			if err := s.ended(); err != nil {
				s.failed(err)
				return
			}
			s.whole(buf[:s.n])
			return
		}
		if err != nil {
			s.failed(err)
			return
		}
		if s.body.Buffered() == 0 && (s.size < 0 || s.size > smallReply) {
			break // more may come later: what is here goes out now
		}
	}
	ctx := s.inv.ctx
	ctx.Response.ImmediateHeaderFlush = false // the first record follows at once
	ctx.Response.SetBodyStream(s, -1)
}

// ended waits for the end of the exchange, and vouches that the request's own
// end was verified: else the reply may not have one.
func (s *replyStream) ended() error {
	if err := s.body.Finish(); err != nil {
		return err
	}
	if !s.inv.msg.Complete() {
		return &sealed.Error{Code: sealed.CodeTruncated, Detail: "the request had no end"}
	}
	return nil
}

// failed answers an exchange that broke before anything of its reply was sent.
func (s *replyStream) failed(err error) {
	e := s.inv.explain(err)
	var body []byte
	s.head.Status, s.head.Header, body = failure(e, s.inv.callID)
	s.whole(body)
}

// finish gives everything back.
func (s *replyStream) finish() {
	s.once.Do(func() {
		if s.body != nil {
			_ = s.body.Close()
		}
		if s.first != nil {
			clear((*s.first)[:s.used])
			recordBuffers.Put(s.first)
			s.first = nil
		}
		s.grant.Release()
		s.inv.release()
	})
}

// SupportsBodyWriteTo implements fasthttp.BodyWriterTo.
func (s *replyStream) SupportsBodyWriteTo() bool { return true }

// Read implements io.Reader, which the server asks for and does not use.
func (s *replyStream) Read([]byte) (int, error) {
	return 0, errors.New("agent: a sealed reply is written, not read")
}

// Close implements io.Closer.
func (s *replyStream) Close() error { s.finish(); return nil }

// WriteTo seals the reply into w. An error leaves the message without its final
// record and the connection without its last chunk: nobody takes it for whole.
func (s *replyStream) WriteTo(w io.Writer) (int64, error) {
	cw := &deadlineWriter{w: w, conn: s.inv.ctx.Conn(), per: s.inv.f.b.write}
	// One write per record, whatever pieces the sealing writes: each becomes a
	// chunk and a system call.
	bw := bufio.NewWriterSize(cw, sealed.MaxRecord+1024)
	sw, err := s.grant.SealReply(bw, s.params, s.head)
	if err != nil {
		return 0, err
	}
	defer sw.Abort()
	err = s.copy(sw, bw)
	if err == nil {
		err = s.ended()
	}
	if err != nil {
		s.inv.cutShort(err)
		return cw.n, err
	}
	if err := sw.Close(); err != nil {
		return cw.n, err
	}
	return cw.n, bw.Flush()
}

func (s *replyStream) copy(sw *sealed.Writer, bw *bufio.Writer) error {
	buf, n := *s.first, s.n
	s.used = len(buf)
	for {
		if n > 0 {
			if _, err := sw.Write(buf[:n]); err != nil {
				return err
			}
		}
		if s.body.Buffered() == 0 { // the function pauses: the caller gets what there is
			if err := sw.Flush(); err != nil {
				return err
			}
			if err := bw.Flush(); err != nil {
				return err
			}
		}
		var err error
		if n, err = s.body.Read(buf); err == io.EOF {
			if n > 0 {
				if _, err := sw.Write(buf[:n]); err != nil {
					return err
				}
			}
			return nil
		} else if err != nil {
			return err
		}
	}
}

// deadlineWriter bounds each write: a caller that takes nothing for so long is
// given up, one that takes a long time for much is not.
type deadlineWriter struct {
	w    io.Writer
	conn net.Conn
	per  time.Duration
	n    int64
}

func (d *deadlineWriter) Write(p []byte) (int, error) {
	if err := d.conn.SetWriteDeadline(time.Now().Add(d.per)); err != nil {
		return 0, err
	}
	n, err := d.w.Write(p)
	d.n += int64(n)
	return n, err
}
