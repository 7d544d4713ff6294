package store

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/faasd-sec/faasd-sec/api"
)

// openExternal connects to an etcd cluster and asks it once, so that a wrong
// address or certificate shows at start: CodeForbidden where it is refused,
// CodeUnavailable where nobody answers.
func openExternal(ctx context.Context, cfg Config) (*clientv3.Client, error) {
	client, err := clientv3.New(clientv3.Config{
		Endpoints:            cfg.Endpoints,
		TLS:                  cfg.TLS,
		DialTimeout:          cfg.Timeout,
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 5 * time.Second,
		Logger:               zapTo(cfg.Log),
	})
	if err != nil {
		return nil, fmt.Errorf("connect to etcd: %w", err)
	}
	asking, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	if _, err = client.Get(asking, cfg.Prefix, clientv3.WithCountOnly()); err == nil {
		return client, nil
	}
	client.Close()
	if refused(err) {
		return nil, &api.Error{Code: api.CodeForbidden, Field: "store.tls", Err: err, Message: fmt.Sprintf("etcd refuses this client at %v", cfg.Endpoints),
			Remedy: "give a certificate of a user who may read and write " + cfg.Prefix}
	}
	why, lasting := diagnose(ctx, cfg)
	if why != nil {
		err = why
	}
	if lasting {
		return nil, &api.Error{Code: api.CodeForbidden, Field: "store.tls", Err: err, Message: "the certificates do not fit",
			Remedy: "give the authority of etcd's certificate, and a certificate with key that etcd takes"}
	}
	return nil, &api.Error{Code: api.CodeUnavailable, Field: "store.endpoints", Err: err,
		Message: fmt.Sprintf("etcd does not answer at %v", cfg.Endpoints),
		Remedy:  "check the addresses and that etcd runs"}
}

// lookEvery is how often an etcd elsewhere is asked whether it is there.
const lookEvery = 3 * time.Second

// watchAway asks an etcd elsewhere again and again, until the store is closed, and logs
// when it goes and when it is back.
func (s *Store) watchAway() {
	for sleep(s.life, lookEvery) == nil {
		err := s.Ping(s.life)
		switch was := s.away.Load(); {
		case s.life.Err() != nil:
			return
		case err == nil && was != nil:
			s.cfg.Log.Info("the store answers again")
			s.away.Store(nil)
		case err != nil && was == nil:
			s.cfg.Log.Warn("the store is away", "error", err)
			s.away.Store(&api.Error{Code: api.CodeUnavailable, Field: "store", Err: err, Message: "the store does not answer",
				Remedy: "start the etcd; functions that are known here are invoked meanwhile"})
		}
	}
}
