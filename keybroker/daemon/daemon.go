// Package daemon puts a key broker on the cluster's network: it opens the
// broker's identity and vault, listens with the cluster's mutual TLS, and serves
// health and metrics on a second address. cmd/keybroker runs it alone; a cluster
// on one machine runs it beside the rest.
package daemon

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/attest"
	base "github.com/faasd-sec/faasd-sec/daemon"
	"github.com/faasd-sec/faasd-sec/keybroker"
	"github.com/faasd-sec/faasd-sec/nbio"
	"github.com/faasd-sec/faasd-sec/pki"
	"github.com/faasd-sec/faasd-sec/samehost"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// Config says where a key broker listens and keeps its files.
type Config struct {
	Listen        string        // host:port of the mutual-TLS API
	LocalSocket   string        // unix socket of the same API for nodes on this machine; empty for none
	MetricsListen string        // host:port of /healthz, /readyz and /metrics, in clear; empty for none
	StateDir      string        // identity and vault; mode 0700
	TLS           *pki.Identity // a certificate of the cluster with role keybroker
	Passphrase    []byte        // encrypts the identity's files; the caller wipes it after New
	Log           *slog.Logger

	AllowedOwners []sealed.Fingerprint // who may deposit; empty: everybody
	AllowedAgents []sealed.Digest      // agent binaries; empty: all
}

// Daemon is a key broker that listens.
type Daemon struct {
	log     *slog.Logger
	broker  *keybroker.Broker
	server  *keybroker.Server
	api     net.Listener
	local   net.Listener // nil for none
	metrics net.Listener // nil for none
	reg     *prometheus.Registry
}

// New opens everything and begins to listen; Run answers.
func New(cfg Config) (*Daemon, error) {
	if cfg.TLS == nil || cfg.Log == nil {
		return nil, errors.New("key broker: TLS identity and log are required")
	}
	if r := cfg.TLS.Peer().Role; r != pki.RoleKeyBroker {
		return nil, api.Invalid("tls identity", "issue one with role keybroker", fmt.Sprintf("its role is %s", r))
	}
	// A broken library must not be found out by its first ciphertext.
	if err := unseal.SelfTest(); err != nil {
		return nil, fmt.Errorf("key broker: self test: %w", err)
	}
	id, created, err := keybroker.OpenIdentity(cfg.StateDir+"/identity", cfg.Passphrase, rand.Reader)
	if err != nil {
		return nil, err
	}
	if created {
		cfg.Log.Info("key broker made its identity", "fingerprint", id.SigningKey().Fingerprint().String())
	}
	verifiers, err := attest.NewVerifiers(&attest.NodeKeyVerifier{VerifyChain: nodeChain(cfg.TLS), Now: time.Now})
	if err != nil {
		return nil, err
	}
	d := &Daemon{log: cfg.Log, reg: prometheus.NewRegistry()}
	if err := d.reg.Register(collectors.NewGoCollector()); err != nil {
		return nil, fmt.Errorf("key broker: metrics: %w", err)
	}
	d.broker, err = keybroker.New(keybroker.Config{Identity: id, VaultDir: cfg.StateDir + "/vault", Verifiers: verifiers,
		Random: rand.Reader, Now: time.Now, Log: cfg.Log, Registerer: d.reg,
		AllowedOwners: cfg.AllowedOwners, AllowedAgents: cfg.AllowedAgents})
	if err != nil {
		return nil, err
	}
	d.server = &keybroker.Server{Broker: d.broker, Identify: identify, Log: cfg.Log}
	return d, d.listen(cfg)
}

func (d *Daemon) listen(cfg Config) error {
	ln, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return fmt.Errorf("key broker: %w", err)
	}
	d.api = tls.NewListener(nbio.Listener{Listener: ln}, pki.ServerConfig(cfg.TLS, pki.RoleCoordinator, pki.RoleNode))
	if cfg.LocalSocket != "" {
		socket, err := base.ListenUnix(cfg.LocalSocket, nil)
		if err != nil {
			d.close()
			return fmt.Errorf("key broker: %w", err)
		}
		d.local = samehost.NewListener(socket, pki.ServerConfig(cfg.TLS, pki.RoleNode))
	}
	if cfg.MetricsListen == "" {
		return nil
	}
	if d.metrics, err = net.Listen("tcp", cfg.MetricsListen); err != nil {
		d.close()
		return fmt.Errorf("key broker: metrics: %w", err)
	}
	return nil
}

// close ends the listeners of the API.
func (d *Daemon) close() {
	d.api.Close()
	if d.local != nil {
		d.local.Close()
	}
}

// Addr is the address of the mutual-TLS API.
func (d *Daemon) Addr() string { return d.api.Addr().String() }

// MetricsAddr is the address of /healthz, /readyz and /metrics, empty for none.
func (d *Daemon) MetricsAddr() string {
	if d.metrics == nil {
		return ""
	}
	return d.metrics.Addr().String()
}

// Info is the broker's public identity.
func (d *Daemon) Info() api.BrokerInfo { return d.broker.Info() }

// Run serves until ctx ends or a listener fails, and closes all listeners.
func (d *Daemon) Run(ctx context.Context) error {
	d.log.Info("key broker listens", "address", d.Addr(), "metrics", d.MetricsAddr(), "signing_key", d.Info().Signing)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.server.Serve(ctx, d.api) })
	if d.local != nil {
		g.Go(func() error { return d.server.Serve(ctx, d.local) })
	}
	if d.metrics != nil {
		g.Go(func() error { return d.serveMetrics(ctx) })
	}
	return g.Wait()
}

// serveMetrics is for operators and scrapers; it tells nothing of keys.
func (d *Daemon) serveMetrics(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(d.reg, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := d.broker.Check(); err != nil {
			d.log.Error("key broker cannot read its vault", "error", err)
			http.Error(w, "the vault cannot be read", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute,
		ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelDebug)}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(d.metrics) }()
	select {
	case err := <-done:
		return fmt.Errorf("key broker: metrics: %w", err)
	case <-ctx.Done():
	}
	err := srv.Close()
	<-done
	return err
}

// identify reads the caller from a connection that pki.ServerConfig accepted.
func identify(cs *tls.ConnectionState) (keybroker.Caller, error) {
	p, err := pki.PeerIdentity(cs)
	if err != nil {
		return keybroker.Caller{}, err
	}
	return keybroker.Caller{Node: p.Role == pki.RoleNode, Coordinator: p.Role == pki.RoleCoordinator, ID: p.ID}, nil
}

// nodeChain verifies the certificate in node-key evidence against the authority
// that the broker itself trusts.
func nodeChain(id *pki.Identity) func([][]byte, time.Time) (string, crypto.PublicKey, error) {
	chains := new(pki.Chains)
	return func(chain [][]byte, now time.Time) (string, crypto.PublicKey, error) {
		p, leaf, err := chains.Verify(chain[0], id.CA(), now)
		if err != nil {
			return "", nil, err
		}
		if p.Role != pki.RoleNode {
			return "", nil, fmt.Errorf("the certificate is a %s's", p.Role)
		}
		return p.ID, leaf.PublicKey, nil
	}
}
