package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
)

// bulk streams 256 MiB to a function and back while it flows: the time, beside
// the same bytes bare through as many hops, and the most memory that each
// process held.
func (b *bench) bulk(ctx context.Context) error {
	if err := b.needWorld(ctx); err != nil {
		return err
	}
	if err := b.needFloors(ctx); err != nil {
		return err
	}
	fn, err := b.world.running(ctx, "go")
	if err != nil {
		return err
	}
	bytes, name := int64(256<<20), "256MiB"
	floor := "floor/bytes-two-hop/" + name
	peaks := map[string][]float64{}
	list := []trial{
		{contender: contender{row: floor, unit: "ms", call: func(ctx context.Context) error { return b.pipeThrough(ctx, bytes) }}},
		{contender: contender{row: "bulk/through-function/" + name, floor: floor, unit: "ms", call: func(ctx context.Context) error {
			return streamThrough(ctx, b.world.client, fn, bytes)
		}}, before: func(context.Context) error { return b.world.resetPeaks() },
			after: func(context.Context) error { return b.world.peaks(peaks) }},
	}
	if err := inTrials(ctx, b.report, list, b.scaled(5, 1)); err != nil {
		return err
	}
	for _, part := range []string{"coordinator", "node", "agent", "function", "keybroker"} {
		b.add("memory/peak-"+name+"-through-function/"+part, "MiB", "", peaks[part])
	}
	return b.world.client.Remove(ctx, fn)
}

// streamThrough sends zeros to a function and counts what comes back.
func streamThrough(ctx context.Context, c *client.Client, fn api.FunctionName, n int64) error {
	_, err := invoke(ctx, c, fn, client.Request{Body: io.LimitReader(zeros{}, n), Stream: true}, n)
	return err
}

// pipeThrough sends as many bytes bare, through two hops to an echo and back.
func (b *bench) pipeThrough(ctx context.Context, n int64) error {
	conn, err := b.floors.pipe.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := conn.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(conn, io.LimitReader(zeros{}, n))
		if w, ok := conn.(interface{ CloseWrite() error }); ok && err == nil {
			err = w.CloseWrite()
		}
		sent <- err
	}()
	back, err := io.Copy(io.Discard, conn)
	if err = errors.Join(err, <-sent); err != nil {
		return err
	}
	if back != n {
		return fmt.Errorf("%d bytes came back of %d", back, n)
	}
	return nil
}

// zeros is an endless reader.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
