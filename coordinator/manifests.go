package coordinator

import (
	"context"
	"encoding/base64"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/manifest/ask"
	"github.com/faasd-sec/faasd-sec/placement"
	"github.com/faasd-sec/faasd-sec/relay"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// Manifests opens what is sealed to the cluster's manifest key; *ask.Client does.
type Manifests interface {
	Info(ctx context.Context) ([]ask.Key, error)
	Deposit(ctx context.Context, s ask.Subject, bounds []byte) (blob []byte, err error)
	Open(ctx context.Context, s ask.Subject, blob, sealedManifest []byte) (ask.Opened, error)
}

const (
	openTimeout = 2 * time.Second // of one call to the opener
	keysFresh   = time.Minute     // that published keys are not asked for again
)

// noManifests refuses what needs an opener where there is none.
func noManifests(field string) error {
	return &api.Error{Code: api.CodeUnavailable, Field: field, Message: "this coordinator opens no manifests",
		Remedy: "leave it out, or have the operator start manifest-opener and name it with -manifest-opener"}
}

// publishedKeys keeps the opener's keys for a while: anybody may ask for them.
type publishedKeys struct {
	mu     sync.Mutex
	at     time.Time
	reply  *api.ManifestKeys
	failed failure
}

// failure is the last one of a question that is asked under a lock. It is also that
// of all that came while others waited for it: where nobody answers each of them
// would wait as long once more, after all that came before.
type failure struct {
	began time.Time
	err   error
}

// of is the failure of a question that was asked since somebody came for its answer;
// nil if it has yet to be asked.
func (f *failure) of(came time.Time) error {
	if f.began.After(came) {
		return f.err
	}
	return nil
}

func (c *Coordinator) manifestKeys() (*api.ManifestKeys, error) {
	if c.dep.Manifests == nil {
		return nil, noManifests("")
	}
	k, came := &c.manifestKey, time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.reply != nil && time.Since(k.at) < keysFresh {
		return k.reply, nil
	}
	if err := k.failed.of(came); err != nil {
		return nil, err
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(c.life, openTimeout)
	defer cancel()
	keys, err := c.dep.Manifests.Info(ctx)
	if k.failed = (failure{began, err}); err != nil {
		return nil, err
	}
	out := &api.ManifestKeys{}
	for _, key := range keys {
		out.Identity = key.Identity.String()
		out.Keys = append(out.Keys, api.ManifestKey{Public: key.Public.String(), NotBefore: key.NotBefore, NotAfter: key.NotAfter, Signature: key.Signature})
	}
	k.at, k.reply = time.Now(), out
	return out, nil
}

// depositBounds has the opener take a function's bounds; the blob is for the store.
func (c *Coordinator) depositBounds(ctx context.Context, s ask.Subject, bounds []byte) ([]byte, error) {
	if len(bounds) == 0 {
		return nil, nil
	}
	if c.dep.Manifests == nil {
		return nil, noManifests("bounds")
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	return c.dep.Manifests.Deposit(ctx, s, bounds)
}

// task is what an invocation and its manifest come to.
type task struct {
	c        *Coordinator
	r        *route
	from     sealed.PublicKey // whose the request is, and must be the manifest
	known    *demand          // of a task without a manifest
	held     *held            // the manifest, nil for none
	id       sealed.ID
	name     string // what it is called in lists: id, or the call's
	priority int
	deadline time.Time // by which it must have ended, zero for none
	retry    retry
	ownKind  bool            // no replica serves it
	why      *explanation    // nil while nobody could ask
	trace    []relay.Header  // one or none
	call     *plainCall      // of a plain function; nil for a sealed one
	attempt  context.Context // of an asynchronous call: ends where it was cancelled; nil for others
}

// cancelled reports whether the call was cancelled, or its lease is gone.
func (t *task) cancelled() bool { return t.attempt != nil && t.attempt.Err() != nil }

// held is a caller's manifest. While it waits for room, and once a node has been
// told, it is there sealed alone: each round opens it again.
type held struct {
	sealed []byte
	demand *demand // nil when it is not being placed
}

// forget wipes what the manifest told.
func (h *held) forget() {
	if h.demand == nil {
		return
	}
	h.demand.wipe()
	h.demand = nil
	wipeStack()
}

// taskOf opens the caller's manifest, or takes the revision's defaults. A function
// without bounds called without a manifest costs nothing here.
func (c *Coordinator) taskOf(ctx *fasthttp.RequestCtx, r *route, p *sealed.Peeked, call string) (task, error) {
	return c.taskWith(ctx.Request.Header.Peek(api.HeaderManifest), r, p, call)
}

// taskWith is taskOf for the manifest in text, as its header has it.
func (c *Coordinator) taskWith(text []byte, r *route, p *sealed.Peeked, call string) (task, error) {
	t := task{c: c, r: r, from: p.Grant.Sender, name: call, known: r.unbound}
	if len(text) == 0 {
		if len(r.rec.Bounds) == 0 {
			return t, nil
		}
		d, err := c.defaults(r)
		if err != nil {
			return t, err
		}
		t.known, t.priority, t.retry, t.ownKind = d, d.priority, d.retry, d.ownKind
		return t, nil
	}
	if c.dep.Manifests == nil {
		return t, noManifests(api.HeaderManifest)
	}
	if len(text) > api.MaxManifestHeader {
		e := api.Errorf(api.CodeTooLarge, "a manifest of %d characters, at most %d", len(text), api.MaxManifestHeader)
		e.Field, e.Remedy = api.HeaderManifest, "ask for less: fewer constraints, ports or codes"
		return t, e
	}
	t.held = &held{sealed: make([]byte, base64.RawURLEncoding.DecodedLen(len(text)))}
	if _, err := base64.RawURLEncoding.Decode(t.held.sealed, text); err != nil {
		return t, api.Invalid(api.HeaderManifest, "send base64url without padding", "it does not decode")
	}
	if err := t.open(); err != nil {
		return t, err
	}
	d := t.held.demand
	t.id, t.name, t.priority, t.retry, t.ownKind = d.task, d.task.String(), d.priority, d.retry, d.ownKind
	if d.deadline > 0 {
		t.deadline = time.UnixMilli(d.deadline)
		if !time.Now().Before(t.deadline) {
			t.forget()
			return t, api.Errorf(api.CodeDeadline, "the manifest's deadline is over")
		}
	}
	return t, nil
}

// open makes the demand, if it is not there.
func (t *task) open() error {
	if t.held == nil || t.held.demand != nil {
		return nil
	}
	defer wipeStack()
	return t.ask()
}

//go:noinline
func (t *task) ask() error {
	ctx, cancel := context.WithTimeout(t.c.life, openTimeout)
	defer cancel()
	opened, err := t.c.dep.Manifests.Open(ctx, t.r.subject, t.r.rec.Bounds, t.held.sealed)
	if err != nil {
		return err
	}
	defer opened.Manifest.Wipe()
	if opened.Sender != t.sender() {
		e := api.Errorf(api.Code(sealed.CodeSender), "the manifest is another's than the request")
		e.Field, e.Remedy = api.HeaderManifest, "seal both with one identity"
		return e
	}
	t.held.demand, err = newDemand(t.r, &opened.Manifest)
	return err
}

// needs is the demand; the manifest is open.
func (t *task) needs() *demand {
	if t.held != nil {
		return t.held.demand
	}
	return t.known
}

// forget wipes what only the manifest told. Defaults stay with their revision.
func (t *task) forget() {
	if t.held != nil {
		t.held.forget()
	}
}

// until is when its exchange with a node must be over.
func (t *task) until(limit time.Time) time.Time {
	if !t.deadline.IsZero() && t.deadline.Before(limit) {
		return t.deadline
	}
	return limit
}

// look is what a round over the nodes has come to.
type look struct {
	seed    uint64
	pending func(i int) int
	hosting func(i int) bool
	exclude []string
}

// pick asks placement, and leaves nothing of the demand on the stack.
func (t *task) pick(idx *placement.Index, w placement.Weights, l *look) (placement.Decision, error) {
	if err := t.open(); err != nil {
		return placement.Decision{}, err
	}
	d := t.decide(idx, w, l)
	if t.held != nil {
		wipeStack()
	}
	t.why.unfit(&d)
	return d, nil
}

//go:noinline
func (t *task) decide(idx *placement.Index, w placement.Weights, l *look) placement.Decision {
	req := t.needs().request
	req.Seed, req.Pending, req.Hosting, req.Exclude = l.seed, l.pending, l.hosting, l.exclude
	if t.why != nil {
		req.Explain, req.Terse = maxExplained, true
	}
	d := idx.Pick(req, w)
	if len(d.Candidates) == 0 && req.Apart {
		// Where the function's sandboxes are idle the node stops them for it, and
		// which are shows only there: it refuses if one is not.
		req.Apart = false
		if offer := idx.Pick(req, w); len(offer.Candidates) > 0 {
			return offer
		}
	}
	return d
}

// sender is who sent the task.
func (t *task) sender() sealed.Fingerprint { return t.from.Fingerprint() }

// mergedDefaults are a revision's, merged once.
type mergedDefaults struct {
	mu     sync.Mutex // held while the opener is asked, so that it is asked once
	failed failure
	d      atomic.Pointer[demand]
}

// defaults merges a revision's bounds with nothing. The result is as much the
// operator's to see as the function's limits are: it is kept with the route.
func (c *Coordinator) defaults(r *route) (*demand, error) {
	if d := r.defaults.d.Load(); d != nil {
		return d, nil
	}
	if c.dep.Manifests == nil {
		return nil, noManifests("bounds")
	}
	came := time.Now()
	r.defaults.mu.Lock()
	defer r.defaults.mu.Unlock()
	if d := r.defaults.d.Load(); d != nil {
		return d, nil
	}
	if err := r.defaults.failed.of(came); err != nil {
		return nil, err
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(c.life, openTimeout)
	defer cancel()
	opened, err := c.dep.Manifests.Open(ctx, r.subject, r.rec.Bounds, nil)
	if r.defaults.failed = (failure{began, err}); err != nil {
		return nil, err
	}
	defer opened.Manifest.Wipe()
	d, err := newDemand(r, &opened.Manifest)
	if err != nil {
		return nil, err
	}
	r.defaults.d.Store(d)
	return d, nil
}
