// Package node is the daemon of one machine: it admits invocations under exact
// reservations, starts a sandbox where none is warm, passes sealed bodies to
// the agent inside and sealed replies back, and stops what nobody uses.
//
// It makes sandboxes ahead of their functions when the machine has leisure, and
// freezes those that nobody calls. A sandbox serves one revision for its life.
//
// It guarantees that the sum of what it reserved never passes its capacity,
// that a refused invocation reached no agent, that every sandbox it started is
// removed or, after a crash, adopted or removed at the next start. It cannot
// open a payload: it links no code that holds a private decryption key.
package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/anomaly"
	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/cgroups"
	"github.com/faasd-sec/faasd-sec/monitor"
	"github.com/faasd-sec/faasd-sec/node/keepalive"
	"github.com/faasd-sec/faasd-sec/relay"
	"github.com/faasd-sec/faasd-sec/runtime"
	"github.com/faasd-sec/faasd-sec/tracing"
)

// Config sets up a Node. Durations of zero take the value of DefaultConfig.
type Config struct {
	ID           string        // as in its certificate
	StateDir     string        // revisions it was told, sealed logs; survives a restart
	RunDir       string        // sockets of sandboxes; short, for unix socket paths end at 107 bytes
	Registry     string        // host:port of the cluster's registry, for images that name none
	AgentPath    string        // the static agent binary on this machine
	Capacity     api.Resources // lent to functions in all; CPU may be over-committed by saying more than there is; of what no Fitting gives nothing is lent
	Ports        PortRange     // ports of this host that are lent; Capacity.Ports follows from it
	Cores        cgroups.CPUs  // cores of this host that are lent to be pinned to; Capacity.Cores follows from it
	IdleAfter    time.Duration // a sandbox unused for so long is stopped, where neither the function nor its past says
	KeepaliveMin time.Duration // the least and the most that a function's past can make of it; 0 is
	KeepaliveMax time.Duration // one minute and half an hour, or IdleAfter where that is outside
	FreezeAfter  time.Duration // a sandbox unused for so long is frozen until the next call; 0 for never
	ImageKeep    time.Duration // an image that no revision here uses is let go after so long; 0 for never
	StartTimeout time.Duration // from the decision to a ready function, image pull included
	StopGrace    time.Duration // between SIGTERM and SIGKILL
	RemoveAgain  time.Duration // between two tries to remove what could not be removed
	DrainTimeout time.Duration // for invocations under way when the daemon is told to stop
	MaxBody      int64         // bytes of one sealed request, 0 without limit
	LogBytes     int           // sealed log kept in memory per function
	ReplaySize   int           // messages remembered per function until they expire
	ReplayTotal  int           // and of all functions together, about 70 bytes each
	PoolMin      int           // sandboxes kept ready without a function at the least
	PoolMax      int           // and at the most; 0 for no pool
	PoolCreates  int           // of them made at once, 0 for two
}

// DefaultConfig is what a node runs with unless told otherwise. ID, StateDir,
// RunDir, AgentPath and Capacity have no default.
func DefaultConfig() Config {
	return Config{
		IdleAfter: 5 * time.Minute, StartTimeout: time.Minute, StopGrace: 5 * time.Second, RemoveAgain: 10 * time.Second,
		DrainTimeout: 30 * time.Second, MaxBody: 0, LogBytes: 4 << 20, ReplaySize: 1 << 20, ReplayTotal: 4 << 20,
		FreezeAfter: 10 * time.Second, ImageKeep: time.Hour, PoolMin: 2, PoolMax: 16, PoolCreates: 2,
	}
}

// Broker releases a function's keys, sealed to a sandbox.
type Broker interface {
	Release(ctx context.Context, req api.ReleaseRequest) (api.ReleaseReply, error)
	// Attest shows it what a later Release will carry, so that it is quicker. Nobody
	// depends on that.
	Attest(ctx context.Context, req api.AttestRequest) error
}

