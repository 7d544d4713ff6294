// Package own keeps a daemon's own anomaly log: in its state directory, with a key
// of its own that its certificate's vouches for.
package own

import (
	"context"
	"crypto"
	"crypto/rand"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/faasd-sec/faasd-sec/anomaly"
	"github.com/faasd-sec/faasd-sec/api"
)

// Names in a daemon's state directory.
const (
	Dir     = "anomalies"
	KeyFile = "anomaly.key" // and .pub beside it
)

// Log is an anomaly log with the key that signs it.
type Log struct {
	*anomaly.Log
	Path string // its directory

	member      string
	key         crypto.PublicKey
	credentials func() (crypto.Signer, [][]byte)
	log         *slog.Logger

	mu    sync.Mutex
	bound *api.LogKey
	at    time.Time
}

// bindEvery is how long a statement about the log's key is handed out before a new
// one is signed: certificates are renewed while a daemon runs.
const bindEvery = 10 * time.Minute

// Open opens the log in a state directory for the member that
// credentials, its certificate's, belong to. Close it last.
func Open(state, member string, credentials func() (crypto.Signer, [][]byte), log *slog.Logger) (*Log, error) {
	key, err := anomaly.OpenKey(filepath.Join(state, KeyFile), rand.Reader)
	if err != nil {
		return nil, err
	}
	a := &Log{Path: filepath.Join(state, Dir), member: member, key: key.Public(), credentials: credentials, log: log}
	cfg := anomaly.DefaultConfig()
	cfg.Dir, cfg.Node, cfg.Signer = a.Path, member, key
	if a.Log, err = anomaly.Open(cfg); err != nil {
		return nil, fmt.Errorf("anomaly log: %w", err)
	}
	return a, nil
}

// Key is the log's key as the member vouches for it, nil where it cannot.
func (a *Log) Key() *api.LogKey {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if a.bound != nil && now.Sub(a.at) < bindEvery {
		return a.bound
	}
	signer, chain := a.credentials()
	k, err := anomaly.BindKey(a.member, a.key, signer, chain, rand.Reader, now)
	if err != nil {
		a.log.Warn("vouch for the anomaly log's key", "err", err)
		return nil
	}
	a.bound, a.at = k, now
	return k
}

// Finish ends the log, within a while.
func (a *Log) Finish() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return a.Close(ctx)
}

// Register adds the log's counts to reg.
func (a *Log) Register(reg prometheus.Registerer) {
	count := func(name, help string, f func(anomaly.Stats) uint64) {
		reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help},
			func() float64 { return float64(f(a.Stats())) }))
	}
	count("faasd_sec_anomalies_total", "Events taken by the anomaly log.", func(s anomaly.Stats) uint64 { return s.Appended })
	count("faasd_sec_anomalies_lost_total", "Events that found no room.", func(s anomaly.Stats) uint64 { return s.Lost })
	count("faasd_sec_anomalies_invalid_total", "Events that were not fit to be noted.", func(s anomaly.Stats) uint64 { return s.Invalid })
	count("faasd_sec_anomalies_write_failures_total", "Writes of the anomaly log that failed.", func(s anomaly.Stats) uint64 { return s.Failures })
}
