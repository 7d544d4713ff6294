package opener

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/manifest"
	"github.com/faasd-sec/faasd-sec/manifest/ask"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// Lives of a manifest key.
const (
	DefaultKeyLife = 48 * time.Hour
	minKeyLife     = 2 * sealed.MaxLife
	maxKeyLife     = 365 * 24 * time.Hour
)

// Config makes an Opener.
type Config struct {
	StateDir   string           // root key and manifest keys; mode 0700
	Passphrase []byte           // encrypts the root key; the caller wipes it after New
	KeyLife    time.Duration    // of a manifest key; a new one is drawn after half of it
	Random     io.Reader        // crypto/rand.Reader
	Clock      func() time.Time // time.Now
	Log        *slog.Logger
}

// Opener opens manifests. It is safe for concurrent use.
type Opener struct {
	cfg   Config
	lock  *os.File // of the state directory, for as long as this process lives
	page  *page
	erase *eraser
	mark  atomic.Int64 // the highest time the clock showed, unix milliseconds

	mu     sync.RWMutex // held for writing while keys change
	ring   *ring
	unseal *unseal.Opener
}

// New loads the keys in cfg.StateDir, or makes them. One process at a time has a
// state directory.
func New(cfg Config) (_ *Opener, retErr error) {
	if cfg.Random == nil || cfg.Clock == nil || cfg.Log == nil {
		return nil, errors.New("manifest opener: random source, clock and log are required")
	}
	if cfg.KeyLife < minKeyLife || cfg.KeyLife > maxKeyLife {
		return nil, api.Invalid("key life", fmt.Sprintf("choose %s to %s", minKeyLife, maxKeyLife), cfg.KeyLife.String()+" is out of range")
	}
	// A broken library must not be found out by its first ciphertext.
	if err := unseal.SelfTest(); err != nil {
		return nil, err
	}
	lock, err := lockDir(cfg.StateDir)
	if err != nil {
		return nil, err
	}
	o := &Opener{cfg: cfg, lock: lock, erase: newEraser()}
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, o.Close())
		}
	}()
	if o.page, err = newPage(); err != nil {
		return nil, err
	}
	o.ring = &ring{dir: filepath.Join(cfg.StateDir, "keys"), page: o.page, life: cfg.KeyLife, random: cfg.Random}
	erasing(func() {
		if err = loadRoot(cfg.StateDir, cfg.Passphrase, cfg.Random, o.page); err == nil {
			err = o.ring.load()
		}
	})
	if err != nil {
		return nil, err
	}
	if err := o.rotate(); err != nil {
		return nil, err
	}
	return o, nil
}

// lockDir makes dir ours alone.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("manifest opener: state: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("manifest opener: state: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("manifest opener: state: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("manifest opener: another process uses %s: %w", dir, err), f.Close())
	}
	return f, nil
}

// Close wipes the keys in memory. No call may be under way.
func (o *Opener) Close() error {
	var err error
	if o.page != nil {
		err = o.page.close()
	}
	return errors.Join(err, o.lock.Close())
}

// SecretMemory says whether the keys lie where no other process reads them.
func (o *Opener) SecretMemory() bool { return o.page.secret }

// now never goes back: a clock set back opens nothing again, whatever keys came
// and went meanwhile.
func (o *Opener) now() time.Time {
	t := o.cfg.Clock().UnixMilli()
	for {
		old := o.mark.Load()
		if t <= old {
			return time.UnixMilli(old)
		}
		if o.mark.CompareAndSwap(old, t) {
			return time.UnixMilli(t)
		}
	}
}

// rotate retires and draws keys where it is time.
func (o *Opener) rotate() (err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var changed bool
	erasing(func() { changed, err = o.ring.rotate(o.now()) })
	o.erase.want()
	if !changed && o.unseal != nil {
		return err
	}
	set, serr := o.ring.set()
	if serr != nil {
		return errors.Join(err, serr)
	}
	// No cache: each grant serves one manifest, and what it held is wiped when the
	// message is closed.
	next, serr := unseal.NewOpener(unseal.Config{Keys: set, Clock: o.now})
	if serr != nil {
		return errors.Join(err, serr)
	}
	o.unseal = next
	o.cfg.Log.Info("manifest keys", "newest", o.ring.keys[0].Fingerprint().String(), "live", len(o.ring.keys))
	return err
}

// Run rotates keys and erases until ctx ends.
func (o *Opener) Run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { o.erase.run(ctx) })
	defer wg.Wait()
	t := time.NewTicker(min(time.Minute, o.cfg.KeyLife/8))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			if err := o.rotate(); err != nil {
				o.cfg.Log.Error("keys could not be rotated", "error", err)
			}
		}
	}
}

// handle answers one request with a frame in dst's memory, which was allocated
// outside of erasing: all else that it allocates is erased.
func (o *Opener) handle(request, dst []byte) (n int) {
	erasing(func() {
		reply, err := o.answer(request)
		if err != nil {
			if api.CodeOf(err) == api.CodeInternal {
				o.cfg.Log.Error("a call failed", "error", err)
			}
			reply = ask.Failure(err)
		}
		frame, err := ask.EncodeReply(reply)
		if err != nil { // a reply that does not fit
			if frame, err = ask.EncodeReply(ask.Failure(err)); err != nil {
				return
			}
		}
		n = copy(dst, frame)
		clear(frame)
		clear(reply.Body)
	})
	o.erase.want()
	return n
}

