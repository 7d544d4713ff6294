package keybroker

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/attest"
	"github.com/faasd-sec/faasd-sec/reqauth"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// Config makes a Broker. All fields but the allow lists are required.
type Config struct {
	Identity   *Identity
	VaultDir   string            // one encrypted file per function
	Verifiers  *attest.Verifiers // the empty set releases nothing
	Random     io.Reader         // crypto/rand.Reader outside tests
	Now        func() time.Time  // time.Now outside tests
	Log        *slog.Logger
	Registerer prometheus.Registerer

	AllowedOwners []sealed.Fingerprint // who may deposit; empty: everybody, the first one owns a name
	AllowedAgents []sealed.Digest      // agent binaries that evidence may name; empty: all
	NodeRate      Rate                 // releases per node, and hand-ins of evidence; zero is DefaultNodeRate
}

// Broker takes deposits and releases keys. It is safe for concurrent use.
type Broker struct {
	cfg     Config
	vault   *vault
	opener  *unseal.Opener
	owners  *reqauth.Verifier
	nodes   *limiter // releases
	attests *limiter
	known   known
	once    *onceOnly
	metrics *metrics

	lapsing map[api.FunctionName]time.Time // when a traffic statement ends; the vault's lock guards it
}

// New opens the vault and makes a broker.
func New(cfg Config) (*Broker, error) {
	switch {
	case cfg.Identity == nil:
		return nil, errors.New("keybroker: no identity")
	case cfg.Verifiers == nil:
		return nil, errors.New("keybroker: no verifiers; pass the empty set to refuse every release")
	case cfg.Random == nil || cfg.Now == nil || cfg.Log == nil || cfg.Registerer == nil:
		return nil, errors.New("keybroker: Random, Now, Log and Registerer are required")
	}
	v, err := openVault(cfg.VaultDir, cfg.Identity.storage, cfg.Random)
	if err != nil {
		return nil, err
	}
	keys, err := unseal.NewKeySet(unseal.Key{Decrypter: cfg.Identity.decrypter})
	if err != nil {
		return nil, fmt.Errorf("keybroker: %w", err)
	}
	replay, err := sealed.NewReplaySet(sealed.ReplayConfig{Size: 1 << 16, Clock: cfg.Now})
	if err != nil {
		return nil, fmt.Errorf("keybroker: %w", err)
	}
	// No grant cache: a deposit's grant serves one message.
	opener, err := unseal.NewOpener(unseal.Config{Keys: keys, Replay: replay, Clock: cfg.Now})
	if err != nil {
		return nil, fmt.Errorf("keybroker: %w", err)
	}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, err
	}
	if cfg.NodeRate == (Rate{}) {
		cfg.NodeRate = DefaultNodeRate()
	}
	b := &Broker{cfg: cfg, vault: v, opener: opener, metrics: m, lapsing: make(map[api.FunctionName]time.Time),
		owners: reqauth.NewVerifier(cfg.Now), nodes: newLimiter(cfg.NodeRate, cfg.Now), attests: newLimiter(cfg.NodeRate, cfg.Now), once: newOnceOnly(cfg.Now)}
	return b, b.findLapsing()
}

// Info is the broker's public identity.
func (b *Broker) Info() api.BrokerInfo {
	return api.BrokerInfo{Signing: b.cfg.Identity.signing.String(),
		Decryption: b.cfg.Identity.decrypt.String(), Tiers: b.cfg.Verifiers.Types()}
}

// Check reports whether the vault can be read: its directory, and one of its
// files.
func (b *Broker) Check() error {
	b.vault.mu.RLock()
	defer b.vault.mu.RUnlock()
	names, err := b.vault.names()
	if err != nil || len(names) == 0 {
		return err
	}
	r, err := b.vault.read(names[0])
	r.wipe()
	return err
}

// Functions counts the functions whose keys are kept.
func (b *Broker) Functions() (int, error) {
	b.vault.mu.RLock()
	defer b.vault.mu.RUnlock()
	names, err := b.vault.names()
	if err != nil {
		return 0, err
	}
	n := 0
	for _, name := range names {
		r, err := b.vault.read(name)
		if err != nil {
			return 0, err
		}
		if r != nil && !r.removed() {
			n++
		}
		r.wipe()
	}
	return n, nil
}

// mayDeposit is the sender policy of deposits.
type mayDeposit []sealed.Fingerprint

// AllowSender implements unseal.SenderPolicy.
func (m mayDeposit) AllowSender(f sealed.Fingerprint) bool {
	return len(m) == 0 || slices.Contains(m, f)
}
