package coordinator

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/emmansun/gmsm/sm3"
	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/queue"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// LabelCallback is the label of signatures on callbacks; see docs/async.md.
const LabelCallback = "faasd-sec/v1 callback"

// Bounds of callbacks.
const (
	maxCallbacks     = 64               // at once
	callbackTime     = 30 * time.Second // of one attempt; a large body has more
	callbackRate     = 1 << 20          // bytes a second that a receiver must take at least
	callbackMinPause = time.Second
	callbackMaxPause = 5 * time.Minute
)

// checkCallback refuses what is no address to call back.
func checkCallback(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || len(text) > 2048 ||
		strings.ContainsAny(text, "\r\n") {
		return api.Invalid(api.HeaderCallback, "use an http or https URL without a password, of at most 2,048 characters", "it is not such a URL")
	}
	return nil
}

// callback makes the callbacks that are owed, until the coordinator ends.
func (c *Coordinator) callback() {
	caller := &caller{c: c, http: c.callbackClient()}
	defer caller.http.CloseIdleConnections()
	places := make(chan struct{}, maxCallbacks)
	if c.async.Signer != nil {
		c.publishKey(&caller.key)
	}
	for c.life.Err() == nil {
		places <- struct{}{}
		owed, again, err := c.async.Queue.NextOwed(c.life)
		if owed != nil {
			go func() { defer func() { <-places }(); caller.tell(owed) }()
			continue
		}
		<-places
		if err != nil && c.life.Err() == nil {
			c.log.Warn("callback not claimed; tried again", "err", err)
		}
		pause := time.Second
		if !again.IsZero() {
			pause = min(max(time.Until(again), 10*time.Millisecond), pause)
		}
		t := time.NewTimer(pause)
		select {
		case <-c.async.Queue.Owing():
		case <-t.C:
		case <-c.life.Done():
		}
		t.Stop()
	}
	for range cap(places) {
		places <- struct{}{}
	}
}

// publishKey tells receivers how to verify what this coordinator signs. Until it
// has, callbacks are late.
func (c *Coordinator) publishKey(into *sealed.PublicKey) {
	pub, err := sealed.PublicKeyOf(c.async.Signer.Public())
	if err != nil {
		c.log.Error("callbacks are not signed: the key is none of SM2", "err", err)
		return
	}
	k := api.CallbackKey{Fingerprint: pub.Fingerprint().String(), Public: pub.String()}
	for c.life.Err() == nil {
		if err = c.async.Queue.PublishKey(c.life, k); err == nil {
			*into = pub
			return
		}
		c.log.Warn("key of callbacks not published; tried again", "err", err)
		select {
		case <-time.After(time.Second):
		case <-c.life.Done():
		}
	}
}

// serveCallbackKeys serves GET /v1/callback-key.
func (c *Coordinator) serveCallbackKeys(ctx *fasthttp.RequestCtx) {
	if c.async == nil {
		c.problem(ctx, noAsync())
		return
	}
	sctx, cancel := context.WithTimeout(c.life, storeTimeout)
	defer cancel()
	keys, err := c.async.Queue.Keys(sctx)
	if err != nil {
		c.problem(ctx, err)
		return
	}
	c.reply(ctx, api.CallbackKeys{Keys: keys})
}

// caller makes callbacks.
type caller struct {
	c    *Coordinator
	http *http.Client
	key  sealed.PublicKey // zero: callbacks are not signed
}

// tell makes one attempt at a callback and writes what came of it.
func (k *caller) tell(o *queue.Owed) {
	c := k.c
	now := time.Now()
	err := k.post(c.life, o)
	c.met.async.callbacks.WithLabelValues(outcome(err)).Inc()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.life), storeTimeout)
	defer cancel()
	var final *finalError
	pause := callbackMinPause << min(o.Attempts-1, 16)
	at := now.Add(mrand.N(min(pause, callbackMaxPause)) + callbackMinPause/2)
	switch {
	case err == nil, errors.As(err, &final), at.UnixMilli() >= o.Until:
		if err != nil {
			c.log.Warn("callback given up", "call", o.ID, "function", o.Function, "attempts", o.Attempts, "err", err)
		}
		err = o.Done(ctx)
	default:
		err = o.Again(ctx, at)
	}
	if err != nil && !errors.Is(err, queue.ErrFenced) {
		c.log.Warn("outcome of a callback not stored; it may be made again", "call", o.ID, "err", err)
	}
}

// finalError is of a callback that would fail in the same way again.
type finalError struct{ error }

// Unwrap gives the cause.
func (e *finalError) Unwrap() error { return e.error }