// Collector makes evidence about a statement.
type Collector interface {
	Type() string
	Collect(ctx context.Context, statement []byte) (api.Evidence, error)
}

// Bundles fetches sealed bundles by digest.
type Bundles interface {
	Fetch(ctx context.Context, ref, digest string) (io.ReadCloser, error)
}

// Mesh is told what this node has free. It stamps epoch and sequence.
type Mesh interface {
	SetLoad(api.NodeLoad) (api.NodeLoad, error)
}

// Deps are the parts a Node works with. All are required but Fittings, Left,
// MeasureAgent, Pressure, ScratchFree, Kernel, Anomaly, Registerer and Watching.
type Deps struct {
	Runtime    runtime.Runtime
	Broker     Broker
	Collectors []Collector
	Bundles    Bundles
	Mesh       Mesh
	// MeasureAgent has the Collectors name the digest of Config.AgentPath as it is
	// now. It is called by New, and before a sandbox is made of a replaced one.
	MeasureAgent func() error
	Free         func() (api.Resources, error)  // what the machine really has free
	Left         func() (api.Resources, error)  // its memory and pids alone, asked before each start; nil: Free is
	Pressure     func() (Pressure, bool, error) // how hard it works; false where the kernel does not tell
	ScratchFree  func() (int64, error)          // bytes that the disk of scratch space has left; required where a Fitting gives any
	Kernel       func() error                   // whether the kernel still has what sandboxes need
	Fittings     []Fitting                      // what gives sandboxes more than the runtime does
	Log          *slog.Logger
	Registerer   prometheus.Registerer
	ImagePolicy  ImagePolicy  // whose images may run here; nil asks for no signature
	Anomaly      anomaly.Sink // told of what goes wrong
	Watching     Watching
	Trace        *tracing.Tracer // nil traces nothing
}

// Node is one machine's daemon. Make it with New, run it with Run.
type Node struct {
	cfg  Config
	dep  Deps
	log  *slog.Logger
	met  *metrics
	revs *revisions
	logs *logbook

	agent    agentBinary
	keep     keepalive.Policy
	fittings fittings
	clock    clock
	taskLog  *taskLog
	bound    boundPorts
	callers  relay.Callers
	monitor  *monitor.Monitor // nil where nobody watches

	life context.Context // ends after the drain; parent of all that a sandbox does
	kill context.CancelFunc
	jobs sync.WaitGroup // goroutines that life bounds

	mu       sync.Mutex // guards what follows; never held across I/O
	ledger   ledger
	ports    portTable
	cores    coreTable
	tasks    taskSet
	fleet    map[string]*sandbox // by sandbox id
	boxes    map[string]*box     // what the runtime has, by id
	pool     pool
	failures map[string]failure             // of starts, by revision key
	byRev    map[string]map[string]*sandbox // revision key -> id -> sandbox
	tickets  map[string]*ticket
	past     []api.SandboxStatus // ended ones, newest last, bounded
	changed  chan struct{}       // closed and replaced when room or a slot may have come free
	draining bool                // takes nothing new: cordoned or ending
	ending   bool                // the daemon is about to
	cordoned bool                // drained by an operator, over restarts
	orders   int                 // how often an operator has changed that

	dirty chan struct{} // load changed
	load  atomic.Pointer[stampedLoad]
	seen  atomic.Pointer[survey]

	publishing sync.Mutex // one publication at a time
	cordoning  sync.Mutex // one order of an operator at a time
	started    time.Time
}

