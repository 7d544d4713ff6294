package client

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/schedule"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// Ahead is a schedule of calls that are sealed ahead, one for each tick: what to call
// and when, and what it takes to open the results. Save it with MarshalAhead, before
// what Seal made is sent: nobody else can open what comes of it.
type Ahead struct {
	ID       string // as the gateway knows it
	Function api.FunctionName
	Cron     string    // package schedule's form
	Until    time.Time // last tick that was sealed
	Revision sealed.Digest

	request  Request // Body is nil: it is in body
	body     []byte
	how      Later
	sealings []sealing
}

// sealing are ticks that were sealed at once.
type sealing struct {
	revision sealed.Digest
	signer   sealed.PublicKey
	ticks    []sealedTick
}

// sealedTick is what opens the result of a tick.
type sealedTick struct {
	at   int64 // unix milliseconds
	id   sealed.ID
	link sealed.Link
}

// NewAhead makes a schedule of calls of name with req, by a cron line. Nothing is
// sealed yet.
func (c *Client) NewAhead(name api.FunctionName, cron string, req Request, body []byte, how Later) (*Ahead, error) {
	if _, err := parseCron(cron); err != nil {
		return nil, err
	}
	if req.Needs != nil || req.Stream || how.Key != "" {
		return nil, api.Invalid("schedule", "leave them out", "a call that is sealed ahead has no needs, idempotency key or early input")
	}
	id, err := sealed.NewID(c.cfg.Random)
	if err != nil {
		return nil, fmt.Errorf("client: draw a schedule's id: %w", err)
	}
	req.Body, req.CallID, req.Trace = nil, "", ""
	return &Ahead{ID: hex.EncodeToString(id[:]), Function: name, Cron: cron, request: req, body: body, how: how}, nil
}

func parseCron(text string) (*schedule.Schedule, error) {
	s, err := schedule.Parse(text)
	if err != nil {
		var e *api.Error
		if errors.As(err, &e) { // of an annotation, by its field
			return nil, api.Invalid("cron", e.Remedy, e.Message)
		}
		return nil, err
	}
	return s, nil
}

// Ticks are sealed calls, to be sent with PutTicks.
type Ticks struct {
	Number      int
	First, Last time.Time
	Capped      bool // the function has no key for all of the time that was asked for, or there were too many
	body        []byte
}

// Bounds of what is sealed at once; gateways have the same ones unless told otherwise.
const (
	MaxTicks      = 10_000
	MaxTicksBytes = 64 << 20
)

// keepLinks is for how long after a tick its result can be opened.
const keepLinks = 30 * 24 * time.Hour

// SealTicks seals a call for each tick after from, up to and with until, for the
// function as it is deployed now.
func (c *Client) SealTicks(ctx context.Context, a *Ahead, from, until time.Time) (*Ticks, error) {
	if err := c.needIdentity(); err != nil {
		return nil, err
	}
	when, err := parseCron(a.Cron)
	if err != nil {
		return nil, err
	}
	f, err := c.fetch(ctx, a.Function)
	if err != nil {
		return nil, err
	}
	age, flags, err := ageOf(f, a.how.MaxAge)
	if err != nil {
		return nil, err
	}
	head, err := requestHead(a.request)
	if err != nil {
		return nil, err
	}
	out := &Ticks{}
	done := sealing{revision: f.revision, signer: f.desc.SigningKey}
	var g *sealed.Grant
	defer func() {
		if g != nil {
			g.Release()
		}
	}()
	for tick := when.Next(from); !tick.IsZero() && !tick.After(until); tick = when.Next(tick) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		key, err := f.desc.KeyAt(tick)
		if err != nil || out.Number == MaxTicks {
			out.Capped = true // what there is can be called
			break
		}
		if h := grantHeader(g); h == nil || !h.Covers(uint64(tick.UnixMilli())) || g.Recipient() != key {
			if g != nil {
				g.Release()
			}
			// No agent opens anything of it before its first tick.
			if g, err = sealed.NewGrant(sealed.GrantParams{Role: sealed.RoleRequest, Recipient: key, Sender: c.cfg.Identity.Signer(),
				ReplyKey: c.cfg.Identity.DecryptionKey(), Context: f.revision, Name: string(f.name),
				NotBefore: tick, NotAfter: tick.Add(sealed.MaxGrantWindow), Random: c.cfg.Random}); err != nil {
				return nil, fmt.Errorf("client: make a grant: %w", err)
			}
		}
		start := len(out.body)
		out.body = binary.BigEndian.AppendUint32(out.body, 0)
		b, h, link, err := g.AppendRequest(out.body, sealed.MessageParams{Issued: tick, Life: age, Flags: flags}, head, a.body)
		if err != nil {
			return nil, headError(err)
		}
		size := len(b) - start - 4
		switch {
		case size > api.MaxTickBytes:
			return nil, &api.Error{Code: api.CodeTooLarge, Field: "data", Message: fmt.Sprintf("a sealed call has %d bytes, at most %d are kept for each tick", size, api.MaxTickBytes),
				Remedy: "send less with each tick, or have the function fetch what is large"}
		case len(b) > MaxTicksBytes:
			out.Capped, out.body = true, b[:start]
		default:
			binary.BigEndian.PutUint32(b[start:], uint32(size))
			out.body = b
			done.ticks = append(done.ticks, sealedTick{at: tick.UnixMilli(), id: h.ID, link: link})
			if out.Number++; out.Number == 1 {
				out.First = tick
			}
			out.Last = tick
			continue
		}
		break
	}
	if out.Number == 0 {
		return nil, api.Invalid("for", "seal for a longer time, or deploy the function again for fresh keys", "there is no tick in it that can be sealed")
	}
	a.add(done, c.cfg.Now())
	return out, nil
}

