package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/faasd-sec/faasd-sec/client"
)

var sizes = []struct {
	name  string
	bytes int
}{{"100B", 100}, {"1KiB", 1 << 10}, {"64KiB", 64 << 10}, {"1MiB", 1 << 20}}

// clusterRows measures the floors' processes and a warm sealed function beside
// each other.
func clusterRows(ctx context.Context, o options, r *report) error {
	f, err := startFloors(ctx, o)
	if err != nil {
		return err
	}
	defer f.stop()
	w, err := newWorld(ctx, o)
	if err != nil {
		return err
	}
	defer w.close()
	fn, err := w.deploy(ctx, "warm")
	if err != nil {
		return err
	}
	if err := w.call(ctx, w.client, fn, []byte("first")); err != nil {
		return err
	}
	direct, two := upstream(f.direct[0], f.direct[1]), upstream(f.twoHop[0], f.twoHop[1])
	for _, s := range sizes {
		body := bytes.Repeat([]byte("x"), s.bytes)
		for _, conns := range []int{1, 16, 64} {
			if (s.bytes != 1<<10 && conns != 1) && !(s.bytes == 64<<10 && conns == 16) {
				continue
			}
			tag := fmt.Sprintf("%s/c%d", s.name, conns)
			pairs := []struct {
				name, floor string
				f           func() error
			}{
				{"floor/direct/" + tag, "", func() error { return plainCall(direct, body) }},
				{"floor/two-hop/" + tag, "floor/direct/" + tag, func() error { return plainCall(two, body) }},
				{"warm/sealed/" + tag, "floor/two-hop/" + tag, func() error { return w.call(ctx, w.client, fn, body) }},
			}
			for _, p := range pairs {
				// Once unmeasured, so that connections and grants are there.
				if _, _, err := latencies(ctx, o.timePerOp/10, conns, p.f); err != nil {
					return fmt.Errorf("%s: %w", p.name, err)
				}
				us, rate, err := latencies(ctx, o.timePerOp, conns, p.f)
				if err != nil {
					return fmt.Errorf("%s: %w", p.name, err)
				}
				r.add(p.name, "us", p.floor, us)
				if conns > 1 {
					tfloor := ""
					if p.floor != "" {
						tfloor = "throughput/" + p.floor
					}
					r.add("throughput/"+trimWarm(p.name), "req/s", tfloor, []float64{rate})
				}
			}
		}
	}
	if err := coldGrant(ctx, o, r, w, string(fn)); err != nil {
		return err
	}
	if err := openLoopRows(ctx, o, r, w, string(fn)); err != nil {
		return err
	}
	if err := idleArrival(ctx, o, r, w, string(fn)); err != nil {
		return err
	}
	if err := bulkThrough(ctx, o, r, w, string(fn)); err != nil {
		return err
	}
	if err := cpuRows(ctx, o, r, w, string(fn)); err != nil {
		return err
	}
	return memoryRows(ctx, r, w)
}

func trimWarm(s string) string {
	if len(s) > 5 && s[:5] == "warm/" {
		return s[5:]
	}
	return s
}

// coldGrant measures a warm function called by a caller that has no grant yet:
// public-key operations on both ends.
func coldGrant(ctx context.Context, o options, r *report, w *world, fn string) error {
	n := 200
	if o.quick {
		n = 40
	}
	name, body := apiName(fn), bytes.Repeat([]byte("x"), 1<<10)
	var us []float64
	for range n {
		c, err := w.newClient()
		if err != nil {
			return err
		}
		if _, err := c.Describe(ctx, name); err != nil { // the connection is not what is measured
			return err
		}
		t := time.Now()
		err = w.call(ctx, c, name, body)
		us = append(us, float64(time.Since(t).Nanoseconds())/1000)
		c.Close()
		if err != nil {
			return err
		}
	}
	r.add("warm/sealed-cold-grant/1KiB/c1", "us", "floor/two-hop/1KiB/c1", us)
	return nil
}

// openLoopRows measures latency at fixed rates, from when each call was due.
func openLoopRows(ctx context.Context, o options, r *report, w *world, fn string) error {
	body := bytes.Repeat([]byte("x"), 1<<10)
	for _, rate := range []int{500, 2000} {
		us, err := openLoop(ctx, o.timePerOp, rate, func() error { return w.call(ctx, w.client, apiName(fn), body) })
		if err != nil {
			return err
		}
		r.add(fmt.Sprintf("open-loop/sealed/1KiB/%d-per-s", rate), "us", "floor/two-hop/1KiB/c1", us)
	}
	return nil
}

// idleArrival measures calls that come after 60 ms of silence.
func idleArrival(ctx context.Context, o options, r *report, w *world, fn string) error {
	n := 40
	if o.quick {
		n = 10
	}
	body := bytes.Repeat([]byte("x"), 1<<10)
	var us []float64
	for range n {
		time.Sleep(60 * time.Millisecond)
		t := time.Now()
		if err := w.call(ctx, w.client, apiName(fn), body); err != nil {
			return err
		}
		us = append(us, float64(time.Since(t).Nanoseconds())/1000)
	}
	r.add("idle-arrival/sealed/1KiB", "us", "floor/two-hop/1KiB/c1", us)
	return nil
}

// bulkThrough streams 256 MiB to a function and back, and reports MB/s.
func bulkThrough(ctx context.Context, o options, r *report, w *world, fn string) error {
	size := int64(256 << 20)
	if o.quick {
		size = 64 << 20
	}
	t := time.Now()
	resp, err := w.client.Invoke(ctx, apiName(fn), client.Request{Body: io.LimitReader(zeros{}, size), Stream: true})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err != nil {
		return err
	}
	if resp.Status != http.StatusOK || n != size {
		return fmt.Errorf("bulk: status %d, %d bytes of %d", resp.Status, n, size)
	}
	r.add(fmt.Sprintf("bulk/function/%dMiB", size>>20), "MB/s", "", []float64{float64(size) / 1e6 / time.Since(t).Seconds()})
	return nil
}

// zeros is an endless reader.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
