package opener

import (
	"cmp"
	"crypto"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/faasd-sec/faasd-sec/manifest/ask"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

const (
	keySuffix = ".key"
	recordLen = scalarSize + 8 + 8 // scalar || u64 not_before || u64 not_after
)

// ring is the manifest keys, in files DIR/KEYID.key and in the page. It is not
// safe for concurrent use.
type ring struct {
	dir    string
	page   *page
	life   time.Duration
	random io.Reader
	keys   []*pageKey // the one that lives longest first
}

// pageKey is a decryption key whose scalar lies in a page and nowhere else.
type pageKey struct {
	page *page
	slot int
	ask.Key
}

var _ crypto.Decrypter = (*pageKey)(nil)

// Public implements crypto.Decrypter.
func (k *pageKey) Public() crypto.PublicKey { return k.Key.Public }

// Decrypt implements crypto.Decrypter: the library's form of the key is made for
// one decryption, and wiped. Call it inside erasing.
func (k *pageKey) Decrypt(random io.Reader, ct []byte, opts crypto.DecrypterOpts) ([]byte, error) {
	key, err := unseal.KeyFromScalar(k.page.scalar(k.slot))
	if err != nil {
		return nil, err
	}
	defer key.Wipe()
	return key.Decrypt(random, ct, opts)
}

func (r *ring) path(pub sealed.PublicKey) string {
	return filepath.Join(r.dir, pub.KeyID().String()+keySuffix)
}

// load reads the files. One that does not open is an error: a passphrase or a
// root key that is not theirs must not look like an empty ring.
func (r *ring) load() error {
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return fmt.Errorf("manifest opener: keys: %w", err)
	}
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return fmt.Errorf("manifest opener: keys: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(r.dir, e.Name())
		id, ok := strings.CutSuffix(e.Name(), keySuffix)
		if !ok { // what an interrupted write left behind
			if err := os.Remove(path); err != nil {
				return fmt.Errorf("manifest opener: keys: %w", err)
			}
			continue
		}
		if err := r.read(path, id); err != nil {
			return fmt.Errorf("manifest opener: key in %s: %w", path, err)
		}
	}
	return nil
}

func (r *ring) read(path, id string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	plain, err := open(r.page.keyFiles(), fileMagic, []byte(id), b)
	if err != nil {
		return err
	}
	defer clear(plain)
	if len(plain) != recordLen {
		return errors.New("not a key of this version")
	}
	key, err := unseal.KeyFromScalar(plain[:scalarSize])
	if err != nil {
		return err
	}
	defer key.Wipe()
	if key.PublicKey().KeyID().String() != id {
		return errors.New("the file bears another key's name")
	}
	k, err := r.place(plain[:scalarSize], ask.Key{Public: key.PublicKey(),
		NotBefore: binary.BigEndian.Uint64(plain[scalarSize:]), NotAfter: binary.BigEndian.Uint64(plain[scalarSize+8:])})
	if err != nil {
		return err
	}
	r.add(k)
	return nil
}

// place signs a key and puts its scalar into a free slot.
func (r *ring) place(scalar []byte, k ask.Key) (*pageKey, error) {
	identity, err := unseal.KeyFromScalar(r.page.identity())
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	defer identity.Wipe()
	if err := k.Sign(r.random, identity); err != nil {
		return nil, err
	}
	for slot := range slots {
		if !slices.ContainsFunc(r.keys, func(k *pageKey) bool { return k.slot == slot }) {
			copy(r.page.scalar(slot), scalar)
			return &pageKey{r.page, slot, k}, nil
		}
	}
	return nil, errors.New("no room for another key")
}

func (r *ring) add(k *pageKey) {
	r.keys = append(r.keys, k)
	slices.SortFunc(r.keys, func(a, b *pageKey) int { return cmp.Compare(b.NotAfter, a.NotAfter) })
}

// rotate destroys the keys whose time is over, and draws one when the newest live
// one has lived half of its. So two are live at any time, but for the first half life.
// It reports whether the ring changed.
func (r *ring) rotate(now time.Time) (changed bool, err error) {
	at := uint64(max(0, now.Unix()))
	for i := len(r.keys) - 1; i >= 0; i-- {
		k := r.keys[i]
		if k.NotAfter >= at {
			continue
		}
		clear(r.page.scalar(k.slot))
		r.keys, changed = slices.Delete(r.keys, i, i+1), true
		if err := errors.Join(os.Remove(r.path(k.Key.Public)), syncDir(r.dir)); err != nil {
			return changed, fmt.Errorf("manifest opener: destroy a key: %w", err)
		}
	}
	// A key whose time is yet to come, drawn by a clock that was ahead, serves nobody.
	half := at + uint64(r.life/time.Second)/2
	if slices.ContainsFunc(r.keys, func(k *pageKey) bool { return k.NotBefore <= at && k.NotAfter > half }) {
		return changed, nil
	}
	if err := r.draw(at); err != nil {
		return changed, fmt.Errorf("manifest opener: draw a key: %w", err)
	}
	return true, nil
}

// draw makes a key. It is on disk before anybody is told of it.
func (r *ring) draw(now uint64) error {
	key, err := unseal.NewKey(r.random)
	if err != nil {
		return err
	}
	defer key.Wipe()
	scalar := key.Scalar()
	defer clear(scalar)
	k := ask.Key{Public: key.PublicKey(), NotBefore: now, NotAfter: now + uint64(r.life/time.Second)}
	plain := append(make([]byte, 0, recordLen), scalar...)
	defer clear(plain[:recordLen])
	plain = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(plain, k.NotBefore), k.NotAfter)
	b, err := seal(r.random, r.page.keyFiles(), fileMagic, []byte(k.Public.KeyID().String()), plain)
	if err != nil {
		return err
	}
	placed, err := r.place(scalar, k)
	if err != nil {
		return err
	}
	if err := writeFile(r.path(k.Public), b); err != nil {
		clear(r.page.scalar(placed.slot))
		return err
	}
	r.add(placed)
	return nil
}

// set is the ring as an opener takes it.
func (r *ring) set() (*unseal.KeySet, error) {
	keys := make([]unseal.Key, len(r.keys))
	for i, k := range r.keys {
		keys[i] = unseal.Key{Decrypter: k, NotBefore: time.Unix(int64(k.NotBefore), 0), NotAfter: time.Unix(int64(k.NotAfter), 0)}
	}
	return unseal.NewKeySet(keys...)
}
