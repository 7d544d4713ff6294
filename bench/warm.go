package main

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
)

type size struct {
	name  string
	bytes int
}

// combination is one size of body over so many connections.
type combination struct {
	size
	conns int
}

func (c combination) tag() string { return fmt.Sprintf("%s/c%d", c.name, c.conns) }

// combinations are what is measured; a quick run takes some. Of bodies of a
// megabyte, which an agent verifies whole before the function sees them, a
// sandbox takes only so many at once: more are refused as busy, by design.
func combinations(quick bool) []combination {
	var out []combination
	for _, s := range []size{{"100B", 100}, {"1KiB", 1 << 10}, {"64KiB", 64 << 10}, {"1MiB", 1 << 20}} {
		for _, conns := range []int{1, 4, 16, 64} {
			large := s.bytes == 1<<20
			if large && conns > 4 || !large && conns == 4 || quick && conns > 1 && s.name != "1KiB" {
				continue
			}
			out = append(out, combination{s, conns})
		}
	}
	return out
}

// throughputRow names the rate beside a latency.
func throughputRow(row string) string { return "throughput/" + strings.TrimPrefix(row, "warm/") }

// warm measures calls of a running function over kept connections with cached
// grants, in turns with the plain HTTP floors of the same body.
func (b *bench) warm(ctx context.Context) error {
	if err := b.needWorld(ctx); err != nil {
		return err
	}
	if err := b.needFloors(ctx); err != nil {
		return err
	}
	b.leave("warm/*/1MiB/c16, c64", "an agent holds a bounded number of whole large bodies and refuses more as busy; c4 is measured")
	fn, err := b.world.running(ctx, "go")
	if err != nil {
		return err
	}
	plain, err := b.world.runningPlain(ctx, "go")
	if err != nil {
		return err
	}
	rounds, slice := b.scaled(6, 3), 350*time.Millisecond
	if b.quick {
		slice = 150 * time.Millisecond
	}
	for _, c := range combinations(b.quick) {
		if err := b.combination(ctx, fn, plain, c, rounds, slice); err != nil {
			return err
		}
	}
	return b.removeAll(ctx, []api.FunctionName{fn, plain})
}

// combination measures one size of body over so many connections. They are new:
// what congestion control learned from bodies of another size, BBR above all,
// would slow down a large one by a factor of ten.
func (b *bench) combination(ctx context.Context, fn, plain api.FunctionName, c combination, rounds int, slice time.Duration) error {
	body := bytes.Repeat([]byte("x"), c.bytes)
	direct, twoHop, unsealed := b.floors.direct.client(), b.floors.twoHop.client(), b.world.endpoint().client()
	for _, c := range []*fasthttp.HostClient{direct, twoHop, unsealed} {
		defer c.CloseIdleConnections()
	}
	caller, err := b.world.newClient()
	if err != nil {
		return err
	}
	defer caller.Close()
	near, err := b.world.viaNode()
	if err != nil {
		return err
	}
	defer near.Close()
	watch, err := b.world.watch()
	if err != nil {
		return err
	}
	before, err := watch.direct(ctx)
	if err != nil {
		return err
	}
	two, gateway := "floor/two-hop/"+c.tag(), "warm/gateway/"+c.tag()
	if err := turnRows(ctx, b.report, []contender{
		{row: "floor/direct/" + c.tag(), unit: "us", call: plainCall(direct, "/", body)},
		{row: two, unit: "us", call: plainCall(twoHop, "/", body)},
		{row: "warm/plain/" + c.tag(), floor: two, unit: "us", call: plainCall(unsealed, "/function/"+plain.Short(), body)},
		{row: "warm/sealed/" + c.tag(), floor: two, unit: "us", call: echo(caller, fn, body)},
		{row: gateway, floor: two, unit: "us", call: echo(near, fn, body)},
	}, rounds, c.conns, slice, throughputRow); err != nil {
		return err
	}
	// What the node's gateway does not take, the SDK gives to the coordinator.
	after, err := watch.direct(ctx)
	if w, ok := b.named(gateway); err == nil && ok && after-before < w.N {
		b.fail(gateway, fmt.Errorf("of %d calls or more the node's gateway served %d", w.N, after-before))
	}
	return err
}

