package agent

import (
	"bytes"
	"crypto"
	"fmt"
	"io"
	"net"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// upstreamUnix is the upstream of a function that serves on a handed socket.
const upstreamUnix = "unix"

// defaultUpstream is where an http function serves that says nothing: where
// images made for OpenFaaS's watchdogs listen.
const defaultUpstream = "http://127.0.0.1:8080"

// farOff is a second that no clock will show, and every later one: a descriptor may
// say more than a time holds.
const farOff = 1 << 62

// maxRelease bounds an opened key release, in bytes.
const maxRelease = 64 << 10

// binding is a verified descriptor and what follows from it. It does not change.
type binding struct {
	desc     *sealed.Descriptor // nil for a plain function
	plain    *api.PlainRevision // nil for a sealed function
	id       string             // of the revision, hex
	cpu      uint64             // millicores
	owner    sealed.PublicKey
	revision sealed.Digest
	name     string
	image    api.ImageConfig

	argv     []string
	dir      string
	network  string // "unix" or "tcp"
	addr     string // host:port for tcp
	read     time.Duration
	write    time.Duration
	exec     time.Duration
	start    time.Duration
	inFlight int64
	queued   time.Duration

	signer crypto.Signer
	keys   *unseal.KeySet
}

// newBinding verifies what the node wants this sandbox to be. The owner it
// finds is only the one that the descriptor claims: whether it is the
// function's is the key broker's to say, see takeKeys.
func newBinding(b *api.Bind) (*binding, error) {
	if b.Plain != nil {
		return newPlainBinding(b)
	}
	signed, err := sealed.ParseDescriptor(b.Descriptor)
	if err != nil {
		return nil, api.Wrap(api.CodeStartFailed, err, "the descriptor does not parse: "+err.Error())
	}
	owner := signed.ClaimedOwner()
	desc, err := signed.Verify(owner.Fingerprint())
	if err != nil {
		return nil, api.Wrap(api.CodeStartFailed, err, "the descriptor's signature does not verify")
	}
	rev, err := desc.Revision()
	if err != nil {
		return nil, api.Wrap(api.CodeStartFailed, err, "the descriptor is not valid: "+err.Error())
	}
	if err := desc.CheckSuites(); err != nil {
		return nil, api.Wrap(api.CodeStartFailed, err, err.Error())
	}
	c := &desc.Config
	if c.Policy.Broker == (sealed.PublicKey{}) {
		return nil, api.Errorf(api.CodeStartFailed, "the descriptor names no key broker, so no keys can be asked for")
	}
	n := &binding{desc: desc, owner: owner, revision: rev, id: rev.String(), cpu: c.Resources.CPUMillis, name: desc.FullName(), image: b.Image,
		read: api.Milliseconds(c.ReadMS, api.DefaultReadTimeout), write: api.Milliseconds(c.WriteMS, api.DefaultWriteTimeout),
		exec: api.Milliseconds(c.ExecMS, api.DefaultExecTimeout), start: api.Milliseconds(c.StartMS, api.DefaultStartTimeout),
		queued: api.Milliseconds(desc.MaxQueuedMS, 0), inFlight: api.DefaultMaxInFlight,
	}
	if c.MaxInFlight > 0 {
		n.inFlight = int64(min(c.MaxInFlight, 1<<20))
	}
	n.argv, n.dir = c.Argv, "/"
	if c.BundleMount != "" && !c.Bundle.IsZero() {
		n.dir = c.BundleMount
	}
	if err := n.fromImage("fprocess", "set `fprocess` in function.yml, or ENTRYPOINT in the image"); err != nil {
		return nil, err
	}
	return n, n.setUpstream(c.Upstream)
}

// fromImage takes what is not said otherwise from the image. field and remedy are
// for who says it nowhere.
func (n *binding) fromImage(field, remedy string) error {
	if len(n.argv) == 0 {
		n.argv = append(append([]string{}, n.image.Entrypoint...), n.image.Cmd...)
	}
	if len(n.argv) == 0 || n.argv[0] == "" {
		e := api.Errorf(api.CodeStartFailed, "neither the function nor its image says what to execute")
		e.Field, e.Remedy = field, remedy
		return e
	}
	if path.IsAbs(n.image.WorkingDir) {
		n.dir = path.Clean(n.image.WorkingDir)
	}
	return nil
}

// setUpstream reads where an http function serves. Only its own loopback: the
// sandbox has no other network, and a function must not choose one for us.
func (n *binding) setUpstream(s string) error {
	if s == upstreamUnix {
		n.network = "unix"
		return nil
	}
	if s == "" {
		s = defaultUpstream
	}
	const remedy = `write "unix" or an address like "http://127.0.0.1:8080"`
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" || u.Port() == "" || (u.Path != "" && u.Path != "/") || u.User != nil || u.RawQuery != "" {
		return api.Invalid("upstream", remedy, fmt.Sprintf("%q is not an upstream", s))
	}
	ip := net.ParseIP(u.Hostname())
	if u.Hostname() == "localhost" {
		ip = net.IPv4(127, 0, 0, 1)
	}
	if ip == nil || !ip.IsLoopback() {
		return api.Invalid("upstream", remedy, fmt.Sprintf("%q is not on the loopback", s))
	}
	n.network, n.addr = "tcp", net.JoinHostPort(ip.String(), u.Port())
	return nil
}

