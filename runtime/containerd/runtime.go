package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/semaphore"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/cgroups"
	"github.com/faasd-sec/faasd-sec/runtime"
)

// Runtime implements runtime.Runtime.
type Runtime struct {
	cfg      Config
	client   *client.Client
	cgroups  cgroups.FS
	watcher  *cgroups.Watcher
	device   cgroups.Device // zero where RunDir or IOPath is on no block device
	compose  composer
	attach   *attacher
	dev      int       // detached /dev of bound sandboxes, -1 for none
	noBind   error     // why blanks cannot be bound here
	shop     *workshop // nil where nothing needs it
	ranges   *idRanges
	rlimits  []specs.POSIXRlimit
	images   *imageCache
	skels    *skeletons // layers, in LayerDir
	roots    *skeletons // of blanks, in RunDir: sandboxes walk down to them
	pulls    sync.Mutex
	flights  map[string]*flight  // images being made present, by digest; pulls guards it
	fetches  *semaphore.Weighted // a place for each image being fetched
	slots    *semaphore.Weighted
	events   *eventQueue
	life     context.Context // ends with Close
	end      context.CancelFunc
	watchers sync.WaitGroup // goroutines that wait for the end of a sandbox

	mu        sync.Mutex
	closed    bool
	sandboxes map[string]*Sandbox // nil while being created
}

var _ runtime.Runtime = (*Runtime)(nil)

// New connects to containerd and tries what sandboxes will need of this
// machine. An error that is runtime.ErrUnsupported names the missing feature.
func New(ctx context.Context, cfg Config) (_ *Runtime, retErr error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if cfg.LayerDir == "" {
		cfg.LayerDir = cfg.RunDir
	}
	for _, dir := range []string{cfg.RunDir, filepath.Join(cfg.RunDir, "sandboxes"), filepath.Join(cfg.RunDir, "skeletons"), cfg.LayerDir, filepath.Join(cfg.LayerDir, "skeletons")} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, fmt.Errorf("make the run directory: %w", err)
		}
	}
	// A root that a link leads to is none to runc, and no mount is listed under it.
	for _, dir := range []*string{&cfg.RunDir, &cfg.LayerDir} {
		real, err := filepath.EvalSymlinks(*dir)
		if err != nil {
			return nil, fmt.Errorf("find the run directory: %w", err)
		}
		*dir = real
	}
	if err := passable("run directory", filepath.Join(cfg.RunDir, "sandboxes")); err != nil {
		return nil, err
	}
	groups, err := cgroups.Open()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", runtime.ErrUnsupported, err)
	}
	base, lock, err := claimSpan(cfg)
	if err != nil {
		return nil, err
	}
	ranges := newIDRanges(base, cfg.UIDCount, lock)
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, ranges.close())
		}
	}()
	compose, err := probe(cfg.LayerDir, ranges)
	if err != nil {
		return nil, err
	}
	limits, err := rlimits()
	if err != nil {
		return nil, err
	}
	device, err := ioDevice(cfg)
	if err != nil {
		return nil, err
	}
	c, err := client.New(cfg.Address, client.WithDefaultNamespace(cfg.Namespace), client.WithTimeout(cfg.CallTimeout))
	if err != nil {
		return nil, fmt.Errorf("connect to containerd at %s: %w", cfg.Address, err)
	}
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, c.Close())
		}
	}()
	vctx, cancel := context.WithTimeout(ctx, cfg.CallTimeout)
	defer cancel()
	if _, err := c.Version(vctx); err != nil {
		return nil, fmt.Errorf("ask containerd at %s for its version: %w", cfg.Address, err)
	}
	r := &Runtime{
		cfg: cfg, client: c, cgroups: groups, device: device, compose: compose, ranges: ranges, rlimits: limits,
		images: newImageCache(), skels: &skeletons{layerDir: cfg.LayerDir}, roots: &skeletons{layerDir: cfg.RunDir},
		slots:  semaphore.NewWeighted(int64(cfg.MaxCreates)),
		events: newEventQueue(), sandboxes: make(map[string]*Sandbox),
		flights: make(map[string]*flight), fetches: semaphore.NewWeighted(int64(cfg.MaxPulls)),
	}
	if err := r.prepareBind(); err != nil {
		return nil, err
	}
	r.life, r.end = context.WithCancel(namespaces.WithNamespace(context.WithoutCancel(ctx), cfg.Namespace))
	if r.watcher, err = cgroups.NewWatcher(r.cgroupEvent); err != nil {
		r.end()
		r.events.close()
		r.endBind()
		return nil, err
	}
	return r, nil
}

// ioDevice is the device that I/O limits are for. That there is none matters
// only once a function asks for such a limit, unless one was configured.
func ioDevice(cfg Config) (cgroups.Device, error) {
	if cfg.IOPath == "" {
		d, err := cgroups.DeviceOf(cfg.RunDir)
		if err != nil {
			cfg.Log.Info("no block I/O limits: set Config.IOPath to a path on the disk to limit", "reason", err)
			return cgroups.Device{}, nil
		}
		return d, nil
	}
	d, err := cgroups.DeviceOf(cfg.IOPath)
	if err != nil {
		return cgroups.Device{}, fmt.Errorf("config IOPath: %w", err)
	}
	return d, nil
}

// Events implements runtime.Runtime.
func (r *Runtime) Events() <-chan runtime.Event { return r.events.out }

// Close implements runtime.Runtime. It must not run beside Create.
func (r *Runtime) Close() error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil
	}
	r.closed = true
	live := make([]*Sandbox, 0, len(r.sandboxes))
	for _, s := range r.sandboxes {
		if s != nil {
			live = append(live, s)
		}
	}
	r.mu.Unlock()

	r.end()
	for _, s := range live {
		s.proc.interrupt()
	}
	r.watchers.Wait()
	r.endBind()
	errs := []error{r.watcher.Close()}
	r.events.close()
	for _, s := range live {
		s.dropHandles()
		s.frost().Release()
		errs = append(errs, s.proc.close())
	}
	// The groups above the sandboxes' go with the last one.
	r.cgroups.Group(filepath.Dir(r.cgroupPath("x"))).Prune()
	errs = append(errs, r.ranges.close(), r.client.Close())
	return errors.Join(errs...)
}

// Cgroups is the machine's cgroup file system, for the node's own readings.
func (r *Runtime) Cgroups() cgroups.FS { return r.cgroups }

// reserve claims an id, so that no two sandboxes of a name are ever in the
// making.
func (r *Runtime) reserve(id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return errors.New("containerd runtime: closed")
	}
	if _, taken := r.sandboxes[id]; taken {
		return api.Errorf(api.CodeConflict, "sandbox %s exists already", id)
	}
	r.sandboxes[id] = nil
	return nil
}

func (r *Runtime) release(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.sandboxes, id)
}

func (r *Runtime) dir(id string) string    { return filepath.Join(r.cfg.RunDir, "sandboxes", id) }
func (r *Runtime) rootfs(id string) string { return filepath.Join(r.dir(id), "rootfs") }

// cgroupPath is where runc is told to put sandbox id.
func (r *Runtime) cgroupPath(id string) string {
	return filepath.Join(r.cfg.CgroupRoot, r.cfg.Namespace, id)
}

func removeDir(path string) error {
	if err := os.RemoveAll(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}
