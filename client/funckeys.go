package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

const (
	// keyLife is how long callers may seal to a decryption key after a
	// deployment; every deployment renews it.
	keyLife = 90 * 24 * time.Hour
	// overlap is how long the former key is listed after a rotation, for callers
	// that hold yesterday's descriptor.
	overlap = 24 * time.Hour
	// clockSlack lets callers with a clock behind ours seal at once, and go by what
	// was just said.
	clockSlack = 5 * time.Minute
)

const (
	stateFile    = "state.json"
	stateVersion = 1
)

// Keyring keeps the private keys of the functions that a user deploys:
//
//	DIR/NAMESPACE/FUNCTION/GENERATION.{sign,decrypt}.pem, and state.json
//
// Every generation has the same signing key and a decryption key of its own. The
// files are encrypted under the user's passphrase.
type Keyring struct {
	dir        string
	passphrase []byte
	random     io.Reader
}

// NewKeyring keeps keys below dir. It keeps passphrase until the process ends.
func NewKeyring(dir string, passphrase []byte, random io.Reader) *Keyring {
	return &Keyring{dir: dir, passphrase: passphrase, random: random}
}

// functionState is what is remembered of a function besides its keys.
type functionState struct {
	Version     int          `json:"version"`
	Sequence    uint64       `json:"sequence"` // of the last descriptor that was signed
	Generations []generation `json:"generations"`
}

// generation is a decryption key, the newest one last.
type generation struct {
	N         int    `json:"n"`
	NotBefore uint64 `json:"not_before"` // unix seconds
	NotAfter  uint64 `json:"not_after"`  // unix seconds
}

// functionKeys are a function's keys, opened.
type functionKeys struct {
	state      functionState
	signing    *unseal.PrivateKey
	decryption []*unseal.PrivateKey // as state.Generations
}

func (k *functionKeys) wipe() {
	k.signing.Wipe()
	for _, d := range k.decryption {
		d.Wipe()
	}
}

// public lists the decryption keys for a descriptor, the newest one first.
func (k *functionKeys) public() []sealed.DecryptionKey {
	out := make([]sealed.DecryptionKey, 0, len(k.decryption))
	for i := len(k.decryption) - 1; i >= 0; i-- {
		g := k.state.Generations[i]
		out = append(out, sealed.DecryptionKey{Key: k.decryption[i].PublicKey(), NotBefore: g.NotBefore, NotAfter: g.NotAfter})
	}
	return out
}

func (r *Keyring) path(name api.FunctionName) string {
	return filepath.Join(r.dir, name.Namespace(), name.Function())
}

// open returns the keys to deploy name with: those kept, or new ones. With rotate
// a new decryption key comes before the former. state.json is not written yet.
func (r *Keyring) open(name api.FunctionName, rotate bool, now time.Time) (*functionKeys, error) {
	store, err := unseal.OpenKeystore(r.path(name))
	if err != nil {
		return nil, fmt.Errorf("client: keys of %s: %w", name, err)
	}
	state, err := r.readState(name)
	if err != nil {
		return nil, err
	}
	k := &functionKeys{state: state}
	if err := k.load(store, r.passphrase, now); err != nil {
		return nil, fmt.Errorf("client: keys of %s: %w", name, err)
	}
	if len(k.decryption) == 0 || rotate {
		if err := k.add(store, r, now); err != nil {
			return nil, fmt.Errorf("client: keys of %s: %w", name, err)
		}
	}
	k.state.Generations[len(k.state.Generations)-1].NotAfter = uint64(now.Add(keyLife).Unix())
	return k, nil
}

// load opens the generations that still count: the newest, and the one before it
// while it overlaps.
func (k *functionKeys) load(store *unseal.Keystore, passphrase []byte, now time.Time) error {
	all := k.state.Generations
	k.state.Generations = nil
	for i, g := range all {
		if newest := i == len(all)-1; !newest && (g.NotAfter <= uint64(now.Unix()) || i < len(all)-2) {
			continue
		}
		id, err := store.Load(generationName(g.N), passphrase)
		if err != nil {
			return err
		}
		k.signing = id.Signer()
		k.decryption = append(k.decryption, id.Decrypter())
		k.state.Generations = append(k.state.Generations, g)
	}
	return nil
}

// number draws the next numbers of name: one to sign now, and the one after it for
// a traffic statement.
func (r *Keyring) number(name api.FunctionName, k *functionKeys, before *function, now time.Time) (uint64, error) {
	n := max(k.state.Sequence+1, before.sequence()+1, uint64(max(now.UnixMilli(), 1)))
	k.state.Sequence = n + 1
	// Written first: a number that was signed once is never signed again.
	return n, r.writeState(name, k.state)
}

