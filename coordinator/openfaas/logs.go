package openfaas

import (
	"bufio"
	"context"
	"encoding/json"
	"strconv"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
)

const (
	// lineTimeout is how long a reader may take over one line.
	lineTimeout = 30 * time.Second
	// logTimeout bounds a log that is not followed.
	logTimeout = 30 * time.Second
)

// logs streams the lines of a function, each sent as it comes; of a sealed one
// sealed records.
func (h *Handler) logs(rctx context.Context, ctx *fasthttp.RequestCtx) error {
	q, err := logQuery(ctx)
	if err != nil {
		h.fail(ctx, err)
		if api.CodeOf(err) == api.CodeInvalid {
			ctx.SetStatusCode(fasthttp.StatusUnprocessableEntity)
		}
		return nil
	}
	if _, err := h.dep.Functions.Function(rctx, q.Function, false); err != nil {
		return err
	}
	if h.dep.Logs == nil {
		return missing("logs")
	}
	ctx.SetContentType(api.ContentTypeLines)
	ctx.Response.ImmediateHeaderFlush = true // who follows waits for it
	conn := ctx.Conn()
	ctx.SetBodyStreamWriter(func(w *bufio.Writer) {
		lctx, cancel := context.WithCancel(h.life)
		defer cancel()
		if !q.Follow {
			lctx, cancel = context.WithTimeout(lctx, logTimeout)
			defer cancel()
		}
		send := func(b []byte) error {
			if err := conn.SetWriteDeadline(time.Now().Add(lineTimeout)); err != nil {
				return err
			}
			if _, err := w.Write(append(b, '\n')); err != nil {
				return err
			}
			return w.Flush()
		}
		err := h.dep.Logs.Lines(lctx, q, func(l LogLine) error {
			b, err := json.Marshal(logMessage{Name: q.Function.Function(), Namespace: q.Function.Namespace(), Instance: l.Instance, Timestamp: l.At.UTC(), Text: l.Text})
			if err != nil {
				return err
			}
			return send(b)
		}, func() error { return send(nil) }) // an empty line is none to readers of JSON
		if err != nil && lctx.Err() == nil {
			h.dep.Log.Debug("log stream ended", "function", q.Function, "err", err)
		}
	})
	return nil
}

func logQuery(ctx *fasthttp.RequestCtx) (q LogQuery, err error) {
	args := ctx.QueryArgs()
	if q.Function, err = nameOf(ctx, string(args.Peek("name")), ""); err != nil {
		return q, err
	}
	q.Instance = string(args.Peek("instance"))
	if s := string(args.Peek("tail")); s != "" {
		if q.Tail, err = strconv.Atoi(s); err != nil || q.Tail < -1 {
			return q, api.Invalid("tail", "send a number of lines", "it is none")
		}
		q.Tail = max(q.Tail, 0) // -1 is all, to some clients
	}
	if s := string(args.Peek("since")); s != "" {
		if q.Since, err = time.Parse(time.RFC3339, s); err != nil {
			return q, api.Invalid("since", "send a time as of RFC 3339, such as 2026-01-02T15:04:05Z", "it is none")
		}
	}
	if s := string(args.Peek("follow")); s != "" {
		if q.Follow, err = strconv.ParseBool(s); err != nil {
			return q, api.Invalid("follow", "send true or false", "it is neither")
		}
	}
	return q, nil
}
