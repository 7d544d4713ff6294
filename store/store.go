package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/faasd-sec/faasd-sec/api"
)

// Expected versions beside the ones that reads return.
const (
	Absent     int64 = 0  // the key must not exist
	AnyVersion int64 = -1 // whatever is there is replaced
)

const (
	// maxValueBytes bounds one record; a signed descriptor has a few KiB.
	maxValueBytes = 1 << 20
	// maxRequestBytes is what etcd takes in one request, envelope included.
	maxRequestBytes = maxValueBytes + 64<<10
	// startTimeout bounds Open; a large log takes a moment to replay.
	startTimeout = 30 * time.Second
)

// Store is an open store. It is safe for use by several goroutines.
type Store struct {
	cfg    Config
	client *clientv3.Client
	member *member // nil with an external etcd
	boot   string  // drawn at Open

	claims claimLeases
	away   atomic.Pointer[api.Error] // of an etcd elsewhere, at the last look; nil while it answers

	life context.Context // ends with Close
	end  context.CancelFunc
	jobs sync.WaitGroup // end with life
}

// Open starts the embedded member or connects to the endpoints. A directory in
// use gives CodeConflict, a silent etcd CodeUnavailable, one that refuses this
// client CodeForbidden, a bad configuration CodeInvalid. A member that had a vote before opens without a majority, too:
// Majority says so, and until there is one all but what NewCache reads fails.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	s := &Store{cfg: cfg, boot: newBoot()}
	s.life, s.end = context.WithCancel(context.WithoutCancel(ctx))
	var err error
	if cfg.Dir != "" {
		s.member, s.client, err = startMember(ctx, cfg)
	} else {
		s.client, err = openExternal(ctx, cfg)
	}
	if err != nil {
		s.end()
		return nil, err
	}
	switch {
	case s.member == nil:
		s.jobs.Go(s.watchAway)
	case s.member.late:
		s.jobs.Go(s.settleLate)
	}
	return s, nil
}

// Close ends the connection and the embedded member. Calls in flight fail.
func (s *Store) Close() error {
	// A member that has stopped would still pass renewals on to the others.
	s.end()
	s.jobs.Wait()
	err := s.client.Close()
	if s.member != nil {
		// The in-process client has no connection: its Close reports its own
		// context as ended, which is no failure.
		err = nil
		s.member.close()
	}
	if err != nil {
		return fmt.Errorf("close the store: %w", err)
	}
	return nil
}

// Ping reports whether the store answers a read that needs its majority.
func (s *Store) Ping(ctx context.Context) error {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	_, err := s.client.Get(ctx, s.cfg.Prefix, clientv3.WithCountOnly())
	return failure("ping", err)
}

func (s *Store) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, s.cfg.Timeout)
}

// put writes value under key if the key's version is expected, and returns the
// new version.
func (s *Store) put(ctx context.Context, what, key string, value []byte, expected int64, opts ...clientv3.OpOption) (int64, error) {
	if len(value) > maxValueBytes {
		return 0, &api.Error{Code: api.CodeTooLarge, Field: what,
			Message: fmt.Sprintf("%d bytes, at most %d are stored", len(value), maxValueBytes)}
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	res, err := s.client.Txn(ctx).If(versionIs(key, expected)...).
		Then(clientv3.OpPut(key, string(value), opts...)).Commit()
	if err != nil {
		return 0, failure("write "+what, err)
	}
	if !res.Succeeded {
		return 0, conflict(what, expected)
	}
	return res.Header.Revision, nil
}

// remove deletes key if its version is expected, and returns the version of
// its absence. With AnyVersion a missing key gives CodeNotFound.
func (s *Store) remove(ctx context.Context, what, key string, expected int64) (int64, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	res, err := s.client.Txn(ctx).If(versionIs(key, expected)...).Then(clientv3.OpDelete(key)).Commit()
	if err != nil {
		return 0, failure("delete "+what, err)
	}
	if !res.Succeeded {
		return 0, conflict(what, expected)
	}
	if res.Responses[0].GetResponseDeleteRange().Deleted == 0 {
		return 0, notFound(what)
	}
	return res.Header.Revision, nil
}

// get reads one key.
func (s *Store) get(ctx context.Context, what, key string) (value []byte, version int64, err error) {
	if err := ctx.Err(); err != nil { // etcd may answer all the same
		return nil, 0, failure("read "+what, err)
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	res, err := s.client.Get(ctx, key)
	if err != nil {
		return nil, 0, failure("read "+what, err)
	}
	if len(res.Kvs) == 0 {
		return nil, 0, notFound(what)
	}
	return res.Kvs[0].Value, res.Kvs[0].ModRevision, nil
}

// pageSize is how many records one read of a list asks for.
const pageSize = 500

// list visits all keys under prefix, in order, as they were at one moment, and
// returns the store's revision of that moment. Each page has its own deadline.
func (s *Store) list(ctx context.Context, what, prefix string, visit func(key string, value []byte, version int64), opts ...clientv3.OpOption) (int64, error) {
	end := clientv3.GetPrefixRangeEnd(prefix)
	from, rev := prefix, int64(0)
	for {
		page, cancel := s.bound(ctx)
		res, err := s.client.Get(page, from, append(opts, clientv3.WithRange(end), clientv3.WithLimit(pageSize), clientv3.WithRev(rev))...)
		cancel()
		if err != nil {
			return 0, failure("list "+what, err)
		}
		if rev == 0 {
			rev = res.Header.Revision // later pages show the same moment
		}
		for _, kv := range res.Kvs {
			visit(string(kv.Key[len(prefix):]), kv.Value, kv.ModRevision)
		}
		if !res.More {
			return rev, nil
		}
		from = string(res.Kvs[len(res.Kvs)-1].Key) + "\x00"
	}
}

func versionIs(key string, expected int64) []clientv3.Cmp {
	if expected == AnyVersion {
		return nil
	}
	return []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(key), "=", expected)}
}

func conflict(what string, expected int64) error {
	if expected == Absent {
		return &api.Error{Code: api.CodeConflict, Message: what + " exists already", Remedy: "read it and update that version"}
	}
	return &api.Error{Code: api.CodeConflict, Message: what + " was changed meanwhile", Remedy: "read it again and retry"}
}

func notFound(what string) error { return api.Errorf(api.CodeNotFound, "no such %s", what) }

// failure gives etcd's errors a code.
func failure(op string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("store: %s: %w", op, err)
	case errors.Is(err, context.DeadlineExceeded):
		return api.Wrap(api.CodeUnavailable, fmt.Errorf("%s: %w", op, err), "the store did not answer in time")
	case errors.Is(err, rpctypes.ErrNoSpace):
		return &api.Error{Code: api.CodeUnavailable, Message: "the store is full", Err: err,
			Remedy: "raise its quota, then clear etcd's NOSPACE alarm"}
	}
	return api.Wrap(api.CodeUnavailable, fmt.Errorf("%s: %w", op, err), "the store failed")
}
