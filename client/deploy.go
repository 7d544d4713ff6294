package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/manifest"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// Deployment says what to run and who may call it.
type Deployment struct {
	Name        api.FunctionName
	ImageRef    string // repository in the cluster's registry, or HOST/repository elsewhere; no tag
	ImageDigest string // "sha256:…", what runs

	Mode        string   // http, serializing, streaming
	Upstream    string   // "unix" or "http://127.0.0.1:PORT"
	Process     []string // empty: the image's own
	Bundle      Bundle
	BundlePath  string // where Bundle.Dir appears
	Resources   api.Resources
	Read        time.Duration
	Write       time.Duration
	Exec        time.Duration
	Start       time.Duration
	Idle        time.Duration
	MaxQueued   time.Duration
	MaxInFlight int
	Constraints map[string]string // node labels
	AnyCaller   bool
	Callers     []sealed.Fingerprint // who may call; the owner is not implied
	Attestation []string             // types of evidence that open the keys
	Labels      map[string]string    // in clear, and not signed
	Annotations map[string]string    // likewise
	// Bounds say what tasks may ask for; nil: what Resources says, and only the
	// owner may send manifests. Suite and Revision are filled in.
	Bounds *manifest.Bounds

	Scale *api.Scale // how many replicas; nil: on demand

	Keys   *Keyring
	Rotate bool // with a new decryption key
	// NoOverlap lets the revision before have no keys from now on, also while this
	// one is on its way: it serves with the replicas it has.
	NoOverlap bool
	// PushBundle stores a sealed bundle in the cluster's registry under repo and
	// returns its digest, "sha256:…".
	PushBundle func(ctx context.Context, repo string, blob *os.File, size int64) (digest string, err error)
}

// Deployed tells what a deployment made current.
type Deployed struct {
	Name     api.FunctionName `json:"name"`
	Revision string           `json:"revision"` // hex
	Sequence uint64           `json:"sequence"`
	Image    string           `json:"image"`   // repository@digest
	Changed  bool             `json:"changed"` // false: the same revision was current before
	Plain    bool             `json:"plain,omitempty"`
}

// Deploy makes a deployment current: it seals the bundle to the function and
// pushes it, deposits the function's keys with the pinned key broker, and only
// then gives the signed descriptor to the gateway. Repeating it after a failure
// is safe.
func (c *Client) Deploy(ctx context.Context, d Deployment) (Deployed, error) {
	if err := c.needIdentity(); err != nil {
		return Deployed{}, err
	}
	if d.Keys == nil {
		return Deployed{}, errors.New("client: Deployment.Keys is required")
	}
	broker, err := c.pinnedBroker(ctx)
	if err != nil {
		return Deployed{}, err
	}
	before, err := c.current(ctx, d.Name)
	if err != nil {
		return Deployed{}, err
	}
	now := c.cfg.Now()
	keys, err := d.Keys.open(d.Name, d.Rotate, now)
	if err != nil {
		return Deployed{}, err
	}
	defer keys.wipe()
	desc, m, err := c.describe(d, keys, broker, now)
	if err != nil {
		return Deployed{}, err
	}
	// Not below the clock, so that an owner who lost this state, or removed the
	// function, does not start below what others remember.
	if desc.Sequence, err = d.Keys.number(d.Name, keys, before, now); err != nil {
		return Deployed{}, err
	}
	rev, err := desc.Revision()
	if err != nil {
		return Deployed{}, descriptorError(err)
	}
	record := api.Revision{ImageRef: d.ImageRef, Scale: d.Scale, Labels: d.Labels, Annotations: d.Annotations}
	if m != nil {
		record.BundleRef = "bundles/" + d.Name.Namespace() + "/" + d.Name.Function()
		if desc.BundleBlob, err = c.pushBundle(ctx, d, m, desc, rev, record.BundleRef); err != nil {
			return Deployed{}, err
		}
	}
	if record.Descriptor, err = desc.Sign(c.cfg.Random, c.cfg.Identity.Signer()); err != nil {
		return Deployed{}, descriptorError(err)
	}
	changed := before == nil || before.revision != rev
	if d.NoOverlap {
		before = nil
	}
	if record.Traffic, err = c.depositNext(ctx, before, &function{name: d.Name, desc: desc, signed: record.Descriptor, revision: rev}, keys, d.Keys, broker, now); err != nil {
		return Deployed{}, err
	}
	if record.Bounds, err = c.sealBounds(ctx, d.Name, rev, d.Bounds); err != nil {
		return Deployed{}, err
	}
	body, err := json.Marshal(record)
	if err != nil {
		return Deployed{}, fmt.Errorf("client: encode the revision: %w", err)
	}
	if err := c.do(ctx, call{method: http.MethodPut, path: api.GatewayPathFunctions + "/" + string(d.Name),
		typ: api.ContentTypeJSON, body: body, signed: true}, nil); err != nil {
		return Deployed{}, err
	}
	return Deployed{Name: d.Name, Revision: rev.String(), Sequence: desc.Sequence, Image: d.ImageRef + "@" + d.ImageDigest,
		Changed: changed}, nil
}

