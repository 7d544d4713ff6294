package main

import (
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/faasd-sec/faasd-sec/anomaly"
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
	callbackAllow        string
	plans                queue.PlanBounds
	schedules            coordinator.Schedules
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
	p, s := queue.DefaultPlanBounds(), coordinator.DefaultSchedules()
	fs.IntVar(&o.plans.Ticks, "schedule-ticks", p.Ticks, "sealed ticks that one schedule may have")
	fs.IntVar(&o.plans.Parts, "schedule-parts", p.Parts, "uploads of which one schedule may have ticks left")
	fs.Int64Var(&o.plans.Size, "schedule-bytes", p.Size, "bytes of the sealed ticks of one schedule")
	fs.IntVar(&o.plans.Each, "schedules-each", p.Each, "schedules of one caller, and of the functions of one owner")
	fs.Int64Var(&o.plans.Bytes, "schedules-each-bytes", p.Bytes, "bytes of the sealed ticks of all these")
	fs.Int64Var(&o.plans.Total, "schedules-bytes", p.Total, "bytes of all sealed ticks of the cluster, which lie in the store")
	fs.DurationVar(&o.schedules.Warn, "schedule-warn", s.Warn, "how long before its last sealed tick a schedule is warned of: log, anomaly, metric")
	fs.IntVar(&o.schedules.Uploads, "schedule-uploads", s.Uploads, "schedules that may be sent at once")
	fs.DurationVar(&o.schedules.UploadTime, "schedule-upload-time", s.UploadTime, "longest time that one may take, at most 10m")
	fs.IntVar(&o.schedules.Metrics, "schedule-metrics", s.Metrics, "schedules that have metrics of their own, those that end first; 0 for none")
	fs.StringVar(&o.callbackAllow, "callback-allow", "", "`networks`, comma separated, to which callbacks may go although they are of this machine, its link or the cluster: 127.0.0.0/8")
}

// asyncParts opens what asynchronous invocations take.
func asyncParts(ctx, life context.Context, o options, st *store.Store, scfg store.Config, log *slog.Logger) (*coordinator.Async, error) {
	a := o.async
	if err := a.check(); err != nil {
		return nil, err
	}
	if most := scfg.QuotaBytes / 4 * 3; o.peerListen != "" && a.maxBody > most {
		return nil, api.Invalid("-async-max-body", fmt.Sprintf("use at most %d: coordinators share large bodies in their store", most), fmt.Sprintf("%d bytes do not fit into it", a.maxBody))
	}
	if err := a.checkSchedules(scfg.QuotaBytes); err != nil {
		return nil, err
	}
	etcd, prefix := st.Etcd()
	cfg := queue.DefaultConfig(o.id, prefix, log)
	cfg.MaxWaiting, cfg.MaxWaitingEach, cfg.PerFunction, cfg.Keep, cfg.KeepDead = a.waiting, a.waitingEach, a.each, a.keep, a.keepDead
	cfg.Plans = a.plans
	q, err := queue.Open(ctx, etcd, cfg)
	if err != nil {
		return nil, fmt.Errorf("asynchronous calls: %w", err)
	}
	signer, err := anomaly.OpenKey(filepath.Join(o.state, "callback.key"), rand.Reader)
	if err != nil {
		return nil, err
	}
	allow, err := prefixes(a.callbackAllow)
	if err != nil {
		return nil, err
	}
	files, err := blob.Open(filepath.Join(o.state, "blobs"), a.maxBody)
	if err != nil {
		return nil, err
	}
	bodies := &coordinator.Stores{Files: files, Pieces: q.NewChunks(life, a.maxBody, 2*a.maxBody), Several: o.several()}
	return &coordinator.Async{Schedules: a.schedules, Queue: q, Blobs: bodies, Workers: a.workers, MaxAge: a.maxAge, Signer: signer, Allow: allow,
		Retry: queue.Retry{Attempts: a.attempts, MinWaitMs: a.minWait.Milliseconds(), MaxWaitMs: a.maxWait.Milliseconds()}}, nil
}

// check refuses values that do not make sense, naming the flag.
func (o *asyncOptions) check() error {
	for _, b := range []struct {
		flag         string
		value, least int64
	}{
		{"-async-waiting", int64(o.waiting), 1}, {"-async-waiting-each", int64(o.waitingEach), 0}, {"-async-workers", int64(o.workers), 1},
		{"-async-each", int64(o.each), 1}, {"-async-attempts", int64(o.attempts), 1}, {"-async-max-body", o.maxBody, 1},
	} {
		if b.value < b.least {
			return api.Invalid(b.flag, fmt.Sprintf("use %d or more", b.least), fmt.Sprintf("%d is not", b.value))
		}
	}
	if o.maxBody > largestBody {
		return api.Invalid("-async-max-body", fmt.Sprintf("use at most %d", int64(largestBody)), fmt.Sprintf("%d is more", o.maxBody))
	}
	for _, d := range []struct {
		flag  string
		value time.Duration
	}{{"-async-keep", o.keep}, {"-async-keep-dead", o.keepDead}, {"-async-max-age", o.maxAge}} {
		if d.value <= 0 {
			return api.Invalid(d.flag, "use a time such as 24h", d.value.String())
		}
	}
	switch {
	case o.minWait < 0:
		return api.Invalid("-async-min-wait", "use a time such as 1s, or 0", o.minWait.String())
	case o.maxWait < o.minWait:
		return api.Invalid("-async-max-wait", "make it no shorter than -async-min-wait", o.maxWait.String())
	}
	return nil
}

// largestBody is more than any disk has; twice that is a number yet.
const largestBody = 1 << 60

// checkSchedules refuses bounds on schedules that do not make sense, or do not fit into
// a store of quota bytes.
func (o *asyncOptions) checkSchedules(quota int64) error {
	p := &o.plans
	for _, b := range []struct {
		flag        string
		value, most int64
	}{
		{"-schedule-ticks", int64(p.Ticks), 1 << 20}, {"-schedule-parts", int64(p.Parts), 60}, {"-schedule-bytes", p.Size, p.Bytes},
		{"-schedules-each", int64(p.Each), 1 << 20}, {"-schedules-each-bytes", p.Bytes, p.Total}, {"-schedules-bytes", p.Total, quota / 2},
	} {
		if b.value < 1 || b.value > b.most {
			return api.Invalid(b.flag, fmt.Sprintf("use 1 to %d", b.most), fmt.Sprintf("%d is not", b.value))
		}
	}
	return o.schedules.Check()
}

// prefixes reads a list of networks.
func prefixes(text string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for s := range strings.SplitSeq(text, ",") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, api.Invalid("-callback-allow", "write networks, such as 10.0.0.0/8", err.Error())
		}
		out = append(out, p.Masked())
	}
	return out, nil
}
