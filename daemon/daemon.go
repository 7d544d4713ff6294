// Package daemon is what the project's long-running processes share: signals,
// logging, listeners, and the endpoint where an operator asks how they are.
//
// It decides nothing about requests. Each function returns only when what it
// started has ended.
package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/valyala/fasthttp"
	"github.com/valyala/fasthttp/fasthttpadaptor"

	"github.com/faasd-sec/faasd-sec/nbio"
)

// Signals returns a context that ends with SIGINT or SIGTERM. A second one
// ends the process: an operator who insists is not kept waiting.
func Signals(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(parent)
	ch := make(chan os.Signal, 2)
	signal.Notify(ch, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		select {
		case <-ch:
			cancel()
		case <-ctx.Done():
		}
		signal.Stop(ch) // from now on the default action holds
	}()
	return ctx, cancel
}

// Logger writes JSON or text lines at the level.
func Logger(w io.Writer, format, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log level %q: use debug, info, warn or error", level)
	}
	o := &slog.HandlerOptions{Level: l}
	switch format {
	case "json":
		return slog.New(slog.NewJSONHandler(w, o)), nil
	case "text":
		return slog.New(slog.NewTextHandler(w, o)), nil
	}
	return nil, fmt.Errorf("log format %q: use json or text", format)
}

// Server bounds what a peer may do to a fasthttp server before anything is
// known of it: header size, time for the header and a small body, idleness. No
// part of a body is ever taken for a request. Serve it on a listener of Listen.
func Server(h fasthttp.RequestHandler, log *slog.Logger) *fasthttp.Server {
	return &fasthttp.Server{
		Handler: framed(h), Name: "faasd-sec", NoDefaultServerHeader: true, NoDefaultContentType: true,
		ReadBufferSize: 16 << 10, WriteBufferSize: 16 << 10, // the first is also the limit of all headers
		ReadTimeout: 20 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxRequestBodySize: 8 << 10, // bytes taken before the handler runs; handlers read and bound the rest
		StreamRequestBody:  true, DisablePreParseMultipartForm: true, CloseOnShutdown: true,
		ReduceMemoryUsage: true, // flushes each reply by itself, also among requests that came in one go: relay.Body.Watch relies on it
		Logger:            quiet{log}, LogAllErrors: false,
	}
}

// quiet takes fasthttp's own log lines down to debug: they speak of peers that
// went away.
type quiet struct{ log *slog.Logger }

func (q quiet) Printf(format string, args ...any) {
	q.log.Debug("http", "event", fmt.Sprintf(format, args...))
}

// Serve runs s on ln until ctx ends, then lets requests under way finish for at
// most grace.
func Serve(ctx context.Context, s *fasthttp.Server, ln net.Listener, grace time.Duration) error {
	failed := make(chan error, 1)
	go func() { failed <- s.Serve(ln) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	err := s.ShutdownWithContext(sctx)
	// Shutdown closes the listeners that Serve has taken on already: where ctx
	// ended before that, this one would go on.
	if cerr := ln.Close(); !errors.Is(cerr, net.ErrClosed) {
		err = errors.Join(err, cerr)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = nil // what was left has been cut; its clients see that
	}
	select {
	case serr := <-failed:
		return errors.Join(err, serr)
	case <-sctx.Done():
		return err
	}
}

// Listen opens a TCP listener, over TLS if config is given.
func Listen(addr string, config *tls.Config) (net.Listener, error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	ln = lingerListener{ln}
	if config != nil {
		return tls.NewListener(ln, config), nil
	}
	return ln, nil
}

// Registry makes a metrics registry with Go's and the process's own metrics.
func Registry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// Ops serves /healthz, /readyz and /metrics.
func Ops(reg *prometheus.Registry, ready func() error) fasthttp.RequestHandler {
	metrics := fasthttpadaptor.NewFastHTTPHandler(promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	return func(ctx *fasthttp.RequestCtx) {
		switch string(ctx.Path()) {
		case "/metrics":
			metrics(ctx)
		case "/healthz":
			ctx.SetBodyString("OK\n")
		case "/readyz":
			if err := ready(); err != nil {
				ctx.Error(err.Error()+"\n", fasthttp.StatusServiceUnavailable)
				return
			}
			ctx.SetBodyString("OK\n")
		default:
			ctx.Error("not found\n", fasthttp.StatusNotFound)
		}
	}
}

// BootID is the kernel's id of this boot, "" where it tells none: two processes
// with the same one are on one machine.
func BootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// ListenUnix opens a unix listener that only this user reaches, in place of one
// that a former life left, over TLS if config is given.
func ListenUnix(path string, config *tls.Config) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	// The file is made with the mode of its socket: there is no moment at which others
	// could connect, whatever the umask.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), 0o600) })
		return errors.Join(cerr, err)
	}}
	ln, err := lc.Listen(context.Background(), "unix", path) // as net.Listen does: nothing of it waits
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	ln = nbio.Listener{Listener: ln}
	if config != nil {
		return tls.NewListener(ln, config), nil
	}
	return ln, nil
}
