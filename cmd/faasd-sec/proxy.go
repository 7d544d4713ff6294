package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/daemon"
	"github.com/faasd-sec/faasd-sec/proxy"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
	"github.com/faasd-sec/faasd-sec/tracing"
)

// proxyGrace is how long requests under way may take when the proxy is to end.
const proxyGrace = 10 * time.Second

type proxyFlags struct {
	trace   tracing.Config
	config  string
	listen  string
	metrics string
	verbose bool
}

func (a *app) proxyCommand() *cobra.Command {
	var f proxyFlags
	cmd := &cobra.Command{Use: "proxy", Short: "Seal plain HTTP requests, for clients that cannot",
		Long: "Serve http://127.0.0.1:8090/function/NAME[.NAMESPACE][/PATH] in the foreground: each request is sealed to the\n" +
			"function with your identity, and its reply opened. Whoever reaches the proxy acts with your keys: it listens on\n" +
			"loopback or a unix socket, or demands TLS and a token. --config says what is admitted; without it, everything.\n" +
			"Owners have to be pinned (key trust owner). docs/proxy.md has the configuration.",
		Example: "  faasd-sec proxy &\n  curl --data world http://127.0.0.1:8090/function/hello",
		Args:    usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := f.load()
			if err != nil {
				return err
			}
			return a.proxy(cmd.Context(), cfg, f.trace, f.verbose)
		}}
	fl := cmd.Flags()
	fl.StringVar(&f.config, "config", "", "the proxy's configuration, a YAML file")
	fl.StringVar(&f.listen, "listen", "", "IP:PORT or unix:PATH (default 127.0.0.1:8090, or what the configuration says)")
	fl.StringVar(&f.metrics, "metrics", "", "loopback IP:PORT of Prometheus metrics (default none, or what the configuration says)")
	fl.StringVar(&a.via, "via", "", "URL of a node's gateway to ask first, as for invoke")
	fl.StringVar(&f.trace.Endpoint, "trace-endpoint", "", "URL of an OpenTelemetry collector (OTLP over HTTP) for spans of invocations; empty for none")
	fl.Float64Var(&f.trace.Ratio, "trace-ratio", tracing.Default("proxy").Ratio, "share of invocations that are traced where the caller has not decided")
	fl.BoolVarP(&f.verbose, "verbose", "v", false, "say more on standard error")
	return cmd
}

func (f *proxyFlags) load() (proxy.Config, error) {
	cfg := proxy.DefaultConfig()
	if f.config != "" {
		var err error
		if cfg, err = proxy.Load(f.config); err != nil {
			return cfg, err
		}
	}
	cfg.Listen, cfg.Metrics = first(f.listen, cfg.Listen), first(f.metrics, cfg.Metrics)
	return cfg, cfg.Validate()
}

// proxy serves until ctx ends.
func (a *app) proxy(ctx context.Context, cfg proxy.Config, trace tracing.Config, verbose bool) (err error) {
	a.via = first(a.via, cfg.Via)
	pins, err := client.OpenPins(a.configDir)
	if err != nil {
		return err
	}
	callers, closeCallers, err := a.proxyCallers(&cfg, pins)
	if err != nil {
		return err
	}
	defer closeCallers()
	var token []byte
	if cfg.TokenFile != "" {
		if token, err = readSecretFile("token_file", cfg.TokenFile); err != nil {
			return err
		}
	}
	defer clear(token)
	trace.Service, trace.Timeout = "proxy", tracing.Default("proxy").Timeout
	tracer, err := tracing.Open(ctx, trace)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tracer.Close()) }()
	return a.serveProxy(ctx, cfg, proxy.Deps{Callers: callers, Pins: pins, Token: string(token), Log: a.logger(verbose), Trace: tracer}, func(url string) {
		fmt.Fprintf(a.stdout, "ready     %s\n", url)
	})
}

// logger is for what serves in the foreground.
func (a *app) logger(verbose bool) *slog.Logger {
	level := slog.LevelWarn
	if verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: level}))
}

