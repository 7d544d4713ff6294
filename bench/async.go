package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"sync"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
)

// senders are the callers of asynchronous invocations at once.
const senders = 16

// async measures asynchronous invocations of a running function: until one is
// durable, until its result is opened, and how many a second come to their end
// when many come at once.
func (b *bench) async(ctx context.Context) error {
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
	c, err := b.world.newClient()
	if err != nil {
		return err
	}
	defer c.Close()
	body := bytes.Repeat([]byte("x"), 1<<10)
	twoHop := b.floors.twoHop.client()
	defer twoHop.CloseIdleConnections()
	floor := "floor/two-hop-async/1KiB/c16"
	if err := turnRows(ctx, b.report, []contender{
		{row: floor, unit: "us", call: plainCall(twoHop, "/", body)},
		{row: "async/accept/1KiB/c16", floor: floor, unit: "us", call: func(ctx context.Context) error {
			_, err := send(ctx, c, fn, body)
			return err
		}},
	}, b.scaled(4, 2), senders, 250*time.Millisecond, func(row string) string { return "throughput/" + row }); err != nil {
		return err
	}
	if err := ended(ctx, c); err != nil {
		return err
	}
	single := "floor/two-hop-async-single/1KiB"
	call := plainCall(b.floors.twoHopC, "/", body)
	if err := inTrials(ctx, b.report, []trial{
		{contender: contender{row: single, unit: "us", call: call}, before: call},
		{contender: contender{row: "async/result/1KiB/c1", floor: single, unit: "us", call: func(ctx context.Context) error { return sendAndOpen(ctx, c, fn, body) }}},
	}, b.scaled(200, 20)); err != nil {
		return err
	}
	var rates []float64
	for range b.scaled(4, 2) {
		rate, err := flood(ctx, c, fn, body, b.scaled(4000, 500))
		if err != nil {
			return fmt.Errorf("async/ends-per-second: %w", err)
		}
		rates = append(rates, rate)
	}
	b.add("async/ends-per-second", "1/s", "throughput/"+floor, rates)
	return b.world.client.Remove(ctx, fn)
}

func send(ctx context.Context, c *client.Client, fn api.FunctionName, body []byte) (*client.Pending, error) {
	return c.InvokeLater(ctx, fn, client.Request{Body: bytes.NewReader(body)}, client.Later{})
}

// sendAndOpen is one call from its start to its opened result.
func sendAndOpen(ctx context.Context, c *client.Client, fn api.FunctionName, body []byte) error {
	p, err := send(ctx, c, fn, body)
	if err != nil {
		return err
	}
	for {
		res, err := c.Result(ctx, p)
		if errors.Is(err, client.ErrNotYet) {
			time.Sleep(500 * time.Microsecond)
			continue
		}
		if err != nil {
			return err
		}
		n, err := io.Copy(io.Discard, res.Body)
		if err = errors.Join(err, res.Body.Close()); err == nil && n != int64(len(body)) {
			err = fmt.Errorf("%d bytes came back of %d", n, len(body))
		}
		return err
	}
}

// flood sends n calls as fast as they are taken and returns how many a second
// came to their end.
func flood(ctx context.Context, c *client.Client, fn api.FunctionName, body []byte, n int) (float64, error) {
	began := time.Now()
	errs := make([]error, senders)
	var wg sync.WaitGroup
	for k := range senders {
		wg.Go(func() {
			for i := k; i < n && errs[k] == nil; i += senders {
				_, errs[k] = send(ctx, c, fn, body)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return 0, err
	}
	if err := ended(ctx, c); err != nil {
		return 0, err
	}
	return float64(n) / time.Since(began).Seconds(), nil
}

// ended waits until no call of this caller waits or runs.
func ended(ctx context.Context, c *client.Client) error {
	for {
		calls, err := c.AsyncCalls(ctx, url.Values{"limit": {"1"}})
		if err != nil || len(calls) == 0 {
			return err
		}
		t := time.NewTimer(20 * time.Millisecond)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
	}
}
