package coordinator

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/gate"
	"github.com/faasd-sec/faasd-sec/queue"
	"github.com/faasd-sec/faasd-sec/relay"
)

// Annotations of plain functions that say how failed calls are repeated, as
// OpenFaaS names them.
const (
	annotationAttempts = "com.openfaas.retry.attempts"
	annotationCodes    = "com.openfaas.retry.codes"
	annotationMinWait  = "com.openfaas.retry.min_wait"
	annotationMaxWait  = "com.openfaas.retry.max_wait"
)

// defaultRetryCodes are the statuses of a plain function that are tried again.
func defaultRetryCodes() []int { return []int{408, 429, 500, 502, 503, 504} }

// Bounds of a retry policy.
const (
	maxAttempts  = 100
	maxRetryWait = 24 * time.Hour
)

// enqueuePlain accepts an invocation of a plain function for later.
func (c *Coordinator) enqueuePlain(ctx *fasthttp.RequestCtx, r *route, id string, deliver queue.Deliver, began time.Time) error {
	if !ctx.IsPost() {
		ctx.Response.Header.Set(fasthttp.HeaderAllow, "POST")
		return gate.Unread(ctx, api.Errorf(api.CodeMethod, "an asynchronous invocation is a POST"))
	}
	r = r.share(id)
	retry, err := retryOf(r.rec.Plain.Annotations, c.async.Retry)
	if err != nil {
		return gate.Unread(ctx, err)
	}
	_, rest, _ := bytes.Cut(ctx.Request.Header.RequestURI(), []byte(api.GatewayPathAsync))
	_, target := plainTarget(append([]byte(api.GatewayPathInvoke), rest...))
	call := queue.Call{ID: id, Function: r.name, Owner: tenant(r), Expires: began.Add(c.async.MaxAge).UnixMilli(), Retry: retry,
		Deliver: deliver, Method: string(ctx.Method()), Header: map[string][]string{}}
	for _, h := range forwarded(ctx, target, id, strconv.FormatInt(began.UnixNano(), 10)) {
		switch name := strings.ToLower(h.Name); name {
		case strings.ToLower(api.HeaderCallback), strings.ToLower(api.HeaderIdempotency), "authorization": // not the function's
		default:
			call.Header[name] = append(call.Header[name], h.Value)
		}
	}
	call.Body.Type = string(ctx.Request.Header.ContentType())
	body, err := relay.ReadBody(ctx, max(c.cfg.MaxBody, 0))
	if err != nil {
		return err
	}
	defer body.Release()
	return c.keep(ctx, call, body)
}

// tenant is whose a plain function's calls are, where it is about shares: nobody
// owns it, so that its namespace does.
func tenant(r *route) string {
	if r.plain == nil {
		return r.rec.Owner
	}
	return "namespace " + r.name.Namespace()
}

// retryOf reads a plain function's policy.
func retryOf(annotations map[string]string, def queue.Retry) (queue.Retry, error) {
	p := def
	p.Codes = defaultRetryCodes()
	if text, ok := annotations[annotationAttempts]; ok {
		n, err := strconv.Atoi(strings.TrimSpace(text))
		if err != nil || n < 1 || n > maxAttempts {
			return p, api.Invalid("annotations."+annotationAttempts, "write 1 to 100", "it is not such a number")
		}
		p.Attempts = n
	}
	if text, ok := annotations[annotationCodes]; ok {
		p.Codes = nil
		for s := range strings.SplitSeq(text, ",") {
			n, err := strconv.Atoi(strings.TrimSpace(s))
			if err != nil || n < 400 || n > 599 {
				return p, api.Invalid("annotations."+annotationCodes, "write statuses from 400 to 599, separated by commas", "one is none")
			}
			p.Codes = append(p.Codes, n)
		}
	}
	for name, into := range map[string]*int64{annotationMinWait: &p.MinWaitMs, annotationMaxWait: &p.MaxWaitMs} {
		text, ok := annotations[name]
		if !ok {
			continue
		}
		d, err := time.ParseDuration(strings.TrimSpace(text))
		if err != nil || d < 0 || d > maxRetryWait {
			return p, api.Invalid("annotations."+name, `write a duration up to 24h, such as "10s"`, "it is none")
		}
		*into = d.Milliseconds()
	}
	if _, given := annotations[annotationMaxWait]; p.MaxWaitMs < p.MinWaitMs && given {
		return p, api.Invalid("annotations."+annotationMaxWait, "make it no shorter than "+annotationMinWait, "it is shorter")
	}
	p.MaxWaitMs = max(p.MaxWaitMs, p.MinWaitMs)
	return p, nil
}

// plainTask is the task of a stored invocation of a plain function.
func (c *Coordinator) plainTask(r *route, call *queue.Call) task {
	p := &plainCall{method: call.Method}
	for name, values := range call.Header {
		for _, v := range values {
			p.headers = append(p.headers, relay.Header{Name: name, Value: v})
		}
	}
	r.calls.Add(1)
	return task{c: c, r: r, name: call.ID, known: r.unbound, call: p}
}

// takePlain reads a plain function's reply.
func (c *Coordinator) takePlain(a *attempted, call *queue.Call, reply *relay.Reply) {
	own := api.Code(reply.Header(api.HeaderFunctionErr))
	a.begun = own != api.CodeBusy && own != api.CodeNoRoom
	a.result = queue.Result{Status: reply.Status, Node: reply.Header(api.HeaderServedBy), Start: reply.Header(api.HeaderStart), Header: map[string][]string{}}
	typ := ""
	reply.Each(func(name, value string) {
		switch {
		case name == "content-type":
			typ = value
		case functionsOwn(name):
			a.result.Header[name] = append(a.result.Header[name], value)
		}
	})
	_, err := reply.SaveTo(&a.body)
	a.result.Body, a.inline, err = a.body.end(err)
	a.result.Body.Type = typ
	switch {
	case err != nil:
		a.err = a.body.why(err)
	case own != "":
		a.err = api.Errorf(own, "the function did not answer")
	case slices.Contains(call.Retry.Codes, reply.Status):
		a.err = api.Errorf(api.CodeFunctionFailed, "the function answered %d", reply.Status)
	}
}