// errKeysGone says that not all private keys of a descriptor are kept here.
var errKeysGone = errors.New("client: a private key of the descriptor is not in the keyring")

// held are the keys of a descriptor, which can be an older one, to be deposited:
// the caller wipes them.
func (r *Keyring) held(k *functionKeys, f *function) (unseal.Deposit, error) {
	d := unseal.Deposit{Descriptor: f.signed}
	if k.signing.PublicKey() != f.desc.SigningKey {
		return d, errKeysGone
	}
	d.Signing = k.signing.Scalar()
	for i := range f.desc.Decryption {
		s, err := r.scalar(f.name, k, f.desc.Decryption[i].Key)
		if err != nil {
			d.Wipe()
			return unseal.Deposit{}, err
		}
		d.Decryption = append(d.Decryption, s)
	}
	return d, nil
}

// scalar finds a decryption key: among those that are open, or in the files of
// generations that do not count any more.
func (r *Keyring) scalar(name api.FunctionName, k *functionKeys, pub sealed.PublicKey) ([]byte, error) {
	for _, d := range k.decryption {
		if d.PublicKey() == pub {
			return d.Scalar(), nil
		}
	}
	store, err := unseal.OpenKeystore(r.path(name))
	if err != nil {
		return nil, fmt.Errorf("client: keys of %s: %w", name, err)
	}
	names, err := store.List()
	if err != nil {
		return nil, fmt.Errorf("client: keys of %s: %w", name, err)
	}
	for _, n := range names {
		if _, dec, err := store.Public(n); err != nil || dec != pub {
			continue
		}
		id, err := store.Load(n, r.passphrase)
		if err != nil {
			return nil, fmt.Errorf("client: keys of %s: %w", name, err)
		}
		defer id.Decrypter().Wipe()
		defer id.Signer().Wipe()
		return id.Decrypter().Scalar(), nil
	}
	return nil, errKeysGone
}

// add makes a generation; the one before it ends after the overlap.
func (k *functionKeys) add(store *unseal.Keystore, r *Keyring, now time.Time) (err error) {
	if k.signing == nil {
		if k.signing, err = unseal.NewKey(r.random); err != nil {
			return err
		}
	}
	dec, err := unseal.NewKey(r.random)
	if err != nil {
		return err
	}
	id, err := unseal.IdentityOf(k.signing, dec)
	if err != nil {
		return err
	}
	n := 1
	if last := len(k.state.Generations) - 1; last >= 0 {
		n = k.state.Generations[last].N + 1
		end := uint64(now.Add(overlap).Unix())
		k.state.Generations[last].NotAfter = min(k.state.Generations[last].NotAfter, end)
		// At most two are listed.
		k.state.Generations, k.decryption = k.state.Generations[last:], k.decryption[last:]
	}
	// A run that was interrupted before it wrote state.json left files of this
	// number, whose keys were deposited nowhere.
	for {
		err = store.Save(generationName(n), id, r.passphrase, unseal.KeyFileOptions{})
		if !errors.Is(err, fs.ErrExist) {
			break
		}
		n++
	}
	if err != nil {
		return err
	}
	k.decryption = append(k.decryption, dec)
	k.state.Generations = append(k.state.Generations, generation{N: n, NotBefore: uint64(now.Add(-clockSlack).Unix())})
	return nil
}

func generationName(n int) string { return "g" + strconv.Itoa(n) }

func (r *Keyring) readState(name api.FunctionName) (functionState, error) {
	path := filepath.Join(r.path(name), stateFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return functionState{Version: stateVersion}, nil
	} else if err != nil {
		return functionState{}, fmt.Errorf("client: keys of %s: %w", name, err)
	}
	var s functionState
	if err := json.Unmarshal(b, &s); err != nil || s.Version != stateVersion {
		return s, api.Invalid(path, "restore it, or move the directory away to deploy with new keys", "it is not a state file of this release")
	}
	return s, nil
}

func (r *Keyring) writeState(name api.FunctionName, s functionState) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("client: keys of %s: %w", name, err)
	}
	return writeFile(filepath.Join(r.path(name), stateFile), append(b, '\n'), 0o600)
}

// Forget deletes the keys of a removed function.
func (r *Keyring) Forget(name api.FunctionName) error {
	if err := os.RemoveAll(r.path(name)); err != nil {
		return fmt.Errorf("client: keys of %s: %w", name, err)
	}
	return nil
}