func (k *caller) post(ctx context.Context, o *queue.Owed) error {
	s, err := k.c.async.Queue.State(ctx, o.ID)
	if api.CodeOf(err) == api.CodeNotFound {
		return &finalError{err}
	}
	if err != nil {
		return err
	}
	p, err := k.c.payloadOf(ctx, &s)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callbackTime+time.Duration(p.size/callbackRate)*time.Second)
	defer cancel()
	digest, err := p.sum()
	if err != nil {
		return err
	}
	body, err := p.open()
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url, body)
	if err != nil {
		_ = body.Close()
		return &finalError{err}
	}
	req.ContentLength = p.size
	if s.Result != nil {
		for name, values := range s.Result.Header {
			for _, v := range values {
				req.Header.Add(name, v)
			}
		}
	}
	for name, value := range p.header {
		req.Header.Set(name, value)
	}
	if err := k.sign(req.Header, p, digest, time.Now()); err != nil {
		_ = body.Close()
		return err
	}
	resp, err := k.http.Do(req)
	if err != nil {
		if errors.Is(err, errForbiddenAddress) {
			return &finalError{api.Wrap(api.CodeForbidden, err, "the callback's address is not allowed")}
		}
		return api.Wrap(api.CodeUnavailable, err, "the callback's receiver cannot be reached")
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10) // so that the connection is kept
	switch {
	case resp.StatusCode/100 == 2:
		return nil
	case resp.StatusCode/100 == 3, resp.StatusCode == http.StatusGone:
		return &finalError{api.Errorf(api.CodeInvalid, "the receiver answered %d", resp.StatusCode)}
	}
	return api.Errorf(api.CodeUnavailable, "the receiver answered %d", resp.StatusCode)
}

// sign adds the signature of docs/async.md.
func (k *caller) sign(h http.Header, p *payload, digest string, now time.Time) error {
	if k.key.IsZero() {
		return nil
	}
	stamp := strconv.FormatInt(now.Unix(), 10)
	sig, _, err := sealed.Sign(rand.Reader, k.c.async.Signer, LabelCallback, CallbackMessage(stamp, p.url, p.header[api.HeaderCallID],
		p.header[api.HeaderFunctionName], p.header[api.HeaderFunctionStatus], p.header[fasthttp.HeaderContentType], digest))
	if err != nil {
		return fmt.Errorf("sign a callback: %w", err)
	}
	h.Set(api.HeaderTimestamp, stamp)
	h.Set(api.HeaderSignatureKey, k.key.Fingerprint().String())
	h.Set(api.HeaderSignature, hex.EncodeToString(sig))
	return nil
}

// CallbackMessage is what the signature on a callback is made over, under
// LabelCallback: each part followed by a newline, which none of them has. digest
// is SM3 of the body, in hex.
func CallbackMessage(timestamp, url, callID, function, status, contentType, digest string) []byte {
	return []byte(strings.Join([]string{timestamp, url, callID, function, status, contentType, digest, ""}, "\n"))
}

// payload is what a callback carries.
type payload struct {
	url    string
	header map[string]string
	size   int64
	digest string // of the body, hex; "" until it was summed
	open   func() (io.ReadCloser, error)
}

func (p *payload) sum() (string, error) {
	if p.digest != "" {
		return p.digest, nil
	}
	r, err := p.open()
	if err != nil {
		return "", err
	}
	defer r.Close()
	h := sm3.New()
	if _, err := io.Copy(h, r); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// payloadOf is what is told of a call that ended.
func (c *Coordinator) payloadOf(ctx context.Context, s *queue.State) (*payload, error) {
	switch {
	case s.Result != nil:
		r := s.Result
		p := &payload{url: r.Deliver.Callback, header: resultHeader(r), size: r.Body.Size, digest: r.Body.Blob[max(0, len(r.Body.Blob)-64):]}
		if r.Body.Type != "" {
			p.header[fasthttp.HeaderContentType] = r.Body.Type
		}
		p.open = func() (io.ReadCloser, error) { return c.resultBody(ctx, r) }
		return p.asEvent(r.Deliver.Events, eventOf(r.ID, r.Function, eventResult, r.Ended)), nil
	case s.Dead != nil:
		d := s.Dead
		problem := api.ProblemOf(gaveUp(d), d.ID)
		b, err := json.Marshal(problem)
		if err != nil {
			return nil, fmt.Errorf("encode a problem: %w", err)
		}
		p := &payload{url: d.Deliver.Callback, size: int64(len(b)), header: map[string]string{
			api.HeaderCallID: d.ID, api.HeaderFunctionName: d.Function.Short(), api.HeaderFunctionStatus: strconv.Itoa(problem.Status),
			api.HeaderDuration: "0.000000", api.HeaderAttempts: strconv.Itoa(d.Attempts), fasthttp.HeaderContentType: api.ContentTypeProblem}}
		p.open = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
		return p.asEvent(d.Deliver.Events, eventOf(d.ID, d.Function, eventFailed, d.Failure.At)), nil
	}
	return nil, &finalError{api.Errorf(api.CodeConflict, "call is being attempted again")}
}
