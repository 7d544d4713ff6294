package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
	"github.com/faasd-sec/faasd-sec/upstream"
)

// deathNotice is how long a broken exchange waits for the news that the
// function's process ended: the connection breaks a moment before.
const deathNotice = 250 * time.Millisecond

// smallBody is the most, in bytes, of a verified request that is read into
// memory to be sent with its length in one write.
const smallBody = 64 << 10

var smallBodies = sync.Pool{New: func() any { b := make([]byte, smallBody+1); return &b }}

// viaHTTP passes the request to the function's own server.
func (inv *invocation) viaHTTP(life context.Context) outcome {
	f := inv.f
	r := &upstream.Request{Method: inv.head.Method, Path: inv.head.Path, Query: inv.head.Query,
		Header: inv.head.Header, Deadline: inv.deadline, Length: inv.contentLength()}
	inv.onAbort(r.Abort)
	res := &httpBody{inv: inv}
	if inv.early() {
		r.Body, r.Cancel = inv.body, inv.cancelInput()
	} else if err := res.take(r); err != nil {
		res.giveBack()
		return outcome{err: err}
	}
	resp, err := f.client.Do(life, r)
	if err != nil {
		res.giveBack()
		return outcome{fail: inv.explain(err)}
	}
	res.Response = resp
	return outcome{status: resp.Status, header: ownHeaders(resp.Header), body: res, size: resp.Length}
}

// cancelInput ends a read of the request's body under way.
func (inv *invocation) cancelInput() func() {
	if inv.src == nil {
		return func() {}
	}
	return inv.src.close
}

// contentLength is what the caller sealed of the body's length, -1 if nothing
// usable: the body is then sent in chunks. A length that turns out wrong ends
// the exchange in an error.
func (inv *invocation) contentLength() int64 {
	for _, h := range inv.head.Header {
		if h.Name == "content-length" {
			if n, err := strconv.ParseInt(h.Value, 10, 64); err == nil && n >= 0 {
				return n
			}
		}
	}
	return -1
}

// httpBody is a reply of the function's server.
type httpBody struct {
	*upstream.Response
	inv   *invocation
	small *[]byte
	n     int
	large []byte
}

// take reads a verified body that is small into memory, so that it goes out
// with its length in one write. A larger one of up to unseal.HoldLimit is read
// as well, if the sandbox has the memory: many servers want a length. Beyond
// that it is sent as it is read, in chunks unless the caller stated a length.
func (b *httpBody) take(r *upstream.Request) error {
	b.small = smallBodies.Get().(*[]byte)
	n, whole, err := readUpTo(*b.small, b.inv.body)
	b.n = n
	if err != nil {
		return err
	}
	if whole {
		r.Small = (*b.small)[:n]
		return nil
	}
	read := (*b.small)[:n]
	if r.Length < 0 && b.inv.f.hold.take(unseal.HoldLimit) {
		b.inv.held += unseal.HoldLimit
		b.large = make([]byte, unseal.HoldLimit+1)
		copied := copy(b.large, read)
		n, whole, err := readUpTo(b.large[copied:], b.inv.body)
		if err != nil {
			return err
		}
		read = b.large[:copied+n]
		if whole {
			r.Small = read
			return nil
		}
	}
	r.Body, r.Cancel = io.MultiReader(&wiped{read}, b.inv.body), b.inv.cancelInput()
	return nil
}

// readUpTo fills p and reports how much there was and whether that was all.
func readUpTo(p []byte, r io.Reader) (n int, whole bool, err error) {
	for n < len(p) {
		m, err := r.Read(p[n:])
		n += m
		if err == io.EOF {
			return n, true, nil
		}
		if err != nil {
			return n, false, err
		}
	}
	return n, false, nil
}

// wiped is what was read ahead.
type wiped struct{ rest []byte }

func (w *wiped) Read(p []byte) (int, error) {
	if len(w.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p, w.rest)
	w.rest = w.rest[n:]
	return n, nil
}

// giveBack wipes the buffers and returns the small one.
func (b *httpBody) giveBack() {
	clear(b.large)
	b.large = nil
	if b.small != nil {
		clear((*b.small)[:b.n])
		smallBodies.Put(b.small)
		b.small = nil
	}
}

// Close implements resultBody.
func (b *httpBody) Close() error {
	err := b.Response.Close()
	b.giveBack()
	return err
}

// explain says why an exchange failed, in a way that can be told to a caller.
func (inv *invocation) explain(err error) *api.Error {
	var ours *api.Error
	var body *upstream.BodyError
	switch {
	case inv.gone.Load():
		return api.Wrap(api.CodeCallerGone, err, "the caller left")
	case errors.As(err, &body):
		if e, ok := readError(body.Err).(*api.Error); ok && !errors.Is(body.Err, os.ErrDeadlineExceeded) {
			return e
		}
		if time.Now().Before(inv.deadline) {
			return api.Wrap(api.CodeDeadline, err, fmt.Sprintf("nothing of the request's body came for %s", inv.f.b.read))
		}
		return inv.late(err)
	case errors.As(err, &ours):
		return ours
	case errors.Is(err, os.ErrDeadlineExceeded), !time.Now().Before(inv.deadline):
		return inv.late(err)
	}
	t := time.NewTimer(deathNotice)
	defer t.Stop()
	var died <-chan struct{}
	if inv.f.proc != nil {
		died = inv.f.proc.Done()
	}
	select {
	case <-died: // of what, the node may have to be asked, which takes longer than the news
		<-inv.f.dead
		return inv.f.cause
	case <-t.C:
	}
	if inv.f.stopping.Load() {
		return api.Wrap(api.CodeDraining, err, "the sandbox was stopped while the function worked")
	}
	return api.Wrap(api.CodeFunctionIO, err, "the exchange with the function broke: "+err.Error())
}

func (inv *invocation) late(err error) *api.Error {
	e := api.Wrap(api.CodeDeadline, err, fmt.Sprintf("the function did not finish within %s", inv.f.b.exec))
	e.Field, e.Remedy = "timeouts.exec", "raise it, or have the function do less at once"
	if inv.f.b.plain != nil {
		e.Field = "environment.exec_timeout"
	}
	return e
}

// ownHeaders drops what only the platform may say: a function must not be able to
// blame it in its caller's eyes, nor have a coordinator take its reply for a node's
// refusal, which it would send the request on after, or for the node's load.
func ownHeaders(h []sealed.Field) []sealed.Field {
	return slices.DeleteFunc(h, func(f sealed.Field) bool { return strings.HasPrefix(f.Name, platformPrefix) })
}

// platformPrefix begins the headers that are the platform's own, in both directions.
const platformPrefix = "x-faasd-sec-"
