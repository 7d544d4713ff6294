package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

const (
	secretsBytes   = 1 << 20
	secretsPath    = "/var/openfaas/secrets"
	maxRevisions   = 4096
	revisionSuffix = ".json"
	newPrefix      = "new-"
)

// revision is one revision of a function as this node runs it.
type revision struct {
	digest string // hex
	id     string // what key returns
	name   api.FunctionName
	seq    uint64             // of the descriptor: it grows when keys rotate, which leaves the digest as it is
	desc   *sealed.Descriptor // nil for a plain function
	plain  *api.PlainRevision // nil for a sealed function
	image  string             // digest
	inet   bool               // the function serves on a port of its loopback
	rec    api.Revision
	limits api.Resources
	slots  int               // invocations at once in one sandbox
	bound  time.Duration     // of one invocation in a ready sandbox
	start  time.Duration     // of a cold start
	idle   time.Duration     // until a sandbox is stopped; 0 where the owner does not say
	seen   *sealed.ReplaySet // shared by the revisions of a function, as is habit
	habit  *habit
	full   *atomic.Bool           // the function has more than its share of what all may have remembered
	bind   atomic.Pointer[[]byte] // what bindFrame returned

	served uint64 // invocations that began; the node's mutex guards it

	asked *api.Needs // of sandboxes for needs of their own, settled; nil: the limits are the descriptor's
	warm  string     // with asked: api.NeedsKey, under which the mesh hears of them
	base  *revision  // with asked: what it was made of
}

// bindFrame is the frame that makes an agent the revision's. All its sandboxes
// get the same, since the image is part of the revision, so it is encoded once.
func (r *revision) bindFrame(image api.ImageConfig) ([]byte, error) {
	if r.base != nil {
		return r.base.bindFrame(image)
	}
	if b := r.bind.Load(); b != nil {
		return *b, nil
	}
	bind := &api.Bind{Descriptor: r.rec.Descriptor, Image: image}
	if r.plain != nil {
		bind.Plain = &api.PlainBind{Revision: r.digest, Function: *r.plain}
	}
	b, err := api.AppendControl(nil, api.Control{Bind: bind})
	if err != nil {
		return nil, err
	}
	r.bind.Store(&b)
	return b, nil
}

// key names a revision under one descriptor: what a sandbox serves for life,
// since it holds the keys of that descriptor.
func (r *revision) key() string { return r.id }

// warmKey is the name under which a load counts free slots of it.
func (r *revision) warmKey() string {
	if r.asked != nil {
		return r.warm
	}
	return api.RevisionKey(r.digest)
}

// revisions are those this node was told, kept on disk so that sandboxes can
// be adopted after a restart.
type revisions struct {
	dir string
	cfg Config

	write  sync.Mutex // one put or drop at a time: disk and memory stay alike
	mu     sync.RWMutex
	byHash map[string]*revision
	replay map[api.FunctionName]*replay
}

// replay is what is kept of a function across its revisions, and when one of
// them last came or went.
type replay struct {
	set   *sealed.ReplaySet
	habit *habit
	full  *atomic.Bool
	used  time.Time
}

// replayAfter is how long a set outlives its function's last revision: by then
// every message in it has expired.
const replayAfter = sealed.MaxQueuedLife + sealed.MaxClockLead

func openRevisions(dir string, cfg Config) (*revisions, error) {
	r := &revisions{dir: dir, cfg: cfg, byHash: map[string]*revision{}, replay: map[api.FunctionName]*replay{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("revisions directory: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("revisions directory: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), newPrefix) { // of a put that a crash cut
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return nil, fmt.Errorf("revisions directory: %w", err)
			}
			continue
		}
		digest, ok := strings.CutSuffix(e.Name(), revisionSuffix)
		if !ok {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, fmt.Errorf("read revision: %w", err)
		}
		var rec api.Revision
		if json.Unmarshal(b, &rec) != nil {
			continue // cut by a crash: the coordinator tells it again
		}
		if rev, err := r.parse(digest, rec); err == nil {
			if err = r.keep(rev); err != nil {
				return nil, err
			}
			r.byHash[digest] = rev
		}
	}
	return r, nil
}

// get finds a revision that was put before.
func (r *revisions) get(digest string) (*revision, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	rev, ok := r.byHash[digest]
	return rev, ok
}

// all is every revision this node was told.
func (r *revisions) all() []*revision {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return slices.Collect(maps.Values(r.byHash))
}

// put checks rec against digest and keeps it.
func (r *revisions) put(digest string, rec api.Revision, keep ...string) (*revision, error) {
	rev, err := r.parse(digest, rec)
	if err != nil {
		return nil, err
	}
	r.write.Lock()
	defer r.write.Unlock()
	old, known := r.get(digest)
	if known && old.seq >= rev.seq {
		return old, nil // told twice, or late
	}
	if err := r.forget(rev, keep); err != nil {
		return nil, err
	}
	r.mu.RLock()
	full := !known && len(r.byHash) >= maxRevisions
	r.mu.RUnlock()
	if full {
		return nil, api.Errorf(api.CodeBusy, "this node knows %d revisions already", maxRevisions)
	}
	// Only for what is kept: names that are refused cost nothing.
	if err = r.keep(rev); err != nil {
		return nil, err
	}
	b, err := json.Marshal(rec)
	if err != nil {
		return nil, fmt.Errorf("encode revision: %w", err)
	}
	tmp, err := os.CreateTemp(r.dir, newPrefix+"*")
	if err != nil {
		return nil, fmt.Errorf("keep revision: %w", err)
	}
	_, err = tmp.Write(b)
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(r.dir, digest+revisionSuffix))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("keep revision: %w", err), os.Remove(tmp.Name()))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.byHash[digest] = rev
	return rev, nil
}

