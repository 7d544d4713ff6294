package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/blob"
	"github.com/faasd-sec/faasd-sec/coordinator"
	"github.com/faasd-sec/faasd-sec/queue"
	"github.com/faasd-sec/faasd-sec/store"
)

// asyncOptions are the flags of asynchronous invocations.
type asyncOptions struct {
	waiting, waitingEach int
	workers, each        int
	keep, keepDead       time.Duration
	maxAge               time.Duration
	maxBody              int64
	attempts             int
	minWait, maxWait     time.Duration
}

func (o *asyncOptions) flags(fs *flag.FlagSet) {
	retry := coordinator.DefaultRetry()
	fs.IntVar(&o.waiting, "async-waiting", 200_000, "asynchronous calls that may wait")
	fs.IntVar(&o.waitingEach, "async-waiting-each", 0, "of these for the functions of one owner (default three quarters)")
	fs.IntVar(&o.workers, "async-workers", coordinator.DefaultAsyncWorkers, "asynchronous calls that this coordinator has under way at once")
	fs.IntVar(&o.each, "async-each", 64, "asynchronous calls of one function under way at once, in the whole cluster")
	fs.DurationVar(&o.keep, "async-keep", 24*time.Hour, "how long results of asynchronous calls are kept")
	fs.DurationVar(&o.keepDead, "async-keep-dead", 7*24*time.Hour, "how long dead letters are kept")
	fs.DurationVar(&o.maxAge, "async-max-age", coordinator.DefaultAsyncAge, "how long a plain function's asynchronous call may wait; a sealed one says so itself")
	fs.Int64Var(&o.maxBody, "async-max-body", 256<<20, "largest body of an asynchronous call or its result in bytes")
	fs.IntVar(&o.attempts, "async-attempts", retry.Attempts, "attempts at an asynchronous call before it is a dead letter")
	fs.DurationVar(&o.minWait, "async-min-wait", time.Duration(retry.MinWaitMs)*time.Millisecond, "bound of the first pause between attempts; it doubles")
	fs.DurationVar(&o.maxWait, "async-max-wait", time.Duration(retry.MaxWaitMs)*time.Millisecond, "up to this")
}

// asyncParts opens what asynchronous invocations take.
func asyncParts(ctx context.Context, o options, st *store.Store, log *slog.Logger) (*coordinator.Async, error) {
	a := o.async
	if a.attempts < 1 || a.minWait < 0 || a.maxWait < a.minWait || a.workers < 1 || a.maxBody < 1 || a.maxAge <= 0 {
		return nil, api.Invalid("-async-…", "use positive values, and -async-max-wait no shorter than -async-min-wait", "one is not")
	}
	etcd, prefix := st.Etcd()
	cfg := queue.DefaultConfig(o.id, prefix, log)
	cfg.MaxWaiting, cfg.MaxWaitingEach, cfg.PerFunction, cfg.Keep, cfg.KeepDead = a.waiting, a.waitingEach, a.each, a.keep, a.keepDead
	q, err := queue.Open(ctx, etcd, cfg)
	if err != nil {
		return nil, fmt.Errorf("asynchronous calls: %w", err)
	}
	b, err := blob.Open(filepath.Join(o.state, "blobs"), a.maxBody)
	if err != nil {
		return nil, err
	}
	return &coordinator.Async{Queue: q, Blobs: b, Workers: a.workers, MaxAge: a.maxAge,
		Retry: queue.Retry{Attempts: a.attempts, MinWaitMs: a.minWait.Milliseconds(), MaxWaitMs: a.maxWait.Milliseconds()}}, nil
}
