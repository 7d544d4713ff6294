package client

import (
	"errors"
	"io"
	"net/http"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// open opens the head of a sealed reply; on an error the caller closes body.
func open(pending *unseal.PendingReply, body io.ReadCloser) (*Response, error) {
	msg, err := pending.Open(body)
	if err != nil {
		return nil, replyError(err)
	}
	head, err := msg.ReplyHead()
	if err != nil {
		msg.Close()
		return nil, replyError(err)
	}
	r, err := msg.Stream()
	if err != nil {
		msg.Close()
		return nil, replyError(err)
	}
	out := &Response{Status: head.Status, Header: make(http.Header, len(head.Header)),
		Body: &replyBody{msg: msg, plain: r, transport: body}}
	for _, f := range head.Header {
		out.Header.Add(f.Name, f.Value)
	}
	return out, nil
}

// replyBody reads verified records; io.EOF comes only after the final one.
type replyBody struct {
	msg       *unseal.Message
	plain     io.Reader
	transport io.ReadCloser
	closed    bool
}

func (b *replyBody) Read(p []byte) (int, error) {
	if b.closed {
		return 0, errors.New("client: read of a closed reply")
	}
	n, err := b.plain.Read(p)
	if err != nil && err != io.EOF {
		err = replyError(err)
	}
	return n, err
}

// Close ends the exchange, also when the reply was not read to its end.
func (b *replyBody) Close() error {
	if b.closed {
		return nil
	}
	b.closed = true
	err := b.msg.Close()
	return errors.Join(err, b.transport.Close())
}

// replyError tells a broken connection from a reply that must not be believed.
func replyError(err error) error {
	switch c := sealed.CodeOf(err); c {
	case "":
		return api.Wrap(api.CodeNodeLost, err, "the reply broke off; whether the function finished is unknown")
	case sealed.CodeTruncated:
		return &api.Error{Code: api.CodeNodeLost, Err: err, Message: "the reply was cut short; whether the function finished is unknown",
			Remedy: "do not use the part that arrived; look at the function's logs"}
	default:
		return &api.Error{Code: api.Code(c), Err: err, Message: "the reply does not open: it is not this function's answer to this request",
			Remedy: "somebody between you and the function changed it, or the cluster is broken"}
	}
}