// New checks cfg and makes a Node that has not touched anything yet.
func New(cfg Config, dep Deps) (*Node, error) {
	def := DefaultConfig()
	for _, d := range []struct{ v, def *time.Duration }{
		{&cfg.IdleAfter, &def.IdleAfter}, {&cfg.StartTimeout, &def.StartTimeout},
		{&cfg.StopGrace, &def.StopGrace}, {&cfg.DrainTimeout, &def.DrainTimeout}, {&cfg.RemoveAgain, &def.RemoveAgain},
	} {
		if *d.v == 0 {
			*d.v = *d.def
		}
		if *d.v < 0 {
			return nil, api.Invalid("duration", "use a positive one", d.v.String())
		}
	}
	switch {
	case cfg.ID == "":
		return nil, api.Invalid("id", "name the node", "it is empty")
	case cfg.StateDir == "" || cfg.RunDir == "" || cfg.AgentPath == "":
		return nil, api.Invalid("state, run directory or agent", "set all three", "one is empty")
	case cfg.FreezeAfter < 0 || cfg.ImageKeep < 0 || cfg.KeepaliveMin < 0 || cfg.KeepaliveMax < 0:
		return nil, api.Invalid("duration", "use a positive one", "freeze after, image keep or keep-alive is negative")
	case cfg.PoolMin < 0 || cfg.PoolMax < 0 || cfg.PoolCreates < 0 || cfg.PoolMax > 0 && cfg.PoolMin > cfg.PoolMax:
		return nil, api.Invalid("pool", "use numbers of 0 or more, the minimum not over the maximum",
			fmt.Sprintf("minimum %d, maximum %d, %d at once", cfg.PoolMin, cfg.PoolMax, cfg.PoolCreates))
	case cfg.Capacity.Scratch < 0 || cfg.Capacity.Ingress < 0 || cfg.Capacity.Egress < 0:
		return nil, api.Invalid("capacity", "lend 0 or more", fmt.Sprintf("%+v", cfg.Capacity))
	case cfg.Capacity.CPU <= 0 || cfg.Capacity.Memory <= 0 || cfg.Capacity.PIDs <= 0:
		return nil, api.Invalid("capacity", "set cpu, memory and pids", fmt.Sprintf("%+v", cfg.Capacity))
	}
	// "/" + an id of 20 + "/agent.sock": the kernel's limit is 107.
	if n := len(cfg.RunDir) + 1 + 20 + len("/agent.sock"); n > 107 {
		return nil, api.Invalid("run directory", "choose a shorter path, such as one below /run",
			fmt.Sprintf("socket paths below %s would have %d bytes, 107 are allowed", cfg.RunDir, n))
	}
	if st, err := os.Stat(cfg.AgentPath); err != nil || !st.Mode().IsRegular() {
		return nil, api.Invalid("agent", "run `make build` and name bin/agent", fmt.Sprintf("%s is not a file", cfg.AgentPath))
	}
	if cfg.LogBytes <= 0 {
		cfg.LogBytes = def.LogBytes
	}
	if cfg.ReplaySize <= 0 {
		cfg.ReplaySize = def.ReplaySize
	}
	if cfg.PoolCreates == 0 {
		cfg.PoolCreates = def.PoolCreates
	}
	if cfg.KeepaliveMin == 0 {
		cfg.KeepaliveMin = min(time.Minute, cfg.IdleAfter)
	}
	if cfg.KeepaliveMax == 0 {
		cfg.KeepaliveMax = max(30*time.Minute, cfg.IdleAfter)
	}
	keep := keepalive.Policy{Standard: cfg.IdleAfter, Min: cfg.KeepaliveMin, Max: cfg.KeepaliveMax}
	if err := keep.Validate(); err != nil {
		return nil, api.Invalid("keep-alive", "set the minimum below the maximum", err.Error())
	}
	if cfg.ReplayTotal <= 0 {
		cfg.ReplayTotal = def.ReplayTotal
	}
	fits, err := newFittings(dep.Fittings)
	if err != nil {
		return nil, err
	}
	cfg.Capacity = cfg.counted()
	lent, err := Lends(cfg, dep.Fittings)
	if err != nil {
		return nil, err
	}
	if lent != cfg.Capacity {
		dep.Log.Warn("nothing on this node gives all that it is to lend: the rest is not lent", "capacity", cfg.Capacity, "lent", lent)
	}
	if lent.Scratch > 0 && dep.ScratchFree == nil {
		return nil, api.Invalid("scratch", "say what its disk has free", "ScratchFree is not set")
	}
	for _, dir := range []string{cfg.StateDir, cfg.RunDir} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, fmt.Errorf("node directory: %w", err)
		}
	}
	n := &Node{
		cfg: cfg, dep: dep, log: dep.Log, met: newMetrics(dep.Registerer),
		logs:  newLogbook(cfg.ID, cfg.LogBytes),
		agent: agentBinary{path: cfg.AgentPath, measure: dep.MeasureAgent}, keep: keep,
		boxes: map[string]*box{}, pool: pool{kick: make(chan struct{}, 1)},
		fleet: map[string]*sandbox{}, byRev: map[string]map[string]*sandbox{}, tickets: map[string]*ticket{},
		ledger: ledger{capacity: lent}, ports: newPortTable(cfg.Ports), cores: newCoreTable(cfg.Cores), fittings: fits, changed: make(chan struct{}), dirty: make(chan struct{}, 1),
		started: time.Now(),
	}
	if n.revs, err = openRevisions(filepath.Join(cfg.StateDir, "revisions"), cfg); err != nil {
		return nil, err
	}
	if _, err := n.agent.current(); err != nil {
		return nil, err
	}
	n.taskLog = &taskLog{path: filepath.Join(cfg.StateDir, taskFile), live: n.keptTasks}
	n.met.observe(n)
	if err := n.newMonitor(); err != nil {
		return nil, err
	}
	return n, nil
}

