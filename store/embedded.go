package store

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/api"
)

// A single member elects itself once its election timeout has passed, which is
// most of its start time. Nobody else can become leader, so a short one is
// safe; shorter ticks than this cost CPU while idle.
const (
	tickMs     = 20
	electionMs = 5 * tickMs
)

// The latest entries of the log that a member keeps in memory, and how often it notes
// on disk from where a start has to read them. etcd's own numbers, 5,000 and 10,000, are
// of records of some KiB: pieces of large bodies (see package queue) would make that
// gigabytes. A member that was away for more entries is sent the whole store.
const (
	catchUpEntries = 512
	snapshotCount  = 2048
)

// member is an etcd server inside this process, without any listener but the
// one for other members, where it may have others.
type member struct {
	etcd *embed.Etcd
	lock *os.File
	late bool // it goes on without a majority: see startMember

	closing sync.Once
}

// startMember opens or creates the data directory and waits until the member
// takes writes, at most until ctx ends. A member that has had a vote before goes on
// after Peers.Patience with what it knows: several that restart need not do so in
// any order.
func startMember(ctx context.Context, cfg Config) (_ *member, _ *clientv3.Client, retErr error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("make the store's directory: %w", err)
	}
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return nil, nil, err
	}
	m := &member{lock: lock}
	defer func() {
		if retErr != nil {
			m.close()
		}
	}()

	c := embed.NewConfig()
	c.Dir = filepath.Join(cfg.Dir, "etcd")
	if c.Name = cfg.Name; c.Name == "" {
		c.Name = "embedded"
	}
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zapTo(cfg.Log))
	// etcd wants addresses in its membership records; a lone member dials
	// none, and with no listeners nobody can reach it either.
	nowhere := url.URL{Scheme: "http", Host: "127.0.0.1:1"}
	c.ListenClientUrls, c.ListenPeerUrls = nil, nil
	c.AdvertiseClientUrls, c.AdvertisePeerUrls = []url.URL{nowhere}, []url.URL{nowhere}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.TickMs, c.ElectionMs = tickMs, electionMs
	if cfg.Peers != nil {
		cfg.Peers.apply(c)
	}
	_, err = os.Stat(filepath.Join(c.Dir, "member", "wal"))
	former := err == nil && cfg.Peers != nil
	c.UnsafeNoFsync = false
	c.QuotaBackendBytes = cfg.QuotaBytes
	c.SnapshotCount, c.SnapshotCatchUpEntries = snapshotCount, catchUpEntries
	c.AutoCompactionMode = embed.CompactorModePeriodic
	c.AutoCompactionRetention = cfg.CompactAfter.String()
	c.MaxRequestBytes = maxRequestBytes
	c.EnableGRPCGateway = false
	c.AuthToken = "" // no users: nobody but this process can talk to it
	if m.etcd, err = embed.StartEtcd(c); err != nil {
		m.etcd = nil // closed by StartEtcd
		return nil, nil, startFailure(cfg, err)
	}
	if err := m.started(ctx, cfg, former); err != nil {
		return nil, nil, err
	}
	client := v3client.New(m.etcd.Server)
	if cfg.Peers != nil && !m.late {
		if err := m.settle(ctx, cfg); err != nil {
			return nil, nil, err
		}
	}
	return m, client, nil
}

// started waits until the member takes writes, or is late.
func (m *member) started(ctx context.Context, cfg Config, former bool) error {
	s := m.etcd.Server
	var patience <-chan time.Time
	if former {
		t := time.NewTimer(cfg.Peers.patience())
		defer t.Stop()
		patience = t.C
	}
	for {
		select {
		case <-s.ReadyNotify():
			return nil
		case <-patience:
			if me := s.Cluster().Member(s.MemberID()); me == nil || me.IsLearner {
				continue // it knows too little to go on with
			}
			m.late = true
			cfg.Log.Warn("the store has no majority of its members; going on with what is known here")
			return nil
		case err := <-m.etcd.Err():
			return startFailure(cfg, err)
		case <-s.StopNotify():
			return startFailure(cfg, errors.New("it stopped"))
		case <-ctx.Done():
			return startFailure(cfg, ctx.Err())
		}
	}
}

// memberID is the embedded member's, which its directory keeps; 0 without one.
func (s *Store) memberID() uint64 {
	if s.member == nil {
		return 0
	}
	return uint64(s.member.etcd.Server.MemberID())
}

func (m *member) close() {
	m.closing.Do(func() {
		if m.etcd != nil {
			m.etcd.Close()
		}
		m.lock.Close() // releases the lock
	})
}

// lockDir keeps a second process out at once. etcd itself would wait for its
// own lock without end and without a word to the caller.
func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the store's lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, &api.Error{Code: api.CodeConflict, Field: "store.dir", Err: err,
			Message: fmt.Sprintf("another process uses the store in %s", dir),
			Remedy:  "stop it, or choose another directory"}
	}
	return f, nil
}