// serveProxy serves until ctx ends. ready is told the URL once it listens.
func (a *app) serveProxy(ctx context.Context, cfg proxy.Config, dep proxy.Deps, ready func(url string)) error {
	log, reg := dep.Log, daemon.Registry()
	dep.Registerer = reg
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	p, err := proxy.New(life, cfg, dep)
	if err != nil {
		return err
	}
	defer p.Close()
	ln, err := listenProxy(&cfg)
	if err != nil {
		return err
	}
	g := daemon.NewGroup(ctx, log)
	defer g.Stop()
	server := daemon.Server(p.Handler(), log)
	server.ErrorHandler, server.Concurrency = p.HandleError, cfg.MaxCallers
	g.Go("proxy", func(ctx context.Context) error { return daemon.Serve(ctx, server, ln, proxyGrace) })
	if cfg.Metrics != "" {
		ops, err := daemon.Listen(cfg.Metrics, nil)
		if err != nil {
			g.Stop()
			return errors.Join(cannotListen("metrics", err), g.Wait())
		}
		g.Go("metrics", func(ctx context.Context) error {
			return daemon.Serve(ctx, daemon.Server(daemon.Ops(reg, func() error { return nil }), log), ops, time.Second)
		})
		fmt.Fprintf(a.stdout, "metrics   http://%s/metrics\n", ops.Addr())
	}
	ready(proxyURL(&cfg, ln.Addr()))
	select {
	case <-ctx.Done():
	case <-g.Failed():
	}
	g.Stop()
	return g.Wait()
}

// proxyCallers makes a client for each identity that a route names. Nobody is
// trusted on first use: a proxy has no person to ask.
func (a *app) proxyCallers(cfg *proxy.Config, pins *client.Pins) (map[string]proxy.Invoker, func(), error) {
	out := make(map[string]proxy.Invoker)
	var made []*client.Client
	closeAll := func() {
		for _, c := range made {
			c.Close()
		}
	}
	for _, name := range cfg.Identities() {
		c, err := a.proxyCaller(cfg, pins, name)
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		made = append(made, c)
		out[name] = c
	}
	return out, closeAll, nil
}

func (a *app) proxyCaller(cfg *proxy.Config, pins *client.Pins, name string) (*client.Client, error) {
	id, err := a.proxyIdentity(cfg, name)
	if err != nil {
		return nil, err
	}
	return a.connectBy(pins, a.gatewayURL(cfg.Gateway), id)
}

// proxyIdentity opens an identity with the passphrase that is given for it, or
// as every other command does.
func (a *app) proxyIdentity(cfg *proxy.Config, name string) (*unseal.Identity, error) {
	as := *a
	as.identity = first(name, a.identity)
	if f := cfg.PassphraseFiles[as.identity]; f != "" {
		as.passphraseFile = f
	}
	id, pass, err := as.loadIdentity()
	clear(pass)
	return id, err
}

func listenProxy(cfg *proxy.Config) (net.Listener, error) {
	var config *tls.Config
	if cfg.TLS != nil {
		cert, err := tls.LoadX509KeyPair(cfg.TLS.Certificate, cfg.TLS.Key)
		if err != nil {
			return nil, &api.Error{Code: api.CodeInvalid, Field: "tls", Err: err, Message: "cannot use the certificate and its key", Remedy: "give PEM files that belong together"}
		}
		config = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}}
	}
	var ln net.Listener
	var err error
	if path, ok := strings.CutPrefix(cfg.Listen, "unix:"); ok {
		if err := freeSocket(path); err != nil {
			return nil, err
		}
		ln, err = daemon.ListenUnix(path, config)
	} else {
		ln, err = daemon.Listen(cfg.Listen, config)
	}
	if err != nil {
		return nil, cannotListen("listen", err)
	}
	return ln, nil
}

// freeSocket makes sure that nothing is at path but what a proxy left that was
// killed.
func freeSocket(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return nil // listening tells
	}
	if info.Mode()&os.ModeSocket == 0 {
		return api.Invalid("listen", "choose another path", path+" is there, and no socket")
	}
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		return cannotListen("listen", errors.Join(errors.New(path+" is served"), conn.Close()))
	}
	return nil
}

func cannotListen(field string, err error) error {
	return &api.Error{Code: api.CodeUnavailable, Field: field, Err: err, Message: "cannot listen", Remedy: "stop what is there, or choose another address"}
}

func proxyURL(cfg *proxy.Config, addr net.Addr) string {
	switch {
	case strings.HasPrefix(cfg.Listen, "unix:"):
		return cfg.Listen
	case cfg.TLS != nil:
		return "https://" + addr.String()
	}
	return "http://" + addr.String()
}
