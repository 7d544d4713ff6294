package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// maxUnderWay bounds the calls of an open loop that are not done.
const maxUnderWay = 2000

// openLoopRows measures latency at fixed rates, from the moment each call was
// due. Floor and subject have the same rates, in turns.
func (b *bench) openLoopRows(ctx context.Context) error {
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
	body := bytes.Repeat([]byte("x"), 1<<10)
	rates, rounds, each := []int{250, 500, 1000, 2000, 4000}, 3, 2*time.Second
	if b.quick {
		rates, rounds, each = []int{250, 1000, 2000}, 2, 500*time.Millisecond
	}
	for _, rate := range rates {
		floor := fmt.Sprintf("floor/openloop/two-hop/1KiB/r%d", rate)
		list := []contender{
			{row: floor, unit: "us", call: plainCall(b.floors.twoHopC, "/", body)},
			{row: fmt.Sprintf("openloop/sealed/1KiB/r%d", rate), floor: floor, unit: "us", call: echo(b.world.client, fn, body)},
		}
		if err := b.atRate(ctx, list, float64(rate), rounds, each); err != nil {
			return err
		}
	}
	return b.world.client.Remove(ctx, fn)
}

// atRate gives each contender rounds turns of each at a rate.
func (b *bench) atRate(ctx context.Context, list []contender, rate float64, rounds int, each time.Duration) error {
	samples := make([][]float64, len(list))
	out := make([]bool, len(list))
	for round := -1; round < rounds; round++ {
		for i, c := range list {
			if out[i] {
				continue
			}
			n := int(rate * each.Seconds())
			if round < 0 {
				n = n/5 + 1
			}
			took, err := openLoop(ctx, wall{}, n, rate, maxUnderWay, c.call)
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case errors.Is(err, errOverrun) || api.CodeOf(err) == api.CodeBusy:
				// No defect, and no latency either: with time it grows without bound.
				out[i] = true
				b.leave(c.row, "this machine does not sustain the rate: "+err.Error())
			case err != nil:
				out[i] = true
				b.fail(c.row, err)
			case round >= 0:
				for _, d := range took {
					samples[i] = append(samples[i], c.scaled(d))
				}
			}
		}
	}
	for i, c := range list {
		if !out[i] {
			b.add(c.row, c.unit, c.floor, samples[i])
		}
	}
	return nil
}
