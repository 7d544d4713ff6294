package anomaly

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// Query writes f as the query of an HTTP request, which ParseQuery reads.
func (f *Filter) Query() url.Values {
	q := url.Values{}
	for _, k := range f.Kinds {
		q.Add(api.QueryKind, k.String())
	}
	for name, t := range map[string]time.Time{api.QuerySince: f.Since, api.QueryUntil: f.Until} {
		if !t.IsZero() {
			q.Set(name, strconv.FormatInt(t.UnixMilli(), 10))
		}
	}
	if f.Function != "" {
		q.Set(api.QueryFunction, f.Function)
	}
	if f.Node != "" {
		q.Set(api.QueryNode, f.Node)
	}
	return q
}

// ParseQuery reads what Query writes.
func ParseQuery(q url.Values) (f Filter, err error) {
	for _, name := range q[api.QueryKind] {
		k, err := ParseKind(name)
		if err != nil {
			return f, err
		}
		f.Kinds = append(f.Kinds, k)
	}
	for name, t := range map[string]*time.Time{api.QuerySince: &f.Since, api.QueryUntil: &f.Until} {
		s := q.Get(name)
		if s == "" {
			continue
		}
		ms, err := strconv.ParseInt(s, 10, 64)
		if err != nil || ms < 0 {
			return f, api.Invalid(name, "give unix milliseconds", "it is no such number")
		}
		*t = time.UnixMilli(ms)
	}
	if s := q.Get(api.QueryFunction); s != "" {
		name, err := api.ParseFunctionName(s)
		if err != nil {
			return f, err
		}
		f.Function = string(name)
	}
	if f.Node = q.Get(api.QueryNode); f.Node != "" && !isName(f.Node, MaxNode) {
		return f, api.Invalid(api.QueryNode, "give a node's id", "it is no such id")
	}
	return f, nil
}

// Line is one line of a log that is read from elsewhere: an event as it is
// printed, and whose log it stands in.
func Line(log string, e *Event) ([]byte, error) {
	b, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	name, err := json.Marshal(log)
	if err != nil {
		return nil, fmt.Errorf("anomaly: encode a line: %w", err)
	}
	return append(append(append([]byte(`{"log":`), name...), ','), append(b[1:], '\n')...), nil
}

const (
	streamPoll  = 200 * time.Millisecond
	streamAlive = 5 * time.Second
)

// Stream gives lines of the log in dir to each, until its end or, with follow,
// until ctx ends. An empty line is a sign of life, where nothing else was to be
// said for a while. Places where the chain is broken are left out: who wants to
// judge a log verifies a copy of it. each is called by one goroutine.
func Stream(ctx context.Context, dir, log string, f Filter, follow bool, each func(line []byte) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	lines, done := make(chan []byte, 64), make(chan error, 1)
	go func() {
		events := Read(ctx, dir, f)
		if follow {
			events = Follow(ctx, dir, f, streamPoll)
		}
		for e, err := range events {
			if errors.As(err, new(*Break)) {
				continue
			}
			var line []byte
			if err == nil {
				line, err = Line(log, &e)
			}
			if err != nil {
				done <- err
				return
			}
			select {
			case lines <- line:
			case <-ctx.Done():
				done <- ctx.Err()
				return
			}
		}
		done <- nil
	}()
	alive := time.NewTicker(streamAlive)
	defer alive.Stop()
	var err error
	for {
		select {
		case line := <-lines:
			err = each(line)
		case <-alive.C:
			err = each([]byte("\n"))
		case end := <-done:
			for len(lines) > 0 && err == nil {
				err = each(<-lines)
			}
			return errors.Join(err, end)
		}
		if err != nil {
			cancel()
			<-done
			return err
		}
	}
}