// forget drops the function's former revisions: this node may have been away
// when it was told to. Those named stay, and then no others. Sandboxes keep the one
// they serve.
func (r *revisions) forget(next *revision, keep []string) error {
	return r.dropIf(func(old *revision) bool {
		return old.name == next.name && old.digest != next.digest && (len(keep) > 0 || old.seq < next.seq) && !slices.Contains(keep, old.digest)
	})
}

// drop forgets all revisions of a function but keep. Its replay set stays: a
// message of a removed function must not open in one deployed again.
func (r *revisions) drop(name api.FunctionName, keep ...string) error {
	r.write.Lock()
	defer r.write.Unlock()
	return r.dropIf(func(rev *revision) bool { return rev.name == name && !slices.Contains(keep, rev.digest) })
}

// dropIf forgets revisions. write is held.
func (r *revisions) dropIf(which func(*revision) bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs error
	for digest, rev := range r.byHash {
		if !which(rev) {
			continue
		}
		delete(r.byHash, digest)
		if p := r.replay[rev.name]; p != nil {
			p.used = time.Now()
		}
		if err := os.Remove(filepath.Join(r.dir, digest+revisionSuffix)); !errors.Is(err, fs.ErrNotExist) {
			errs = errors.Join(errs, err)
		}
	}
	return errs
}

// parse verifies the descriptor's signature against the owner it claims: the
// node has no pin, but what it enforces is then at least what one owner
// signed, and the agent and the broker check again with more knowledge.
func (r *revisions) parse(digest string, rec api.Revision) (*revision, error) {
	if rec.Plain != nil {
		return r.parsePlain(digest, rec)
	}
	signed, err := sealed.ParseDescriptor(rec.Descriptor)
	if err != nil {
		return nil, api.Wrap(api.CodeInvalid, err, "descriptor: "+err.Error())
	}
	d, err := signed.Verify(signed.ClaimedOwner().Fingerprint())
	if err != nil {
		return nil, api.Wrap(api.CodeInvalid, err, "descriptor: "+err.Error())
	}
	got, err := d.Revision()
	if err != nil {
		return nil, api.Wrap(api.CodeInvalid, err, "descriptor: "+err.Error())
	}
	if got.String() != digest {
		return nil, api.Invalid("revision", "use the digest of the descriptor", "the descriptor is of another revision")
	}
	c := d.Config
	lim := api.Resources{
		CPU: int64(c.Resources.CPUMillis), Memory: int64(c.Resources.MemoryBytes), PIDs: int64(c.Resources.PIDs),
		Tmp: int64(c.Resources.TmpBytes), ReadBps: int64(c.Resources.IOReadBPS), WriteBps: int64(c.Resources.IOWriteBPS),
	}
	if lim.CPU <= 0 || lim.Memory <= 0 || lim.PIDs <= 0 {
		return nil, api.Invalid("limits", "set cpu, memory and pids in function.yml", fmt.Sprintf("%+v", lim))
	}
	if lim.Tmp == 0 {
		lim.Tmp = min(api.DefaultTmpBytes, lim.Memory/2)
	}
	rev := &revision{
		digest: digest, id: digest + ":" + strconv.FormatUint(d.Sequence, 10), seq: d.Sequence, name: api.FunctionName(d.FullName()), desc: d, rec: rec, limits: lim,
		image: c.Image, inet: c.Upstream != "unix",
		slots: api.DefaultMaxInFlight, start: r.cfg.StartTimeout,
		bound: api.InvocationBound(c.ReadMS, c.WriteMS, c.ExecMS) + time.Second,
	}
	if c.MaxInFlight > 0 {
		rev.slots = int(min(c.MaxInFlight, 1<<16))
	}
	if c.IdleMS > 0 {
		rev.idle = api.Milliseconds(c.IdleMS, 0)
	}
	if c.StartMS > 0 {
		rev.start = r.cfg.StartTimeout + api.Milliseconds(c.StartMS, 0)
	}
	return rev, nil
}

// has reports whether any revision of the function is known.
func (r *revisions) has(name api.FunctionName) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.hasLocked(name)
}

func (r *revisions) hasLocked(name api.FunctionName) bool {
	for _, rev := range r.byHash {
		if rev.name == name {
			return true
		}
	}
	return false
}

// keep gives rev its function's one replay set, and its habit, on this node.
func (r *revisions) keep(rev *revision) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	for other, p := range r.replay {
		if other != rev.name && now.Sub(p.used) > replayAfter && !r.hasLocked(other) {
			delete(r.replay, other)
		}
	}
	p, ok := r.replay[rev.name]
	if !ok {
		set, err := sealed.NewReplaySet(sealed.ReplayConfig{Size: r.cfg.ReplaySize})
		if err != nil {
			return fmt.Errorf("replay set: %w", err)
		}
		p = &replay{set: set, habit: &habit{}, full: new(atomic.Bool)}
		r.replay[rev.name] = p
	}
	p.used = now
	rev.seen, rev.habit, rev.full = p.set, p.habit, p.full
	return nil
}

// weigh holds all replay sets together to a bound: while they are over it, those
// functions get no invocations that have more than an equal share, so that a
// flood to one costs the others nothing. It is called every second.
func (r *revisions) weigh() {
	r.mu.RLock()
	defer r.mu.RUnlock()
	total, sizes := 0, make(map[*replay]int, len(r.replay))
	for _, p := range r.replay {
		sizes[p] = p.set.Len()
		total += sizes[p]
	}
	for p, n := range sizes {
		p.full.Store(total > r.cfg.ReplayTotal && n > r.cfg.ReplayTotal/len(sizes))
	}
}
