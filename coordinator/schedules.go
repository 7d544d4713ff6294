package coordinator

import (
	"context"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/gate"
	"github.com/faasd-sec/faasd-sec/queue"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// serveSchedules serves what is below GatewayPathSchedules. out is nil for nothing to
// tell.
func (c *Coordinator) serveSchedules(ctx *fasthttp.RequestCtx, id string) (out any, err error) {
	if c.async == nil {
		return nil, noAsync()
	}
	sctx, cancel := context.WithTimeout(c.life, storeTimeout)
	defer cancel()
	switch {
	case id == "" && ctx.IsGet():
		return c.listSchedules(ctx)
	case id != "" && ctx.IsGet():
		p, err := c.async.Queue.Plan(id)
		if err != nil {
			return nil, err
		}
		return c.describePlan(&p), c.concernedBy(ctx, p.Owner, p.Maker)
	case id != "" && ctx.IsDelete():
		p, err := c.async.Queue.Plan(id)
		if err != nil {
			return nil, err
		}
		if err := c.concernedBy(ctx, p.Owner, p.Maker); err != nil {
			return nil, err
		}
		if err := c.async.Queue.RemovePlan(sctx, id); err != nil {
			return nil, err
		}
		c.log.Info("schedule removed", "schedule", id, "function", p.Function, "maker", p.Maker)
		return nil, nil
	case id != "" && ctx.IsPut():
		return c.putSchedule(ctx, id)
	}
	return nil, api.Errorf(api.CodeMethod, "schedules are listed, put, looked up and deleted")
}

// listSchedules lists the schedules that whoever signed made, and those of functions
// that are theirs.
func (c *Coordinator) listSchedules(ctx *fasthttp.RequestCtx) (any, error) {
	var only api.FunctionName
	if name := ctx.QueryArgs().Peek(api.QueryFunction); len(name) > 0 {
		var err error
		if only, err = api.ParseFunctionName(string(name)); err != nil {
			return nil, err
		}
	}
	caller, err := c.concerned(ctx, func(sealed.Fingerprint) error { return nil })
	if err != nil {
		return nil, err
	}
	who, list := caller.String(), []api.Schedule{}
	for _, p := range c.async.Queue.Plans(func(p *queue.Plan) bool {
		return (p.Maker == who || p.Owner == who) && (only == "" || p.Function == only)
	}) {
		list = append(list, *c.describePlan(&p))
	}
	return list, nil
}

func (c *Coordinator) describePlan(p *queue.Plan) *api.Schedule {
	s := &api.Schedule{ID: p.ID, Function: p.Function, Maker: p.Maker, Next: p.Cursor.Next, Until: p.Until(), Last: p.Cursor.Last, Left: p.Cursor.Left,
		Made: p.Cursor.Made, Missed: p.Cursor.Missed, Refused: p.Cursor.Refused}
	_, s.Size = p.Held()
	s.Stale = p.LeftFor(func(revision string) bool { return !c.isCurrent(p.Function, revision) })
	if p.Cursor.Why != nil {
		s.Code, s.Message = p.Cursor.Why.Code, p.Cursor.Why.Message
	}
	return s
}

// isCurrent reports whether a revision, in hex, is the function's current one. One
// before it may serve for a while yet.
func (c *Coordinator) isCurrent(name api.FunctionName, revision string) bool {
	r, err := c.routeOf(name)
	return err == nil && r.plain == nil && r.hex == revision
}

// putSchedule takes sealed ticks: a new schedule, or more of one.
func (c *Coordinator) putSchedule(ctx *fasthttp.RequestCtx, id string) (any, error) {
	r, mode, err := c.scheduleFor(ctx, id)
	if err != nil {
		return nil, gate.Unread(ctx, err)
	}
	deliver, err := deliverOf(ctx)
	if err != nil {
		return nil, gate.Unread(ctx, err)
	}
	select {
	case c.uploads <- struct{}{}:
		defer func() { <-c.uploads }()
	default:
		return nil, gate.Unread(ctx, api.Errorf(api.CodeBusy, "too many schedules are being sent at once; send it again in a moment"))
	}
	sctx, cancel := context.WithTimeout(c.life, c.async.Schedules.UploadTime)
	defer cancel()
	p, err := c.takeTicks(sctx, ctx, r, queue.Plan{ID: id, Function: r.name, Owner: r.rec.Owner, Deliver: deliver}, mode)
	if err != nil {
		ctx.SetConnectionClose() // not all of it may have been read
		return nil, err
	}
	c.log.Info("schedule stored", "schedule", id, "function", p.Function, "maker", p.Maker, "mode", mode, "left", p.Cursor.Left)
	return c.describePlan(&p), nil
}

// Schedules is how a coordinator deals with calls that are sealed ahead. What of them
// is kept, queue.PlanBounds bounds.
type Schedules struct {
	Warn       time.Duration // before its last tick a schedule is said to end
	Uploads    int           // under way at once
	UploadTime time.Duration // for the arrival of one upload; at most ten minutes
	Metrics    int           // schedules that have metrics of their own: those that end first
}

// DefaultSchedules leave a night and a day to seal more.
func DefaultSchedules() Schedules {
	return Schedules{Warn: 24 * time.Hour, Uploads: 4, UploadTime: 2 * time.Minute, Metrics: 200}
}

// Check refuses what does not make sense, naming the field.
func (s *Schedules) Check() error {
	switch {
	case s.Warn <= 0:
		return api.Invalid("-schedule-warn", "use a time such as 24h", s.Warn.String())
	case s.Uploads < 1:
		return api.Invalid("-schedule-uploads", "use 1 or more", "it is less")
	case s.UploadTime <= 0 || s.UploadTime > 10*time.Minute:
		return api.Invalid("-schedule-upload-time", "use at most 10m", s.UploadTime.String())
	case s.Metrics < 0 || s.Metrics > 10_000:
		return api.Invalid("-schedule-metrics", "use 0 to 10000", "it is not")
	}
	return nil
}

// scheduleFor reads what an upload is for, before its body.
func (c *Coordinator) scheduleFor(ctx *fasthttp.RequestCtx, id string) (*route, string, error) {
	if err := claimsIdentity(ctx); err != nil {
		return nil, "", err
	}
	if len(id) > api.MaxScheduleID || strings.Trim(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") != "" {
		return nil, "", api.Invalid("id", "use 1 to 64 letters, digits and '-'", "it is no name of a schedule")
	}
	if got := string(ctx.Request.Header.ContentType()); got != api.ContentTypeTicks {
		e := api.Errorf(api.CodeMediaType, "a schedule is sent as %s", api.ContentTypeTicks)
		e.Field, e.Remedy = "Content-Type", "use faasd-sec schedule put"
		return nil, "", e
	}
	args := ctx.QueryArgs()
	name, err := api.ParseFunctionName(string(args.Peek(api.QueryFunction)))
	if err != nil {
		return nil, "", err
	}
	mode := string(args.Peek(api.QueryMode))
	switch mode {
	case api.TicksNew, api.TicksAppend, api.TicksReplace:
	default:
		return nil, "", api.Invalid(api.QueryMode, "use new, append or replace", "it is none of these")
	}
	r, err := c.routeOf(name)
	if err != nil {
		return nil, "", err
	}
	if r.plain != nil {
		e := plainFunction(name)
		return nil, "", api.Wrap(api.CodeInvalid, e, "a plain function is called by the clock by its annotations, see docs/async.md")
	}
	return r, mode, nil
}
