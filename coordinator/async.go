package coordinator

import (
	"bytes"
	"context"
	"crypto"
	"encoding/hex"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/emmansun/gmsm/sm3"
	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/gate"
	"github.com/faasd-sec/faasd-sec/queue"
	"github.com/faasd-sec/faasd-sec/relay"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// Async are the parts that asynchronous invocations take; a Coordinator without
// them refuses those.
type Async struct {
	Queue   *queue.Queue
	Blobs   Bodies
	Workers int            // attempts under way at once; 0 takes DefaultAsyncWorkers
	Retry   queue.Retry    // for functions that say nothing; zero takes DefaultRetry
	Signer  crypto.Signer  // of callbacks, an SM2 key; nil: they are not signed
	Allow   []netip.Prefix // where callbacks may go beside what they may anyway
	MaxAge  time.Duration  // of a call of a function that says nothing; 0 takes DefaultAsyncAge

	Schedules Schedules // zero takes DefaultSchedules
}

// Bodies keeps what is too large for a record: a *blob.Dir where the coordinator is
// alone, *queue.Chunks where there are several, or Stores, which has both.
type Bodies interface {
	Put(r io.Reader) (name string, size int64, release func(), err error)
	Get(name string) (io.ReadCloser, error)
	Collect(ctx context.Context, age time.Duration, used func(context.Context, string) (bool, error)) (int, error)
}

// Defaults of Async.
const (
	DefaultAsyncWorkers = 256
	DefaultAsyncAge     = 6 * time.Hour
)

// DefaultRetry is how failed attempts are repeated: with pauses drawn from 0 to
// a bound that begins at a second and doubles up to a minute.
func DefaultRetry() queue.Retry { return queue.Retry{Attempts: 5, MinWaitMs: 1000, MaxWaitMs: 60_000} }

func (a *Async) settle() *Async {
	if a == nil {
		return nil
	}
	b := *a
	if b.Workers == 0 {
		b.Workers = DefaultAsyncWorkers
	}
	if b.Retry.Attempts == 0 {
		b.Retry = DefaultRetry()
	}
	if b.MaxAge == 0 {
		b.MaxAge = DefaultAsyncAge
	}
	if b.Schedules == (Schedules{}) {
		b.Schedules = DefaultSchedules()
	}
	return &b
}

func noAsync() error {
	e := api.Errorf(api.CodeUnavailable, "this coordinator takes no asynchronous invocations")
	e.Remedy = "invoke with POST " + api.GatewayPathInvoke + "NAME"
	return e
}

// serveAsync serves what is below GatewayPathAsync.
func (c *Coordinator) serveAsync(ctx *fasthttp.RequestCtx, name string) {
	if ctx.IsDelete() {
		if err := c.cancelAsync(ctx, name); err != nil {
			c.problem(ctx, err)
			return
		}
		ctx.SetStatusCode(fasthttp.StatusAccepted)
		return
	}
	c.acceptAsync(ctx, name)
}

// acceptAsync takes one asynchronous invocation of NAME[.NAMESPACE][/path]: 202
// once it is durable.
func (c *Coordinator) acceptAsync(ctx *fasthttp.RequestCtx, name string) {
	began := time.Now()
	id := gate.CallID(ctx)
	ctx.Response.Header.Set(api.HeaderStartTime, strconv.FormatInt(began.UnixNano(), 10))
	err := c.enqueue(ctx, name, id, began)
	c.met.async.accepted.WithLabelValues(outcome(err)).Inc()
	if err != nil {
		if api.CodeOf(err) == api.CodeUnavailable {
			ctx.Response.Header.Set(fasthttp.HeaderRetryAfter, "5") // the store is away, most likely
		}
		c.problem(ctx, err)
		return
	}
	ctx.SetStatusCode(fasthttp.StatusAccepted)
}

// outcome is the label of an error, "ok" for none.
func outcome(err error) string {
	if err == nil {
		return string(gate.OK)
	}
	return api.CodeOf(err).Label()
}

func (c *Coordinator) enqueue(ctx *fasthttp.RequestCtx, name, id string, began time.Time) error {
	if c.async == nil {
		return gate.Unread(ctx, noAsync())
	}
	if err := c.async.Queue.Ready(); err != nil {
		return gate.Unread(ctx, err)
	}
	deliver, err := deliverOf(ctx)
	if err != nil {
		return gate.Unread(ctx, err)
	}
	if n := pledge(ctx.Request.Header.ContentLength()); n != 0 {
		from := origin(ctx.RemoteAddr())
		if err := c.budget.take(from, n); err != nil {
			return gate.Unread(ctx, err)
		}
		defer c.budget.give(from, n)
	}
	if err := unwrapEvent(ctx); err != nil {
		return err
	}
	if fn, err := api.ParseFunctionName(strings.SplitN(name, "/", 2)[0]); err == nil {
		if r, err := c.routeOf(fn); err == nil && r.plain != nil {
			if string(ctx.Request.Header.ContentType()) == api.ContentTypeSealed {
				return gate.Unread(ctx, plainFunction(fn))
			}
			return c.enqueuePlain(ctx, r, id, deliver, began)
		}
	}
	if len(ctx.Request.Header.Peek(api.HeaderManifest)) > 0 {
		deep(func() { err = c.enqueueSealed(ctx, name, id, deliver, began) })
		return err
	}
	return c.enqueueSealed(ctx, name, id, deliver, began)
}

// enqueueSealed accepts a sealed message for later.
func (c *Coordinator) enqueueSealed(ctx *fasthttp.RequestCtx, name, id string, deliver queue.Deliver, began time.Time) error {
	name, path, _ := strings.Cut(name, "/")
	if path != "" {
		e := api.Invalid("path", "leave it out: the path travels inside the sealed body", "a sealed function's path is not for the gateway to see")
		return gate.Unread(ctx, e)
	}
	r, body, p, err := c.accept(ctx, name, began)
	if err != nil {
		return err
	}
	defer body.Release()
	if err := sealed.CheckWindow(&p.Grant, &p.Message, r.maxAge, uint64(began.UnixMilli())); err != nil {
		return gate.Coded(err)
	}
	call := queue.Call{ID: id, Function: r.name, Owner: r.rec.Owner, Sender: p.Grant.Sender.Fingerprint().String(),
		Expires: int64(min(p.Message.Expires, 1<<62)), Retry: c.async.Retry, Deliver: deliver}
	call.Body.Type = api.ContentTypeSealed
	t, err := c.taskOf(ctx, r, &p, id)
	if err != nil {
		return err
	}
	t.forget()
	call.Priority = t.priority
	if t.held == nil {
		return c.keep(ctx, call, body)
	}
	if err := c.boundByManifest(&call, &t, ctx.Request.Header.Peek(api.HeaderManifest)); err != nil {
		return err
	}
	ctx.Response.Header.Set(api.HeaderCallID, call.ID)
	if err := c.fence(&t, r.rec.Owner, began); err != nil {
		return err
	}
	if err := c.keep(ctx, call, body); err != nil {
		if api.CodeOf(err) != api.CodeConflict {
			c.unfence(&t)
		}
		return err
	}
	return nil
}

// boundByManifest gives a call the name and the end of its task. Its manifest
// opens for some minutes only, and no longer is the call attempted.
func (c *Coordinator) boundByManifest(call *queue.Call, t *task, text []byte) error {
	p, err := sealed.Peek(t.held.sealed)
	if err != nil {
		return gate.Coded(err)
	}
	call.ID, call.Manifest = t.name, bytes.Clone(text)
	call.Expires = min(call.Expires, int64(min(p.Message.Expires, 1<<62)))
	if !t.deadline.IsZero() {
		call.Expires = min(call.Expires, t.deadline.UnixMilli())
	}
	return nil
}

// keep makes a call durable with its body, which is not released.
func (c *Coordinator) keep(ctx *fasthttp.RequestCtx, call queue.Call, body *relay.Body) error {
	key := queue.Key{Key: string(ctx.Request.Header.Peek(api.HeaderIdempotency))}
	var inline []byte
	if body.Small && len(body.Head) <= queue.MaxInline {
		inline, call.Body.Size = body.Head, int64(len(body.Head))
		if inline == nil {
			inline = []byte{}
		}
		if key.Key != "" {
			sum := sm3.Sum(inline)
			key.Digest = hex.EncodeToString(sum[:])
		}
	} else {
		r := body.Reader(time.Now().Add(uploadTime))
		digest, size, release, err := c.async.Blobs.Put(r)
		_ = r.Close()
		if err != nil {
			ctx.SetConnectionClose() // not all of it may have been read
			if api.CodeOf(err) == api.CodeInternal {
				return api.Wrap(api.CodeUnavailable, err, "the body could not be stored, or ended early")
			}
			return err
		}
		defer release()
		call.Body.Blob, call.Body.Size, key.Digest = digest, size, digest[len(digest)-64:]
	}
	sctx, cancel := context.WithTimeout(c.life, storeTimeout)
	defer cancel()
	id, _, err := c.async.Queue.Accept(sctx, call, inline, key)
	if err != nil {
		return err
	}
	ctx.Response.Header.Set(api.HeaderCallID, id)
	return nil
}

// uploadTime bounds the arrival of one large body.
const uploadTime = 10 * time.Minute

// deliverOf reads what a caller asks to become of the result.
func deliverOf(ctx *fasthttp.RequestCtx) (queue.Deliver, error) {
	h := &ctx.Request.Header
	d := queue.Deliver{Callback: string(h.Peek(api.HeaderCallback))}
	if d.Callback != "" {
		if err := checkCallback(d.Callback); err != nil {
			return d, err
		}
	}
	var err error
	if d.Events, err = eventsMode(ctx); err != nil {
		return d, err
	}
	switch once := string(h.Peek(api.HeaderOnce)); once {
	case "", "0":
	case "1":
		d.Once = true
	default:
		return d, api.Invalid(api.HeaderOnce, "use 1, or leave it out", "it is not 1")
	}
	return d, nil
}