// hosts reports whether the function serves HTTP itself.
func (n *binding) hosts() bool { return n.plain != nil || n.desc.Config.Mode == sealed.ModeHTTP }

// statement is what the sandbox is given keys for.
func statement(ephemeral sealed.PublicKey, random io.Reader, now time.Time) ([]byte, error) {
	var nonce [16]byte
	if _, err := io.ReadFull(random, nonce[:]); err != nil {
		return nil, fmt.Errorf("statement: nonce: %w", err)
	}
	mode, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		return nil, fmt.Errorf("statement: %w", err)
	}
	b, err := mode.Marshal(api.Statement{Ephemeral: ephemeral[:], Nonce: nonce[:], IssuedAtMs: now.UnixMilli()})
	if err != nil {
		return nil, fmt.Errorf("statement: %w", err)
	}
	return b, nil
}

// takeKeys opens the broker's release with the sandbox's ephemeral key and
// checks that what it brings are the keys of the descriptor.
func (n *binding) takeKeys(cfg *Config, ephemeral *unseal.PrivateKey, release []byte) error {
	keys, err := unseal.NewKeySet(unseal.Key{Decrypter: ephemeral})
	if err != nil {
		return fmt.Errorf("key release: %w", err)
	}
	replay, err := sealed.NewReplaySet(sealed.ReplayConfig{Size: 16, Clock: cfg.Now})
	if err != nil {
		return fmt.Errorf("key release: %w", err)
	}
	opener, err := unseal.NewOpener(unseal.Config{Keys: keys, Replay: replay, Clock: cfg.Now})
	if err != nil {
		return fmt.Errorf("key release: %w", err)
	}
	msg, err := opener.Open(bytes.NewReader(release), unseal.Expect{Role: sealed.RoleRelease, Name: n.name,
		Context: n.revision, Senders: unseal.Only(n.desc.Config.Policy.Broker)})
	if err != nil {
		return refusedKeys(err)
	}
	defer msg.Close()
	body, err := msg.ReadAll(maxRelease)
	if err != nil {
		return refusedKeys(err)
	}
	defer clear(body)
	rel, err := unseal.DecodeRelease(body)
	if err != nil {
		return refusedKeys(err)
	}
	defer rel.Wipe()
	return n.adopt(rel)
}

func refusedKeys(err error) error {
	return api.Wrap(api.CodeKeyRefused, err, "the key release does not open: "+err.Error())
}

// adopt checks the released scalars against the descriptor's public keys. Keys
// of another function, swapped in by whoever relays, must not come into use.
func (n *binding) adopt(rel *unseal.Release) error {
	// Owner, keys and log recipient are outside the revision: without this, a
	// node could wrap the same configuration in a descriptor of its own and have
	// the logs sealed to itself.
	if rel.Owner != n.owner {
		return api.Errorf(api.CodeKeyRefused, "the descriptor is signed by another owner than the key broker knows")
	}
	signing, err := unseal.KeyFromScalar(rel.Signing)
	if err != nil {
		return refusedKeys(err)
	}
	if signing.PublicKey() != n.desc.SigningKey {
		return api.Errorf(api.CodeKeyRefused, "the released signing key is not the one in the descriptor")
	}
	if len(rel.Decryption) != len(n.desc.Decryption) {
		return api.Errorf(api.CodeKeyRefused, "%d decryption keys were released, the descriptor has %d",
			len(rel.Decryption), len(n.desc.Decryption))
	}
	keys := make([]unseal.Key, len(rel.Decryption))
	for i, s := range rel.Decryption {
		k, err := unseal.KeyFromScalar(s)
		if err != nil {
			return refusedKeys(err)
		}
		d := n.desc.Decryption[i]
		if k.PublicKey() != d.Key {
			return api.Errorf(api.CodeKeyRefused, "released decryption key %d is not the one in the descriptor", i+1)
		}
		keys[i] = unseal.Key{Decrypter: k, NotBefore: time.Unix(int64(min(d.NotBefore, farOff)), 0), NotAfter: time.Unix(int64(min(d.NotAfter, farOff)), 0)}
	}
	set, err := unseal.NewKeySet(keys...)
	if err != nil {
		return refusedKeys(err)
	}
	n.signer, n.keys = signing, set
	return nil
}

// environ merges the image's environment with the bundle's, which wins.
func environ(image []string, bundle map[string]string) []string {
	out := make([]string, 0, len(image)+len(bundle)+2)
	has := make(map[string]bool, len(image))
	for _, kv := range image {
		k, _, _ := strings.Cut(kv, "=")
		if _, over := bundle[k]; over || k == "" || has[k] {
			continue
		}
		has[k] = true
		out = append(out, kv)
	}
	for k, v := range bundle {
		has[k] = true
		out = append(out, k+"="+v)
	}
	for _, d := range [][2]string{{"PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, {"HOME", "/tmp"}} {
		if !has[d[0]] {
			out = append(out, d[0]+"="+d[1])
		}
	}
	return out
}
