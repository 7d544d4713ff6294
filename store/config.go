package store

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// Config says where the state lives. Exactly one of Dir and Endpoints is set.
type Config struct {
	// Dir is the data directory of an embedded single member; it is created
	// with mode 0700 and locked while open.
	Dir string
	// Name is the embedded member's, unlike any other's; "" is "embedded".
	Name string
	// Peers lets the embedded member be one of several; nil: it is alone and
	// opens no port.
	Peers *Peers

	// Endpoints are the URLs of an etcd cluster. https is required unless the
	// endpoint is a unix socket or a loopback address.
	Endpoints []string
	// TLS is for Endpoints: the authority, and the client's certificate.
	TLS *tls.Config
	// Prefix is put before every key, so that clusters can share one etcd.
	// It begins and ends with '/'.
	Prefix string

	// Timeout bounds every single operation.
	Timeout time.Duration
	// QuotaBytes is where the embedded member stops taking writes, as etcd
	// demands some bound; at most 8 GiB.
	QuotaBytes int64
	// CompactAfter is how long the embedded member keeps old versions, which
	// only serve watchers that were away.
	CompactAfter time.Duration

	// Log gets the embedded member's warnings and the caches' troubles.
	Log *slog.Logger
	// Now is the clock that decides whether a token has expired.
	Now func() time.Time
}

// DefaultConfig is an embedded member in dir.
func DefaultConfig(dir string, log *slog.Logger) Config {
	return Config{
		Dir:          dir,
		Prefix:       "/faasd-sec/",
		Timeout:      3 * time.Second,
		QuotaBytes:   2 << 30,
		CompactAfter: 30 * time.Minute,
		Log:          log,
		Now:          time.Now,
	}
}

// check refuses what cannot work, naming the field.
func (c Config) check() error {
	switch {
	case (c.Dir == "") == (len(c.Endpoints) == 0):
		return api.Invalid("store", "set either a data directory or etcd endpoints",
			fmt.Sprintf("directory %q and %d endpoints are configured", c.Dir, len(c.Endpoints)))
	case !strings.HasPrefix(c.Prefix, "/") || !strings.HasSuffix(c.Prefix, "/"):
		return api.Invalid("store.prefix", "begin and end it with '/'", fmt.Sprintf("%q", c.Prefix))
	case c.Timeout <= 0:
		return api.Invalid("store.timeout", "use a few seconds", c.Timeout.String())
	case c.Log == nil || c.Now == nil:
		return api.Invalid("store", "start from DefaultConfig", "no logger or no clock")
	}
	if c.Dir != "" {
		if c.QuotaBytes < 16<<20 || c.QuotaBytes > 8<<30 {
			return api.Invalid("store.quota", "use 16Mi to 8Gi", fmt.Sprintf("%d bytes", c.QuotaBytes))
		}
		if c.CompactAfter < time.Minute {
			return api.Invalid("store.compact_after", "use a minute or more", c.CompactAfter.String())
		}
		return c.Peers.check()
	}
	if c.Peers != nil {
		return api.Invalid("store.peers", "an etcd elsewhere has members of its own; leave one of the two out", "they need a data directory")
	}
	for _, e := range c.Endpoints {
		if err := checkEndpoint(e, c.TLS != nil); err != nil {
			return err
		}
	}
	return nil
}

// checkEndpoint refuses to send the cluster's state over a network in clear.
func checkEndpoint(e string, hasTLS bool) error {
	scheme, rest, ok := strings.Cut(e, "://")
	if !ok || rest == "" {
		return api.Invalid("store.endpoints", "write https://HOST:PORT", fmt.Sprintf("%q is not a URL", e))
	}
	if scheme == "http" || scheme == "https" {
		host, port, err := net.SplitHostPort(rest)
		if n, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || n == 0 || host == "" || strings.ContainsAny(host, "/@? ") {
			return api.Invalid("store.endpoints", "write https://HOST:PORT", fmt.Sprintf("%q names no host and port", e))
		}
	}
	switch scheme {
	case "unix", "unixs":
		return nil
	case "https":
		if !hasTLS {
			return api.Invalid("store.tls", "give the authority and a client certificate", "missing for "+e)
		}
		return nil
	case "http":
		for _, l := range []string{"127.0.0.1:", "[::1]:", "localhost:"} {
			if strings.HasPrefix(rest, l) {
				return nil
			}
		}
		return api.Invalid("store.endpoints", "use https, or etcd on this machine's loopback", fmt.Sprintf("%q is not encrypted", e))
	}
	return api.Invalid("store.endpoints", "use https or unix", fmt.Sprintf("%q has the scheme %q", e, scheme))
}