func grantHeader(g *sealed.Grant) *sealed.GrantHeader {
	if g == nil {
		return nil
	}
	h := g.Header()
	return &h
}

// add keeps what opens results, and forgets what is long over.
func (a *Ahead) add(done sealing, now time.Time) {
	old, kept := now.Add(-keepLinks).UnixMilli(), a.sealings[:0]
	for _, s := range a.sealings {
		if s.ticks[len(s.ticks)-1].at >= old {
			kept = append(kept, s)
		}
	}
	a.sealings = append(kept, done)
	a.Revision, a.Until = done.revision, time.UnixMilli(done.ticks[len(done.ticks)-1].at)
}

// PutTicks sends sealed ticks: mode is api.TicksNew, TicksAppend or TicksReplace.
func (c *Client) PutTicks(ctx context.Context, a *Ahead, t *Ticks, mode string) (api.Schedule, error) {
	header := http.Header{}
	once := ""
	if a.how.Once {
		once = "1"
	}
	for name, value := range map[string]string{api.HeaderCallback: a.how.Callback, api.HeaderEvents: a.how.Events, api.HeaderOnce: once} {
		if value != "" {
			header.Set(name, value)
		}
	}
	var out api.Schedule
	return out, c.do(ctx, call{method: http.MethodPut, path: schedulePath(a.ID), query: url.Values{api.QueryFunction: {string(a.Function)}, api.QueryMode: {mode}},
		typ: api.ContentTypeTicks, header: header, body: t.body, signed: true}, &out)
}

func schedulePath(id string) string { return api.GatewayPathSchedules + "/" + url.PathEscape(id) }

// Schedules lists the schedules that this identity made, and those of functions that
// it owns; name "" is all.
func (c *Client) Schedules(ctx context.Context, name api.FunctionName) ([]api.Schedule, error) {
	query := url.Values{}
	if name != "" {
		query.Set(api.QueryFunction, string(name))
	}
	var out []api.Schedule
	return out, c.do(ctx, call{method: http.MethodGet, path: api.GatewayPathSchedules, query: query, signed: true}, &out)
}

// Schedule tells how one stands.
func (c *Client) Schedule(ctx context.Context, id string) (api.Schedule, error) {
	var out api.Schedule
	return out, c.do(ctx, call{method: http.MethodGet, path: schedulePath(id), signed: true}, &out)
}

// RemoveSchedule forgets a schedule with the ticks that are left of it.
func (c *Client) RemoveSchedule(ctx context.Context, id string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: schedulePath(id), signed: true}, nil)
}

// Sealed are the ticks of which results can be opened, the latest first: those from
// and up to these times.
func (a *Ahead) Sealed(from, to time.Time) (ticks []time.Time) {
	seen := map[int64]bool{}
	for i := len(a.sealings) - 1; i >= 0; i-- {
		for j := len(a.sealings[i].ticks) - 1; j >= 0; j-- {
			at := a.sealings[i].ticks[j].at
			if at < from.UnixMilli() || at > to.UnixMilli() || seen[at] {
				continue
			}
			seen[at] = true
			ticks = append(ticks, time.UnixMilli(at).UTC())
		}
	}
	return ticks
}

// CallID is the id of the call of a tick.
func (a *Ahead) CallID(tick time.Time) string { return schedule.TickID(a.ID, tick) }

// TickResult fetches and opens the result of a tick's call; the errors are those of
// Result.
func (c *Client) TickResult(ctx context.Context, a *Ahead, tick time.Time) (*Response, error) {
	id := a.CallID(tick)
	return c.result(ctx, id, func(message sealed.ID) *Pending {
		for _, s := range a.sealings {
			for _, t := range s.ticks {
				if t.id == message && t.at == tick.UnixMilli() {
					return &Pending{CallID: id, Function: a.Function, id: t.id, link: t.link, revision: s.revision, signer: s.signer}
				}
			}
		}
		return nil
	})
}
