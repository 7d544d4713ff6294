package main

import (
	"context"
	"crypto"
	"crypto/rand"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/attest"
	"github.com/faasd-sec/faasd-sec/cgroups"
	"github.com/faasd-sec/faasd-sec/node"
	"github.com/faasd-sec/faasd-sec/pki"
)

// nodeKey makes evidence with the node's key about the agent's binary as it was
// last measured.
type nodeKey struct {
	path      string
	id        string
	identity  *pki.Identity
	collector atomic.Pointer[attest.NodeKeyCollector]
}

// measure reads the agent's binary.
func (k *nodeKey) measure() error {
	digest, err := attest.MeasureFile(k.path)
	if err != nil {
		return fmt.Errorf("measure the agent: %w", err)
	}
	k.collector.Store(&attest.NodeKeyCollector{
		NodeID: k.id, AgentDigest: digest, Random: rand.Reader, Now: time.Now,
		Credentials: func() (crypto.Signer, [][]byte, error) { s, chain := k.identity.Signer(); return s, chain, nil },
	})
	return nil
}

// Type implements node.Collector.
func (k *nodeKey) Type() string { return attest.TypeNodeKey }

// Collect implements node.Collector.
func (k *nodeKey) Collect(ctx context.Context, statement []byte) (api.Evidence, error) {
	c := k.collector.Load()
	if c == nil {
		return api.Evidence{}, fmt.Errorf("the agent %s is not measured", k.path)
	}
	return c.Collect(ctx, statement)
}

// pressure is the machine's, as far as its kernel keeps it.
func pressure(fs cgroups.FS) (p node.Pressure, ok bool, err error) {
	cpu, ok, err := fs.Pressure("cpu")
	if err != nil || !ok {
		return p, false, err
	}
	memory, ok, err := fs.Pressure("memory")
	return node.Pressure{CPU: cpu.SomeAvg10, Memory: memory.SomeAvg10}, ok, err
}