func (o *Opener) answer(request []byte) (*ask.Reply, error) {
	q, err := ask.DecodeRequest(request)
	if err != nil {
		return nil, api.Wrap(api.CodeInvalid, err, "the request does not decode")
	}
	o.mu.RLock()
	defer o.mu.RUnlock()
	r := &ask.Reply{Version: ask.Version}
	if q.Call == ask.CallInfo {
		at := uint64(max(0, o.now().Unix()))
		for _, k := range o.ring.keys {
			if k.NotBefore <= at && at <= k.NotAfter {
				r.Keys = append(r.Keys, k.Key)
			}
		}
		return r, nil
	}
	name, err := api.ParseFunctionName(q.Function)
	if err != nil {
		return nil, err
	}
	if string(name) != q.Function || q.Revision.IsZero() || q.Owner == (sealed.Fingerprint{}) {
		return nil, api.Invalid("function", `give "function.namespace", its revision and its owner`, "one is missing")
	}
	s := ask.Subject{Function: name, Revision: q.Revision, Owner: q.Owner}
	switch q.Call {
	case ask.CallDeposit:
		r.Body, err = o.deposit(s, q)
	case ask.CallOpen:
		r.Body, r.Sender, err = o.open(s, q)
	default:
		err = api.Invalid("call", "use 1, 2 or 3", fmt.Sprintf("%d is unknown", q.Call))
	}
	return r, err
}

func (o *Opener) deposit(s ask.Subject, q *ask.Request) ([]byte, error) {
	if len(q.Blob) != 0 {
		return nil, api.Invalid("blob", "leave it out", "a deposit has none")
	}
	body, _, err := o.read(s, q.Sealed, unseal.OnlyFingerprint(s.Owner))
	if err != nil {
		return nil, err
	}
	defer clear(body)
	b, err := manifest.DecodeBounds(body)
	if err != nil {
		return nil, err
	}
	if b.Revision != s.Revision {
		return nil, stale()
	}
	return seal(o.cfg.Random, o.page.storage(), blobMagic, aboutBounds(s.Function, s.Revision, s.Owner), body)
}

func stale() error {
	return &api.Error{Code: api.CodeStaleRevision, Field: "revision", Message: "the body is for another revision",
		Remedy: "fetch the descriptor, and seal again"}
}

func (o *Opener) open(s ask.Subject, q *ask.Request) ([]byte, sealed.Fingerprint, error) {
	var none sealed.Fingerprint
	if len(q.Blob) == 0 && len(q.Sealed) == 0 {
		return nil, none, api.Invalid("manifest", "give bounds, a manifest, or both", "neither was given")
	}
	var bounds *manifest.Bounds
	if len(q.Blob) != 0 {
		var err error
		if bounds, err = o.stored(s, q.Blob); err != nil {
			return nil, none, err
		}
	}
	var wish *manifest.Manifest
	var sender sealed.Fingerprint
	if len(q.Sealed) != 0 {
		body, from, err := o.read(s, q.Sealed, admitted{s.Owner, bounds})
		if err != nil {
			return nil, none, err
		}
		defer clear(body)
		if wish, err = manifest.Decode(body); err != nil {
			return nil, none, err
		}
		if wish.Revision != s.Revision {
			return nil, none, stale()
		}
		if wish.Task.IsZero() {
			return nil, none, api.Invalid("task", "draw one with sealed.NewID", "no task id")
		}
		sender = from
	}
	out := wish
	if bounds != nil {
		merged, err := manifest.Merge(bounds, wish)
		if err != nil {
			return nil, none, err
		}
		out = &merged
	}
	enc, err := out.Encode()
	return enc, sender, err
}

// stored opens a blob of deposit's.
func (o *Opener) stored(s ask.Subject, blob []byte) (*manifest.Bounds, error) {
	plain, err := open(o.page.storage(), blobMagic, aboutBounds(s.Function, s.Revision, s.Owner), blob)
	if err != nil {
		return nil, api.Invalid("blob", "have the owner deploy the function again", err.Error())
	}
	defer clear(plain)
	b, err := manifest.DecodeBounds(plain)
	if err == nil && b.Revision != s.Revision {
		err = stale()
	}
	return b, err
}

// admitted is who may send manifests: the function's owner, and those whom the
// owner's bounds name.
type admitted struct {
	owner  sealed.Fingerprint
	bounds *manifest.Bounds // nil: none
}

// AllowSender implements unseal.SenderPolicy.
func (a admitted) AllowSender(f sealed.Fingerprint) bool {
	return f == a.owner || a.bounds != nil && a.bounds.AllowSender(f)
}

// read opens a message of role 4 and returns its body, which the caller wipes.
func (o *Opener) read(s ask.Subject, message []byte, senders unseal.SenderPolicy) ([]byte, sealed.Fingerprint, error) {
	m, err := o.unseal.Open(bytes.NewReader(message), unseal.Expect{Role: sealed.RoleManifest, Name: string(s.Function), Senders: senders})
	if err != nil {
		return nil, sealed.Fingerprint{}, refused(err)
	}
	body, err := m.ReadAll(manifest.MaxEncoded)
	if err = errors.Join(err, m.Close()); err != nil {
		clear(body)
		return nil, sealed.Fingerprint{}, refused(err)
	}
	return body, m.Grant.Sender.Fingerprint(), nil
}

// refused carries an envelope's refusal under its own code. Its detail names what
// travels in clear.
func refused(err error) error {
	if c := sealed.CodeOf(err); c != "" {
		return api.Wrap(api.Code(c), err, "the sealed message was refused: "+err.Error())
	}
	if errors.Is(err, unseal.ErrTooLong) {
		return api.Wrap(api.CodeTooLarge, err, fmt.Sprintf("the body has more than %d bytes", manifest.MaxEncoded))
	}
	return fmt.Errorf("manifest opener: %w", err)
}
