package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/faasd-sec/faasd-sec/client"
)

// Headers of callers who decide for themselves whether a call is traced.
const (
	traced   = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	untraced = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
)

// trace measures what traces cost a warm call: on a cluster without them, and on
// one with them, where a call is traced and where it is not. The collector takes
// spans and forgets them.
func (b *bench) trace(ctx context.Context) (err error) {
	if err := b.needWorld(ctx); err != nil {
		return err
	}
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // a span that is lost is none of ours
	}))
	defer collector.Close()
	flags := []string{"-trace-endpoint", collector.URL, "-trace-ratio", "0"}
	w, err := b.newWorldOf(ctx, "traced", flags, flags)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	body := bytes.Repeat([]byte("x"), 1<<10)
	warm := func(w *world, parent string) (func(context.Context) error, func(), error) {
		fn, err := w.running(ctx, "go")
		if err != nil {
			return nil, nil, err
		}
		c, err := w.newClient()
		if err != nil {
			return nil, nil, err
		}
		return func(ctx context.Context) error {
			_, err := invoke(ctx, c, fn, client.Request{Body: bytes.NewReader(body), Trace: parent}, int64(len(body)))
			return err
		}, c.Close, nil
	}
	var list []contender
	for _, r := range []struct {
		row, parent string
		w           *world
	}{{"trace/off/1KiB/c1", "", b.world}, {"trace/not-sampled/1KiB/c1", untraced, w}, {"trace/sampled/1KiB/c1", traced, w}} {
		call, done, err := warm(r.w, r.parent)
		if err != nil {
			return err
		}
		defer done()
		c := contender{row: r.row, unit: "us", call: call}
		if len(list) > 0 {
			c.floor = list[0].row
		}
		list = append(list, c)
	}
	return turnRows(ctx, b.report, list, b.scaled(8, 3), 1, 250*time.Millisecond, throughputRow)
}