// pinnedBroker compares the gateway's broker with the pinned one: function keys
// go to nobody else.
func (c *Client) pinnedBroker(ctx context.Context) (BrokerPin, error) {
	info, err := c.Broker(ctx)
	if err != nil {
		return BrokerPin{}, err
	}
	offered, err := ParseBrokerPin(info)
	if err != nil {
		return BrokerPin{}, err
	}
	gateway := c.gateway.String()
	trust := fmt.Sprintf("faasd-sec key trust broker --gateway %s %s", gateway, offered.Fingerprint())
	switch pinned, ok := c.cfg.Pins.Broker(gateway); {
	case ok && pinned == offered:
		return pinned, nil
	case ok:
		return BrokerPin{}, &api.Error{Code: api.CodeForbidden, Field: "broker",
			Message: fmt.Sprintf("the gateway offers key broker %s, and %s is pinned", offered.Fingerprint(), pinned.Fingerprint()),
			Remedy:  "if its operator confirms the change: " + trust}
	case c.cfg.TrustOnFirstUse:
		return offered, c.cfg.Pins.SetBroker(gateway, offered)
	}
	return BrokerPin{}, &api.Error{Code: api.CodeForbidden, Field: "broker",
		Message: "no key broker is pinned for " + gateway + ": function keys would go to whoever answers",
		Remedy:  "compare the fingerprint with the broker's operator, then: " + trust + "; or deploy with --trust-first-use"}
}

