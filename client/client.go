package client

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/manifest"
	"github.com/faasd-sec/faasd-sec/reqauth"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// Config makes a Client.
type Config struct {
	Gateway string // URL of a coordinator, such as "http://127.0.0.1:8080"
	Via     string // URL of a node's gateway that is asked first to serve invocations; "" for none
	// Others are the URLs of the cluster's other coordinators. What Gateway does
	// not take, since it cannot be reached or answers 503, goes to the next of
	// them once. Pins are kept under Gateway.
	Others []string
	// Resend sends an invocation to the next coordinator also where the
	// connection broke before any byte of an answer. The function may then have
	// run already: this is for functions that may run twice.
	Resend   bool
	Identity *unseal.Identity // the caller's or owner's two keys; required but for List, Nodes, Broker
	Pins     *Pins            // whom to believe; nil pins nobody
	// TrustOnFirstUse pins an unknown owner or key broker instead of refusing.
	// The first answer is then believed; a script should not do that.
	TrustOnFirstUse bool

	Transport http.RoundTripper // nil is NewTransport()
	Now       func() time.Time  // nil is time.Now
	Random    io.Reader         // nil is crypto/rand.Reader
}

// NewTransport is an HTTP transport for a gateway: connections are reused, and
// bodies flow both ways at once.
func NewTransport() *http.Transport {
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout: 5 * time.Second,
		MaxIdleConnsPerHost: 64,
		IdleConnTimeout:     90 * time.Second,
		// A sealed body does not compress, and the reply's length must stay.
		DisableCompression: true,
		WriteBufferSize:    32 << 10,
		ReadBufferSize:     32 << 10,
	}
}

// Client talks to one cluster's gateway. It is safe for concurrent use.
type Client struct {
	cfg     Config
	gateway *url.URL
	entry   *entry       // gateway, for invocations
	via     *entry       // nil without Config.Via
	entries []*entry     // entry, then the other coordinators'
	serving atomic.Int32 // index of the one that served last
	http    *http.Client
	opener  *unseal.Opener     // nil without identity
	grants  *sealed.GrantCache // nil without identity

	mu    sync.Mutex
	known map[api.FunctionName]*function

	sealTo   *manifest.Key // nil before it is needed
	sealToAt time.Time     // when the gateway told it
	sealToBy uint64        // version of the pins by which it is believed
}

// managementTimeout bounds one call that is neither an invocation, a followed
// log nor an upload.
const managementTimeout = 30 * time.Second

// grantWindow is how long a grant serves; the format allows an hour.
const grantWindow = 55 * time.Minute

// New checks cfg and makes a client. Nothing is sent yet.
func New(cfg Config) (*Client, error) {
	u, err := parseGateway("gateway", cfg.Gateway)
	if err != nil {
		return nil, err
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Random == nil {
		cfg.Random = rand.Reader
	}
	var via *url.URL
	if cfg.Via != "" {
		if via, err = parseGateway("via", cfg.Via); err != nil {
			return nil, err
		}
	}
	own := cfg.Transport == nil
	if own {
		cfg.Transport = NewTransport()
	}
	if cfg.Pins == nil {
		cfg.Pins = new(Pins)
	}
	c := &Client{cfg: cfg, gateway: u, entry: newEntry(u, own), known: make(map[api.FunctionName]*function),
		http: &http.Client{Transport: cfg.Transport, CheckRedirect: noRedirect}}
	if via != nil {
		c.via = newEntry(via, own)
	}
	if err := c.openOthers(own); err != nil {
		return nil, err
	}
	if cfg.Identity == nil {
		return c, nil
	}
	return c, c.openKeys()
}

func (c *Client) openKeys() error {
	keys, err := unseal.NewKeySet(unseal.Key{Decrypter: c.cfg.Identity.Decrypter()})
	if err != nil {
		return fmt.Errorf("client: identity: %w", err)
	}
	cache, err := unseal.NewCache(unseal.DefaultCacheConfig())
	if err != nil {
		return fmt.Errorf("client: %w", err)
	}
	if c.opener, err = unseal.NewOpener(unseal.Config{Keys: keys, Cache: cache, Clock: c.cfg.Now}); err != nil {
		return fmt.Errorf("client: %w", err)
	}
	g := sealed.DefaultGrantCacheConfig()
	g.Window, g.Clock, g.Random = grantWindow, c.cfg.Now, c.cfg.Random
	if c.grants, err = sealed.NewGrantCache(g); err != nil {
		return fmt.Errorf("client: %w", err)
	}
	return nil
}

// Close wipes the cached grants and closes idle connections.
func (c *Client) Close() {
	if c.grants != nil {
		c.grants.Drop()
	}
	c.http.CloseIdleConnections()
	for _, e := range c.entries {
		e.close()
	}
	if c.via != nil {
		c.via.close()
	}
}

// noRedirect: a gateway that sends us elsewhere would be a different server than
// the one whose pins apply.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// parseGateway accepts http and https URLs without path, query or password.
func parseGateway(field, s string) (*url.URL, error) {
	const remedy = "give a URL such as http://127.0.0.1:8080"
	u, err := url.Parse(strings.TrimRight(s, "/"))
	if err != nil {
		return nil, api.Invalid(field, remedy, "it does not parse as a URL")
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, api.Invalid(field, remedy, fmt.Sprintf("%q is not an http or https URL", u.Redacted()))
	}
	if u.Path != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return nil, api.Invalid(field, remedy, "it has more than scheme, host and port")
	}
	return u, nil
}

func (c *Client) signer() *reqauth.Signer {
	return &reqauth.Signer{Key: c.cfg.Identity.Signer(), Random: c.cfg.Random, Now: c.cfg.Now}
}

// needIdentity guards what cannot be done without keys.
func (c *Client) needIdentity() error {
	if c.cfg.Identity == nil {
		return errors.New("client: Config.Identity is required for this call")
	}
	return nil
}
