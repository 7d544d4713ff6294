package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// recheck is how long a handshake trusts what was last seen of the file.
const recheck = time.Second

// Identity is a process's own key and certificate, with the authority that it
// trusts. One made by LoadIdentity follows its file: a handshake after the
// file was replaced uses the new certificate, without a restart. It is safe
// for use by several goroutines.
type Identity struct {
	path string // "" for one that lives in memory
	log  *slog.Logger
	now  func() time.Time

	cur atomic.Pointer[credential]

	mu      sync.Mutex // guards what follows
	checked time.Time
	seen    os.FileInfo // of the file that was taken over last
	failed  bool        // the file changed since, and cannot be used
	told    os.FileInfo // of the one that was said of; nil where there was none
}

// credential is one consistent set of key, certificate and authority.
type credential struct {
	tls  tls.Certificate // chain: the leaf, then the authority
	key  *ecdsa.PrivateKey
	leaf *x509.Certificate
	ca   *x509.Certificate
	peer Peer
}

// NewIdentity makes an identity that lives in memory alone.
func NewIdentity(keyPEM, certPEM, caPEM []byte) (*Identity, error) {
	return newIdentity(keyPEM, certPEM, caPEM, time.Now)
}

func newIdentity(keyPEM, certPEM, caPEM []byte, now func() time.Time) (*Identity, error) {
	c, err := newCredential(keyPEM, certPEM, caPEM, now())
	if err != nil {
		return nil, err
	}
	i := &Identity{log: slog.New(slog.DiscardHandler), now: now}
	i.cur.Store(c)
	return i, nil
}

// SaveIdentity writes key, certificate and authority as one file of mode 0600,
// replaced atomically, so that no reader ever meets a key and a certificate
// that do not belong together. They are checked first.
func SaveIdentity(path string, keyPEM, certPEM, caPEM []byte) error {
	return saveIdentity(path, keyPEM, certPEM, caPEM, time.Now())
}

func saveIdentity(path string, keyPEM, certPEM, caPEM []byte, now time.Time) error {
	if _, err := newCredential(keyPEM, certPEM, caPEM, now); err != nil {
		return err
	}
	return writeFile(path, bytes.Join([][]byte{keyPEM, certPEM, caPEM}, nil), 0o600)
}

// LoadIdentity reads a file of SaveIdentity. A missing one gives CodeNotFound,
// an expired one CodeUnauthorized. Failures to follow the file later are told
// to log, while the last good certificate stays in use.
func LoadIdentity(path string, log *slog.Logger) (*Identity, error) {
	return loadIdentity(path, log, time.Now)
}

func loadIdentity(path string, log *slog.Logger, now func() time.Time) (*Identity, error) {
	i := &Identity{path: path, log: log, now: now}
	seen, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &api.Error{Code: api.CodeNotFound, Message: "no certificate at " + path, Err: err,
			Remedy: "join the cluster with a token, or have one issued"}
	} else if err != nil {
		return nil, fmt.Errorf("load identity: %w", err)
	}
	c, err := readCredential(path, now())
	if err != nil {
		return nil, err
	}
	i.seen, i.checked = seen, now()
	i.cur.Store(c)
	return i, nil
}

// Peer is who this process is.
func (i *Identity) Peer() Peer { return i.current().peer }

// NotAfter is when the certificate ends.
func (i *Identity) NotAfter() time.Time { return i.current().leaf.NotAfter }

// CA is the authority that this process trusts.
func (i *Identity) CA() *x509.Certificate { return i.current().ca }

// Signer is the key, with the certificates (DER, the leaf first, the authority
// last) that vouch for it. They belong together also while a renewal runs.
func (i *Identity) Signer() (crypto.Signer, [][]byte) {
	c := i.current()
	return c.key, c.tls.Certificate
}

// current is the credential to use now, after a look at the file where the
// last look is older than recheck.
func (i *Identity) current() *credential {
	c := i.cur.Load()
	if i.path == "" || !i.mu.TryLock() { // another goroutine is looking
		return c
	}
	defer i.mu.Unlock()
	if now := i.now(); now.Sub(i.checked) < recheck && !now.Before(i.checked) {
		return c
	}
	switch seen, err := i.reload(); {
	case err == nil:
		i.failed = false
	case !i.failed || !same(seen, i.told): // told once per change, not once per second
		i.failed, i.told = true, seen
		i.log.Warn("certificate file changed and cannot be used; the former certificate stays", "path", i.path, "error", err)
	}
	return i.cur.Load()
}

// reload takes the file over where it changed. What cannot be used is looked at
// again the next time: it may become valid later, or have been impossible to read
// just now. The caller holds i.mu.
func (i *Identity) reload() (seen os.FileInfo, err error) {
	now := i.now()
	i.checked = now
	if seen, err = os.Stat(i.path); err != nil {
		return nil, fmt.Errorf("look at the certificate file: %w", err)
	}
	if same(seen, i.seen) {
		return seen, nil
	}
	c, err := readCredential(i.path, now)
	if err != nil {
		return seen, err
	}
	if was := i.cur.Load().peer; c.peer != was {
		return seen, fmt.Errorf("it is for %s, this process is %s: restart to change who it is", c.peer, was)
	}
	i.seen = seen
	i.cur.Store(c)
	i.log.Info("certificate renewed", "peer", c.peer.String(), "not_after", c.leaf.NotAfter)
	return seen, nil
}

// same reports whether a file is as it was.
func same(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == b
	}
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}

func newCredential(keyPEM, certPEM, caPEM []byte, now time.Time) (*credential, error) {
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, err
	}
	leaf, err := parseCert(certPEM)
	if err != nil {
		return nil, err
	}
	ca, err := parseCert(caPEM)
	if err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		return nil, errors.New("the private key is not the certificate's")
	}
	peer, err := VerifyChain(leaf, ca, now)
	if err != nil {
		return nil, err
	}
	return &credential{
		tls: tls.Certificate{
			// The authority goes along, for a joining machine that knows only its hash.
			Certificate: [][]byte{leaf.Raw, ca.Raw}, PrivateKey: key, Leaf: leaf,
		},
		key: key, leaf: leaf, ca: ca, peer: peer,
	}, nil
}

// readCredential reads a file of SaveIdentity: key, leaf, authority.
func readCredential(path string, now time.Time) (*credential, error) {
	b, err := readPrivate(path)
	if err != nil {
		return nil, err
	}
	parts, err := splitPEM(b, pemKey, pemCert, pemCert)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	c, err := newCredential(parts[0], parts[1], parts[2], now)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}