// current is what the gateway has of our function, nil if nothing. One of
// another owner is refused before anything is made.
func (c *Client) current(ctx context.Context, name api.FunctionName) (*function, error) {
	st, err := c.Describe(ctx, name)
	if api.CodeOf(err) == api.CodeNotFound {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	signed, err := sealed.ParseDescriptor(st.Descriptor)
	if err != nil {
		return nil, nil // a plain function, or broken: the gateway decides
	}
	own := c.cfg.Identity.SigningKey().Fingerprint()
	if claimed := signed.ClaimedOwner().Fingerprint(); claimed != own {
		return nil, &api.Error{Code: api.CodeForbidden, Field: "name",
			Message: fmt.Sprintf("%s belongs to another owner (%s)", name.Short(), claimed),
			Remedy:  "choose another name or namespace, or the identity that deployed it"}
	}
	f, err := c.signedBy(own, name, st.Descriptor)
	if err != nil {
		return nil, err
	}
	if split, err := c.splitOf(f, st); err == nil && split != nil { // one that cannot be gone by ends with what is signed next
		f.split, f.stated = split, split.t.Sequence
	}
	return f, nil
}

// sequence is the highest one that the owner is known to have signed.
func (f *function) sequence() uint64 {
	if f == nil {
		return 0
	}
	return max(f.desc.Sequence, f.stated)
}

// describe fills the descriptor but for sequence and bundle blob.
func (c *Client) describe(d Deployment, keys *functionKeys, broker BrokerPin, now time.Time) (*sealed.Descriptor, *measured, error) {
	desc := &sealed.Descriptor{Name: d.Name.Function(), Namespace: d.Name.Namespace(), Sequence: 1, Issued: uint64(now.Unix()),
		Config: sealed.Config{Image: d.ImageDigest, Mode: sealed.Mode(d.Mode), Argv: d.Process, Upstream: d.Upstream,
			ReadMS: millis(d.Read), WriteMS: millis(d.Write), ExecMS: millis(d.Exec), StartMS: millis(d.Start), IdleMS: millis(d.Idle),
			MaxInFlight: uint64(d.MaxInFlight), Labels: d.Constraints,
			Resources: sealed.Resources{CPUMillis: uint64(d.Resources.CPU), MemoryBytes: uint64(d.Resources.Memory), PIDs: uint64(d.Resources.PIDs),
				TmpBytes: uint64(d.Resources.Tmp), IOReadBPS: uint64(d.Resources.ReadBps), IOWriteBPS: uint64(d.Resources.WriteBps)},
			Policy: sealed.Policy{AnyCaller: d.AnyCaller, Attestation: slices.Sorted(slices.Values(d.Attestation)), Broker: broker.Signing}},
		SigningKey: keys.signing.PublicKey(), Decryption: keys.public(), Suites: []uint16{sealed.SuiteSM},
		LogRecipient: c.cfg.Identity.DecryptionKey(), MaxQueuedMS: millis(d.MaxQueued), ImageRef: d.ImageRef}
	callers := slices.Clone(d.Callers)
	slices.SortFunc(callers, func(a, b sealed.Fingerprint) int { return slices.Compare(a[:], b[:]) })
	desc.Config.Policy.Callers = slices.Compact(callers)
	var m *measured
	if !d.Bundle.empty() {
		var err error
		if m, err = d.Bundle.measure(keys.signing); err != nil {
			return nil, nil, err
		}
		desc.Config.Bundle = m.digest
		if d.Bundle.Dir != "" {
			desc.Config.BundleMount = d.BundlePath
		}
	}
	if err := desc.Validate(); err != nil {
		return nil, nil, descriptorError(err)
	}
	return desc, m, nil
}

func millis(d time.Duration) uint64 { return uint64(max(d, 0) / time.Millisecond) }

func descriptorError(err error) error {
	return &api.Error{Code: api.CodeInvalid, Field: "function", Err: err, Message: "the function cannot be described",
		Remedy: "correct the field that the reason names"}
}

// pushBundle seals the bundle into a temporary file, which holds ciphertext
// alone, and pushes that.
func (c *Client) pushBundle(ctx context.Context, d Deployment, m *measured, desc *sealed.Descriptor, rev sealed.Digest, repo string) (_ string, retErr error) {
	if d.PushBundle == nil {
		return "", errors.New("client: Deployment.PushBundle is required for a bundle")
	}
	f, err := os.CreateTemp("", "faasd-sec-bundle-*")
	if err != nil {
		return "", fmt.Errorf("client: seal the bundle: %w", err)
	}
	defer func() { retErr = errors.Join(retErr, f.Close(), os.Remove(f.Name())) }()
	now, key := c.cfg.Now(), desc.Decryption[0]
	g, err := sealed.NewGrant(sealed.GrantParams{Role: sealed.RoleBundle, Recipient: key.Key, Sender: c.cfg.Identity.Signer(),
		Context: rev, Name: string(d.Name), NotBefore: now.Add(-clockSlack), NotAfter: now.Add(keyLife), Random: c.cfg.Random})
	if err != nil {
		return "", fmt.Errorf("client: seal the bundle: %w", err)
	}
	defer g.Release()
	if err := m.seal(f, g, sealed.MessageParams{Issued: now}); err != nil {
		return "", err
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return "", fmt.Errorf("client: seal the bundle: %w", err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", fmt.Errorf("client: seal the bundle: %w", err)
	}
	digest, err := d.PushBundle(ctx, repo, f, size)
	if err != nil {
		return "", fmt.Errorf("client: push the sealed bundle: %w", err)
	}
	return digest, nil
}

// deposit gives keys to the broker, under a grant of its own, and wipes them.
func (c *Client) deposit(ctx context.Context, name api.FunctionName, dep *unseal.Deposit, broker BrokerPin, now time.Time) error {
	defer dep.Wipe()
	body, err := unseal.EncodeDeposit(dep)
	if err != nil {
		return fmt.Errorf("client: deposit the keys: %w", err)
	}
	defer clear(body)
	g, err := sealed.NewGrant(sealed.GrantParams{Role: sealed.RoleDeposit, Recipient: broker.Decryption, Sender: c.cfg.Identity.Signer(),
		Name: string(name), NotBefore: now.Add(-clockSlack), NotAfter: now.Add(10 * time.Minute), Random: c.cfg.Random})
	if err != nil {
		return fmt.Errorf("client: deposit the keys: %w", err)
	}
	defer g.Release()
	msg, err := g.Append(nil, sealed.MessageParams{Issued: now}, body)
	if err != nil {
		return fmt.Errorf("client: deposit the keys: %w", err)
	}
	return c.do(ctx, call{method: http.MethodPost, path: api.GatewayPathDeposits, typ: api.ContentTypeSealed, body: msg}, nil)
}