// echo calls a function and checks that all of the body came back.
func echo(c *client.Client, fn api.FunctionName, body []byte) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := invoke(ctx, c, fn, client.Request{Body: bytes.NewReader(body)}, int64(len(body)))
		return err
	}
}

// running deploys a function and has it started.
func (w *world) running(ctx context.Context, lang string) (api.FunctionName, error) {
	fn, err := w.deploy(ctx, lang)
	if err == nil {
		_, err = w.hello(ctx, fn)
	}
	return fn, err
}

// runningPlain deploys the same program as a plain function and has it started.
func (w *world) runningPlain(ctx context.Context, lang string) (api.FunctionName, error) {
	w.serial++
	fn, err := api.ParseFunctionName(fmt.Sprintf("plain-%s-%d", lang, w.serial))
	if err != nil {
		return "", err
	}
	if _, err := w.client.DeployPlain(ctx, fn, api.Plain{Image: "bench/" + lang + "@" + w.pushed[lang], Env: map[string]string{"BENCH_LISTEN": ":8080", "max_inflight": "256"},
		Limits: &api.PlainAmounts{CPU: "2", Memory: "512Mi"}, ReadOnlyRoot: true}); err != nil {
		return "", fmt.Errorf("deploy %s: %w", fn.Short(), err)
	}
	c := w.endpoint().client()
	defer c.CloseIdleConnections()
	return fn, plainCall(c, "/function/"+fn.Short(), []byte("hello"))(ctx)
}

// coldGrant measures a warm function called by a caller that has no grant for
// it yet: public-key operations on both ends. The connection is there, and the
// descriptor is known.
func (b *bench) coldGrant(ctx context.Context) error {
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
	other, err := b.world.running(ctx, "go")
	if err != nil {
		return err
	}
	body := bytes.Repeat([]byte("x"), 1<<10)
	var c *client.Client
	fresh := trial{
		contender: contender{row: "warm/sealed-cold-grant/1KiB/c1", floor: "floor/two-hop-single/1KiB", unit: "us",
			call: func(ctx context.Context) error { return echo(c, fn, body)(ctx) }},
		before: func(ctx context.Context) (err error) {
			if c, err = b.world.newClient(); err != nil {
				return err
			}
			if err := echo(c, other, body)(ctx); err != nil { // opens the connection
				return err
			}
			return learn(ctx, c, fn)
		},
		after: func(context.Context) error { c.Close(); return nil },
	}
	// The floor makes single calls as well, each right after another one.
	call := plainCall(b.floors.twoHopC, "/", body)
	floor := trial{contender: contender{row: "floor/two-hop-single/1KiB", unit: "us", call: call}, before: call}
	if err := inTrials(ctx, b.report, []trial{floor, fresh}, b.scaled(300, 40)); err != nil {
		return err
	}
	return b.removeAll(ctx, []api.FunctionName{fn, other})
}

// silence is how long nothing comes before an idle arrival.
const silence = 65 * time.Millisecond

// idleArrival measures single calls after a silence: caches and clocks of the
// processor have gone to rest, and every process has to be woken.
func (b *bench) idleArrival(ctx context.Context) error {
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
	rest := func(ctx context.Context) error { return wall{}.Sleep(ctx, time.Now().Add(silence)) }
	list := []trial{
		{contender: contender{row: "floor/idle-arrival/two-hop/1KiB", unit: "us", call: plainCall(b.floors.twoHopC, "/", body)}, before: rest},
		{contender: contender{row: "idle-arrival/sealed/1KiB", floor: "floor/idle-arrival/two-hop/1KiB", unit: "us", call: echo(b.world.client, fn, body)}, before: rest},
	}
	if err := inTrials(ctx, b.report, list, b.scaled(100, 15)); err != nil {
		return err
	}
	return b.world.client.Remove(ctx, fn)
}
