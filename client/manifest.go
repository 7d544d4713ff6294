package client

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/manifest"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// keysFresh is how long the gateway's manifest keys are used before it is asked again.
const keysFresh = 10 * time.Minute

// ManifestKeys returns what the gateway says of its manifest keys, which is not
// trusted by this; see Config.Pins.
func (c *Client) ManifestKeys(ctx context.Context) (api.ManifestKeys, error) {
	var out api.ManifestKeys
	return out, c.do(ctx, call{method: http.MethodGet, path: api.GatewayPathManifestKey}, &out)
}

// manifestKey is a live manifest key that the pinned opener signed.
func (c *Client) manifestKey(ctx context.Context) (sealed.PublicKey, error) {
	now := c.cfg.Now()
	at := uint64(max(now.Unix(), 0))
	c.mu.Lock()
	k, fetched, believed := c.sealTo, c.sealToAt, c.sealToBy
	c.mu.Unlock()
	version := c.cfg.Pins.version()
	if k != nil && now.Sub(fetched) < keysFresh && at < k.NotAfter && believed == version {
		return k.Public, nil
	}
	info, err := c.ManifestKeys(ctx)
	if err != nil {
		return sealed.PublicKey{}, err
	}
	identity, firstUse, err := c.pinnedOpener(info)
	if err != nil {
		return sealed.PublicKey{}, err
	}
	for _, offered := range info.Keys {
		pub, err := sealed.ParsePublicKeyText(offered.Public)
		if err != nil {
			return sealed.PublicKey{}, api.Wrap(api.CodeUnavailable, err, "the gateway's manifest key does not parse")
		}
		k := &manifest.Key{Public: pub, NotBefore: offered.NotBefore, NotAfter: offered.NotAfter, Identity: identity, Signature: offered.Signature}
		if !k.Verify() {
			return sealed.PublicKey{}, &api.Error{Code: api.CodeForbidden, Field: "manifest key",
				Message: "the gateway offers a manifest key that its manifest opener did not sign", Remedy: "tell the cluster's operator: somebody may want to read manifests"}
		}
		if at >= k.NotAfter || at+uint64(clockSlack/time.Second) < k.NotBefore {
			continue
		}
		if firstUse { // only now: nobody is pinned for a signature that does not hold
			if err := c.cfg.Pins.SetOpener(c.gateway.String(), identity); err != nil {
				return sealed.PublicKey{}, err
			}
		}
		c.mu.Lock()
		c.sealTo, c.sealToAt, c.sealToBy = k, now, version
		c.mu.Unlock()
		return pub, nil
	}
	return sealed.PublicKey{}, &api.Error{Code: api.CodeUnavailable, Field: "manifest key", Message: "the gateway offers no manifest key that is valid now",
		Remedy: "compare this machine's clock with the cluster's"}
}

// pinnedOpener decides whose signature on manifest keys counts, as pinnedBroker
// does for the broker.
func (c *Client) pinnedOpener(info api.ManifestKeys) (_ sealed.PublicKey, firstUse bool, err error) {
	offered, err := sealed.ParsePublicKeyText(info.Identity)
	if err != nil {
		return offered, false, api.Wrap(api.CodeUnavailable, err, "the manifest opener's key does not parse")
	}
	gateway := c.gateway.String()
	trust := fmt.Sprintf("faasd-sec key trust manifest-opener --gateway %s %s", gateway, offered.Fingerprint())
	pinned, ok := c.cfg.Pins.Opener(gateway)
	if !ok || pinned != offered {
		c.cfg.Pins.again()
		pinned, ok = c.cfg.Pins.Opener(gateway)
	}
	switch {
	case ok && pinned == offered:
		return pinned, false, nil
	case ok:
		return pinned, false, &api.Error{Code: api.CodeForbidden, Field: "manifest opener",
			Message: fmt.Sprintf("the gateway offers manifest opener %s, and %s is pinned", offered.Fingerprint(), pinned.Fingerprint()),
			Remedy:  "if its operator confirms the change: " + trust}
	case c.cfg.TrustOnFirstUse:
		return offered, true, nil
	}
	return offered, false, &api.Error{Code: api.CodeForbidden, Field: "manifest opener",
		Message: "no manifest opener is pinned for " + gateway + ": what tasks need would be told to whoever answers",
		Remedy:  "compare the fingerprint with its operator, then: " + trust + "; or add --trust-first-use"}
}

// sealManifest makes the header's value for one invocation.
func (c *Client) sealManifest(ctx context.Context, f *function, n *Needs) (string, error) {
	if n == nil {
		return "", nil
	}
	to, err := c.manifestKey(ctx)
	if err != nil {
		return "", err
	}
	if n.Task.IsZero() {
		if n.Task, err = sealed.NewID(c.cfg.Random); err != nil {
			return "", fmt.Errorf("client: draw a task's id: %w", err)
		}
	}
	m, err := n.manifest()
	if err != nil {
		return "", err
	}
	m.Suite, m.Revision = sealed.SuiteSM, f.revision
	b, err := manifest.Seal(m, to, c.cfg.Identity.Signer(), f.name, c.cfg.Now(), c.cfg.Random)
	if err != nil {
		return "", err
	}
	text := base64.RawURLEncoding.EncodeToString(b)
	if len(text) > api.MaxManifestHeader {
		return "", &api.Error{Code: api.CodeTooLarge, Field: "needs", Message: fmt.Sprintf("the sealed manifest has %d characters, at most %d are taken", len(text), api.MaxManifestHeader),
			Remedy: "ask for fewer constraints, ports or codes"}
	}
	return text, nil
}

// sealBounds makes the bounds of a deployment.
func (c *Client) sealBounds(ctx context.Context, name api.FunctionName, revision sealed.Digest, b *manifest.Bounds) ([]byte, error) {
	if b == nil {
		return nil, nil
	}
	to, err := c.manifestKey(ctx)
	if err != nil {
		return nil, err
	}
	own := *b
	own.Suite, own.Revision = sealed.SuiteSM, revision
	return manifest.SealBounds(&own, to, c.cfg.Identity.Signer(), name, c.cfg.Now(), c.cfg.Random)
}

// Waiting returns the tasks that wait for room, as they are served.
func (c *Client) Waiting(ctx context.Context) ([]api.WaitingTask, error) {
	var out []api.WaitingTask
	return out, c.do(ctx, call{method: http.MethodGet, path: api.GatewayPathWaiting}, &out)
}

// Cancel ends the wait of a task that this identity sent, or whose function it owns.
func (c *Client) Cancel(ctx context.Context, task string) error {
	if err := taskName(task); err != nil {
		return err
	}
	return c.do(ctx, call{method: http.MethodDelete, path: api.GatewayPathWaiting + "/" + task, signed: true}, nil)
}

// Placement explains where a task was placed, or why nowhere, to its initiator and
// to its function's owner.
func (c *Client) Placement(ctx context.Context, task string) (api.Placement, error) {
	var out api.Placement
	if err := taskName(task); err != nil {
		return out, err
	}
	return out, c.do(ctx, call{method: http.MethodGet, path: api.GatewayPathTasks + "/" + task + "/placement", signed: true}, &out)
}

// taskName checks what becomes a part of a path.
func taskName(s string) error {
	ok := s != "" && len(s) <= 64
	for _, c := range s {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-')
	}
	if !ok {
		return api.Invalid("task", "give an id as faasd-sec tasks waiting prints it", fmt.Sprintf("%q is not a task's id", s))
	}
	return nil
}
