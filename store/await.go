package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/faasd-sec/faasd-sec/api"
)

const (
	// firstTry and mostTry bound the pauses between attempts, which double.
	firstTry, mostTry = 250 * time.Millisecond, 10 * time.Second
	// firstSay and mostSay bound the pauses between log lines about it.
	firstSay, mostSay = 15 * time.Second, 10 * time.Minute
	// probeTimeout is how long an endpoint may take to refuse a certificate.
	probeTimeout = time.Second
)

// Await is Open for an etcd elsewhere that may be away: it tries until the etcd
// answers, logs that at growing intervals, and tells why of each attempt that
// failed. What waiting does not cure, a bad configuration, an address or a
// certificate that is refused, is an error at once; so is ctx's end.
func Await(ctx context.Context, cfg Config, why func(error)) (*Store, error) {
	began := time.Now()
	say, saying := began, firstSay
	for pause := firstTry; ; pause = min(2*pause, mostTry) {
		s, err := Open(ctx, cfg)
		if err == nil || ctx.Err() != nil || len(cfg.Endpoints) == 0 || api.CodeOf(err) != api.CodeUnavailable {
			if err == nil && pause > firstTry {
				cfg.Log.Info("the store answers", "after", time.Since(began).Round(time.Millisecond))
			}
			return s, err
		}
		why(err)
		if now := time.Now(); !now.Before(say) {
			cfg.Log.Warn("the store is away; waiting for it", "since", began, "error", err)
			say, saying = now.Add(saying), min(2*saying, mostSay)
		}
		if err := sleep(ctx, pause); err != nil {
			return nil, err
		}
	}
}

// refused reports whether etcd answered that it does not serve this client.
func refused(err error) bool {
	switch status.Code(err) {
	case codes.Unauthenticated, codes.PermissionDenied, codes.InvalidArgument:
		return true
	}
	return false
}

// diagnose finds out why no endpoint answers: the client knows only that it got no
// connection. lasting says that one was reached with which there is no agreement on
// certificates, which waiting does not cure. why is nil where there is nothing to be
// found.
func diagnose(ctx context.Context, cfg Config) (why error, lasting bool) {
	for _, e := range cfg.Endpoints {
		u, err := url.Parse(e)
		if err != nil {
			continue
		}
		network, addr, config := "tcp", u.Host, cfg.TLS
		switch u.Scheme {
		case "http":
			config = nil
		case "unix":
			network, addr, config = "unix", u.Path, nil
		case "unixs":
			network, addr = "unix", u.Path
		}
		if err := probe(ctx, network, addr, config); err != nil {
			why = errors.Join(why, fmt.Errorf("%s: %w", e, err))
			lasting = lasting || disagreed(err)
		}
	}
	return why, lasting
}

// probe connects, and listens for what the other side's TLS says of our
// certificate.
func probe(ctx context.Context, network, addr string, config *tls.Config) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	if config == nil {
		return nil
	}
	c := config.Clone()
	c.NextProtos, c.ServerName = []string{"h2"}, addr // as gRPC has it
	if host, _, err := net.SplitHostPort(addr); err == nil {
		c.ServerName = host
	}
	t := tls.Client(conn, c)
	if err := t.HandshakeContext(ctx); err != nil {
		return err
	}
	// A server refuses a client's certificate after the client has finished.
	deadline, _ := ctx.Deadline()
	if err := t.SetReadDeadline(deadline); err != nil {
		return err
	}
	if _, err := t.Read(make([]byte, 1)); disagreed(err) {
		return err
	}
	return nil
}

// disagreed reports whether TLS failed for a certificate, or for want of TLS.
func disagreed(err error) bool {
	var ours *tls.CertificateVerificationError
	var plain tls.RecordHeaderError
	var theirs *net.OpError
	return errors.As(err, &ours) || errors.As(err, &plain) || errors.As(err, &theirs) && theirs.Op == "remote error"
}
