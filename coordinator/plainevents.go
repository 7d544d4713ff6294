package coordinator

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/gate"
	"github.com/faasd-sec/faasd-sec/relay"
)

// annotationEvents says how a plain function takes structured CloudEvents that come in
// synchronous calls: with eventsAsData as their data, with the attributes in headers.
// Without it, it gets them as they are, unless the call asks for an event back.
const (
	annotationEvents = "com.faasd-sec.events"
	eventsAsData     = "data"
)

// eventsMode reads whether a caller wants an event back: "structured", "binary" or "".
func eventsMode(ctx *fasthttp.RequestCtx) (string, error) {
	switch mode := string(ctx.Request.Header.Peek(api.HeaderEvents)); mode {
	case "", "structured", "binary":
		return mode, nil
	}
	return "", api.Invalid(api.HeaderEvents, "use structured or binary", "it is neither")
}

// plainEvent turns a structured event into the call that a function is to get, where
// that is asked for, and reads what the reply is to be. release, which is called once
// the request is not needed any more, gives back what it took.
func (c *Coordinator) plainEvent(ctx *fasthttp.RequestCtx, r *route) (mode string, release func(), err error) {
	release = func() {}
	if mode, err = eventsMode(ctx); err != nil {
		return "", release, gate.Unread(ctx, err)
	}
	if mode != "" && (ctx.IsHead() || ctx.Request.Header.ConnectionUpgrade()) {
		return "", release, gate.Unread(ctx, api.Invalid(api.HeaderEvents, "leave it out", "the reply to this request cannot be an event"))
	}
	if !isEvent(string(ctx.Request.Header.ContentType())) {
		return mode, release, nil
	}
	switch text := r.rec.Plain.Annotations[annotationEvents]; {
	case text != "" && text != eventsAsData:
		return "", release, gate.Unread(ctx, api.Invalid("annotations."+annotationEvents, `write "data", or leave it out`, "it is neither"))
	case text == "" && mode == "":
		return "", release, nil // the function takes it as it is
	}
	n := int64(ctx.Request.Header.ContentLength())
	if n < 0 || n > maxEvent {
		n = maxEvent
	}
	from := origin(ctx.RemoteAddr())
	if err := c.budget.take(from, 2*n); err != nil { // as it came, and its data
		return "", release, gate.Unread(ctx, err)
	}
	return mode, func() { c.budget.give(from, 2*n) }, unwrapEvent(ctx)
}

// encodings keeps what the function would compress out of a structured event, which
// says nothing of that.
func encodings(headers []relay.Header) []relay.Header {
	kept := headers[:0]
	for _, h := range headers {
		if h.Name != "accept-encoding" {
			kept = append(kept, h)
		}
	}
	return kept
}

// bounded takes a reply's body up to maxEvent, and counts it among what is held for
// whoever asked.
type bounded struct {
	buf    bytes.Buffer // not embedded: its ReadFrom would know no bound
	budget *budget
	from   netip.Addr
}

// Close gives back what the body took of the budget.
func (b *bounded) Close() error {
	b.budget.give(b.from, int64(b.buf.Len()))
	b.buf.Reset()
	return nil
}

// Write implements io.Writer.
func (b *bounded) Write(p []byte) (int, error) {
	if b.buf.Len()+len(p) > maxEvent {
		e := api.Errorf(api.CodeTooLarge, "the function's reply is over the %d bytes that an event may have", maxEvent)
		e.Field, e.Remedy = api.HeaderEvents, "ask for a binary event, whose data flows"
		return 0, e
	}
	if err := b.budget.take(b.from, int64(len(p))); err != nil {
		return 0, err
	}
	return b.buf.Write(p)
}

// sendEvent makes a function's reply, which it reads to its end, a structured event.
// The request's body is released by then.
func (c *Coordinator) sendEvent(ctx *fasthttp.RequestCtx, reply *relay.Reply, id string, function api.FunctionName) (retErr error) {
	data := &bounded{budget: c.budget, from: origin(ctx.RemoteAddr())}
	defer func() {
		if retErr != nil {
			_ = data.Close() // gives back, and cannot fail
		}
	}()
	typ, encoding := "", ""
	var own []relay.Header
	reply.Each(func(name, value string) {
		switch {
		case name == "content-type":
			typ = value
		case name == "content-encoding":
			encoding = value
		case functionsOwn(name):
			own = append(own, relay.Header{Name: name, Value: value})
		}
	})
	if _, err := reply.SaveTo(data); err != nil {
		return err
	}
	if encoding != "" && !strings.EqualFold(encoding, "identity") {
		return api.Errorf(api.CodeFunctionFailed, "the function's reply is encoded as %q, which an event does not tell", encoding)
	}
	p := &payload{header: map[string]string{}, size: int64(data.buf.Len())}
	if typ != "" {
		p.header[fasthttp.HeaderContentType] = typ
	}
	p.open = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data.buf.Bytes())), nil }
	p.asEvent("structured", eventOf(id, function, eventResult, time.Now().UnixMilli()))
	body, err := p.open()
	if err != nil {
		return err
	}
	for _, h := range own {
		ctx.Response.Header.Add(h.Name, h.Value)
	}
	ctx.SetStatusCode(withBody(reply.Status))
	ctx.Response.Header.Set(api.HeaderFunctionStatus, strconv.Itoa(reply.Status))
	ctx.Response.Header.SetContentType(contentTypeEvent)
	ctx.SetBodyStream(&eventBody{body, data}, int(p.size))
	return nil
}

// eventBody is an event as it is sent; with it ends what it is made of.
type eventBody struct {
	io.ReadCloser
	data *bounded
}

// Close implements io.Closer.
func (e *eventBody) Close() error { return errors.Join(e.ReadCloser.Close(), e.data.Close()) }

// withBody is a function's status for a reply that has a body.
func withBody(status int) int {
	switch status {
	case fasthttp.StatusNoContent, fasthttp.StatusResetContent, fasthttp.StatusNotModified:
		return fasthttp.StatusOK
	}
	return status
}

// binaryEvent makes a reply that flows a binary event.
func binaryEvent(ctx *fasthttp.RequestCtx, status int, id string, function api.FunctionName) {
	p := &payload{header: map[string]string{}}
	p.asEvent("binary", eventOf(id, function, eventResult, time.Now().UnixMilli()))
	for name, value := range p.header {
		ctx.Response.Header.Set(name, value)
	}
	ctx.Response.Header.Set(api.HeaderFunctionStatus, strconv.Itoa(status))
}