// Start adopts what an earlier life left running and begins the node's
// background work. It returns when invocations can be admitted. Drain and Close
// must be called afterwards.
func (n *Node) Start(ctx context.Context) error {
	n.life, n.kill = context.WithCancel(context.WithoutCancel(ctx))
	n.spawn(n.watchEvents)
	if err := n.openTasks(); err != nil {
		n.Close()
		return err
	}
	if err := n.recover(ctx); err != nil {
		n.Close()
		return fmt.Errorf("recover sandboxes: %w", err)
	}
	if err := n.openCordon(); err != nil {
		n.Close()
		return err
	}
	n.spawn(n.reapIdle)
	if n.cfg.ImageKeep > 0 {
		n.spawn(n.sweepImages)
	}
	n.spawn(n.publishLoad)
	if n.monitor != nil {
		n.spawn(n.watchTasks)
	}
	if n.cfg.PoolMax > 0 {
		n.spawn(n.keepPool)
	}
	return nil
}

// spawn runs f until it returns; Close waits for it.
func (n *Node) spawn(f func()) {
	n.jobs.Add(1)
	go func() { defer n.jobs.Done(); f() }()
}

// Close ends the node's goroutines and its pool. Sandboxes that Drain did not
// stop go on running and are adopted by the next Start.
func (n *Node) Close() {
	if n.kill == nil {
		return
	}
	n.kill()
	n.mu.Lock()
	boxes := slices.Collect(maps.Values(n.boxes))
	n.mu.Unlock()
	for _, b := range boxes {
		b.hangUp()
	}
	n.closePool(false)
	n.jobs.Wait()
	n.taskLog.close()
	n.bound.close()
}

// touch says that the load changed.
func (n *Node) touch() {
	select {
	case n.dirty <- struct{}{}:
	default:
	}
}

// wake says that room or a slot may have come free. The caller holds mu.
func (n *Node) wake() {
	close(n.changed)
	n.changed = make(chan struct{})
}

// Handler serves the node's API. The caller has authenticated the peer as a
// coordinator.
func (n *Node) Handler() fasthttp.RequestHandler { return n.serve }

// Ready reports whether the node admits invocations, and why not.
func (n *Node) Ready() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.draining {
		return errors.New("draining")
	}
	if n.load.Load() == nil {
		return errors.New("starting")
	}
	return nil
}
