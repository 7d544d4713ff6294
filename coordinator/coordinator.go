// Package coordinator is the gateway of a cluster: it takes sealed invocations
// over HTTP, chooses a node for each from what it can see without opening it,
// and passes the same bytes on; and it keeps what owners deployed.
//
// It guarantees that an invocation reaches at most one agent: it goes on to
// another node only after a refusal that says no byte reached one, or where no
// connection was had. It never opens a payload, and links no code that could.
package coordinator

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/anomaly"
	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/coordinator/openfaas"
	"github.com/faasd-sec/faasd-sec/gate"
	"github.com/faasd-sec/faasd-sec/placement"
	"github.com/faasd-sec/faasd-sec/relay"
	"github.com/faasd-sec/faasd-sec/reqauth"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/store"
	"github.com/faasd-sec/faasd-sec/tracing"
)

// Config sets up a Coordinator. Zero durations and sizes take DefaultConfig's.
type Config struct {
	MaxBody      int64                // bytes of one sealed request; 0 takes the default, -1 is without limit
	QueueSize    int                  // invocations that may wait for room
	QueueEach    int                  // of these for the functions of one owner; 0 is three quarters of all
	QueueTimeout time.Duration        // longest wait; a message that expires earlier waits less
	StartTimeout time.Duration        // what nodes may take for a cold start
	Owners       []sealed.Fingerprint // who may deploy; empty with AnyOwner false: nobody
	AnyOwner     bool                 // everybody may deploy: for one's own machine
	Weights      placement.Weights

	HeldBytes     int64 // of requests, held while nothing of their senders is proved; -1 is without limit
	HeldBytesEach int64 // of these for one address; -1 is without limit

	OpenFaaS openfaas.Config // without credentials its API is refused
}

// DefaultConfig is what a coordinator runs with unless told otherwise.
func DefaultConfig() Config {
	return Config{
		MaxBody: gate.DefaultMaxBody, QueueSize: 1024, QueueTimeout: 30 * time.Second,
		StartTimeout: time.Minute, Weights: placement.DefaultWeights(),
		HeldBytes: 512 << 20, HeldBytesEach: 128 << 20,
	}
}

// Mesh is the coordinator's view of the members.
type Mesh interface {
	Snapshot() *api.ClusterView
	Changed(version uint64) <-chan struct{}
	Observe(api.NodeLoad) bool
}

// Functions is the durable state; *store.Store is one.
type Functions interface {
	PutFunction(ctx context.Context, f store.Function, expected int64) (int64, error)
	GetFunction(ctx context.Context, name api.FunctionName) (*store.Function, error)
	DeleteFunction(ctx context.Context, name api.FunctionName, expected int64) (int64, error)
}

// Cache is what a watch keeps current of Functions; *store.Cache is one.
type Cache interface {
	Get(name api.FunctionName) *store.Function
	Snapshot() *store.Snapshot
	Wait(ctx context.Context, version int64) error
}

// Deps are the parts a Coordinator works with.
type Deps struct {
	Mesh       Mesh
	Store      Functions
	Cache      Cache
	Nodes      Dialer                  // mutual TLS to nodes
	Others     Dialer                  // mutual TLS to other coordinators; nil where this one is alone
	Broker     *http.Client            // mutual TLS to the key broker
	BrokerURL  string                  // https://host:port
	Registry   fasthttp.RequestHandler // the OCI registry, already below /v2/
	Images     ImageChecker            // asks the registry what it has
	Manifests  Manifests               // the manifest opener; nil: sealed manifests are refused
	Resolver   ImageResolver           // of plain functions' images; nil: plain functions are refused
	Secrets    Secrets                 // of plain functions; nil: those with secrets are refused
	Namespaces NamespaceStore          // nil: none can be created
	Enrol      Enrolment
	Auth       *reqauth.Verifier
	Log        *slog.Logger
	Lead       Lead // nil: this coordinator is the only one
	Registerer prometheus.Registerer
	Watching   Watching
	Trace      *tracing.Tracer // nil traces nothing
	Majority   func() error    // tells that the store can be written; nil is always
	Claims     Claims          // of tasks, by all coordinators; nil where this one is alone
	Async      *Async          // nil: asynchronous invocations are refused
}

// ImageChecker tells whether the registry has a manifest or blob.
type ImageChecker interface {
	HasManifest(ctx context.Context, repo, digest string) (bool, error)
	HasBlob(ctx context.Context, repo, digest string) (bool, error)
}

// Enrolment makes nodes members of the cluster; *enrol.Desk is one.
type Enrolment interface {
	Join(ctx context.Context, req api.JoinRequest) (api.JoinReply, error)
	Renew(node string, csr []byte) (certPEM []byte, err error)
}

// Coordinator serves the gateway. Make it with New, end it with Close.
type Coordinator struct {
	cfg   Config
	dep   Deps
	log   *slog.Logger
	met   *metrics
	peers *peers // nodes

	others *peers // other coordinators; nil where this one is alone

	life    context.Context
	kill    context.CancelFunc
	jobs    sync.WaitGroup
	index   atomic.Pointer[placement.Index]
	routes  sync.Map // api.FunctionName -> *route
	calls   sync.Map // api.FunctionName -> *atomic.Uint64, of functions that there were
	callers relay.Callers
	queue   *waiting
	budget  *budget
	looks   chan struct{} // a place for each question to all nodes under way
	reads   chan struct{} // a place for each reader of anomalies
	uploads chan struct{} // a place for each schedule that is being sent
	members atomic.Int64  // nodes that are under watch for their heartbeat
	seed    atomic.Uint64
	news    news
	system  *openfaas.Handler

	counting counting
	growths  growths
	scaler   *scaler

	manifestKey  publishedKeys
	tasks        *fence
	async        *Async // nil for none
	explanations explanations
	broker       brokerKey
}

// New makes a Coordinator. ctx bounds the exchanges under way: it ends after
// the drain.
func New(ctx context.Context, cfg Config, dep Deps) (*Coordinator, error) {
	def := DefaultConfig()
	if cfg.MaxBody == 0 {
		cfg.MaxBody = def.MaxBody
	}
	if cfg.HeldBytes == 0 {
		cfg.HeldBytes = def.HeldBytes
	}
	if cfg.HeldBytesEach == 0 {
		cfg.HeldBytesEach = def.HeldBytesEach
	}
	held := newBudget(cfg.HeldBytes, cfg.HeldBytesEach)
	if err := held.check(); err != nil {
		return nil, err
	}
	if cfg.QueueSize == 0 {
		cfg.QueueSize = def.QueueSize
	}
	if cfg.QueueTimeout == 0 {
		cfg.QueueTimeout = def.QueueTimeout
	}
	if cfg.StartTimeout == 0 {
		cfg.StartTimeout = def.StartTimeout
	}
	if cfg.QueueEach == 0 {
		cfg.QueueEach = (3*cfg.QueueSize + 3) / 4
	}
	if cfg.QueueSize < 0 || cfg.QueueEach < 0 || cfg.QueueTimeout < 0 || cfg.StartTimeout < 0 {
		return nil, api.Invalid("queue or timeout", "use positive values", "one is negative")
	}
	if cfg.Weights == (placement.Weights{}) {
		cfg.Weights = def.Weights
	}
	c := &Coordinator{cfg: cfg, dep: dep, log: dep.Log, met: newMetrics(dep.Registerer), queue: newWaiting(cfg.QueueSize),
		looks: make(chan struct{}, maxLooks), reads: make(chan struct{}, maxReads), budget: held, tasks: newFence()}
	c.queue.each = cfg.QueueEach
	if c.dep.Watching.Anomalies == nil {
		c.dep.Watching.Anomalies = anomaly.Discard{}
	}
	c.life, c.kill = context.WithCancel(ctx)
	c.peers = newPeers(c.life, dep.Nodes)
	if dep.Others != nil {
		c.others = newPeers(c.life, dep.Others)
	}
	c.seed.Store(uint64(time.Now().UnixNano()))
	c.system = c.newSystem(cfg.OpenFaaS)
	c.spawn(c.prune)
	c.spawn(c.watchMembers)
	c.spawn(func() { c.queue.follow(c.life, dep.Mesh) })
	c.startScaler()
	c.startAsync(dep.Async)
	c.met.observe(c)
	return c, nil
}

func (c *Coordinator) spawn(f func()) {
	c.jobs.Add(1)
	go func() { defer c.jobs.Done(); f() }()
}

// Close ends the coordinator's goroutines and connections.
func (c *Coordinator) Close() {
	c.kill()
	c.jobs.Wait()
	c.peers.close()
	if c.others != nil {
		c.others.close()
	}
}

// Gateway serves callers and owners. Its server tells Replied of its connections.
func (c *Coordinator) Gateway() fasthttp.RequestHandler { return c.serveGateway }

// Cluster serves the cluster's listener: the registry, read only, and renewal
// for nodes; joining for whoever holds a token. peer tells which node asks, ""
// for one without a certificate.
func (c *Coordinator) Cluster(peer func(*fasthttp.RequestCtx) (node string)) fasthttp.RequestHandler {
	return func(ctx *fasthttp.RequestCtx) {
		path, id := string(ctx.Path()), peer(ctx)
		switch {
		case path == api.GatewayPathJoin && ctx.IsPost():
			c.serveEnrolment(ctx, func(rctx context.Context, req api.JoinRequest) (api.JoinReply, error) {
				return c.dep.Enrol.Join(rctx, req)
			})
		case id == "":
			c.problem(ctx, api.Errorf(api.CodeUnauthorized, "show a node's certificate, or join with a token"))
		case path == api.GatewayPathRenew && ctx.IsPost():
			c.serveEnrolment(ctx, func(_ context.Context, req api.JoinRequest) (api.JoinReply, error) {
				cert, err := c.dep.Enrol.Renew(id, req.CSR)
				return api.JoinReply{Certificate: cert}, err
			})
		case strings.HasPrefix(path, api.GatewayPathRegistry) && (ctx.IsGet() || ctx.IsHead()):
			c.dep.Registry(ctx)
		default:
			c.problem(ctx, api.Errorf(api.CodeNotFound, "%s %s is not served to nodes", ctx.Method(), path))
		}
	}
}

func (c *Coordinator) serveEnrolment(ctx *fasthttp.RequestCtx, f func(context.Context, api.JoinRequest) (api.JoinReply, error)) {
	body, err := readBody(ctx)
	var req api.JoinRequest
	if err == nil {
		if jerr := json.Unmarshal(body, &req); jerr != nil {
			err = api.Invalid("body", "send a join request as JSON", jerr.Error())
		}
	}
	if err != nil {
		c.problem(ctx, err)
		return
	}
	rctx, cancel := context.WithTimeout(c.life, storeTimeout)
	defer cancel()
	reply, err := f(rctx, req)
	if err != nil {
		c.problem(ctx, err)
		return
	}
	c.reply(ctx, reply)
}

func (c *Coordinator) serveGateway(ctx *fasthttp.RequestCtx) {
	path := string(ctx.Path())
	if name, ok := strings.CutPrefix(path, api.GatewayPathInvoke); ok {
		c.traced(ctx, name, c.invokeWithin)
		return
	}
	if c.routeAsync(ctx, path) {
		return
	}
	var out any
	var err error
	name, isFunction := strings.CutPrefix(path, api.GatewayPathFunctions+"/")
	task, isPlacement := placementOf(path)
	switch {
	case strings.HasPrefix(path, api.GatewayPathRegistry):
		c.serveRegistry(ctx)
		return
	case strings.HasPrefix(path, openfaas.Prefix):
		c.system.Serve(ctx)
		return
	case path == api.GatewayPathFunctions && ctx.IsGet():
		out = c.listFunctions()
	case isFunction && strings.HasSuffix(name, "/logs") && ctx.IsGet():
		if err = c.serveLogs(ctx, strings.TrimSuffix(name, "/logs")); err == nil {
			return
		}
	case isFunction && strings.HasSuffix(name, "/revisions") && ctx.IsGet():
		out, err = c.revisionsOf(strings.TrimSuffix(name, "/revisions"))
	case isFunction && strings.HasSuffix(name, "/rollback") && ctx.IsPost():
		err = c.serveRollback(ctx, strings.TrimSuffix(name, "/rollback"))
	case isFunction && strings.HasSuffix(name, "/traffic") && ctx.IsPost():
		err = c.serveTraffic(ctx, strings.TrimSuffix(name, "/traffic"))
	case isFunction && strings.HasSuffix(name, "/scale") && ctx.IsPost():
		err = c.serveScale(ctx, strings.TrimSuffix(name, "/scale"))
	case isFunction && ctx.IsGet():
		out, err = c.describeFunction(name, ctx.QueryArgs().Has(api.GatewayQueryBrief))
	case isFunction && ctx.IsPut():
		out, err = c.putFunction(ctx, name)
	case isFunction && ctx.IsDelete():
		err = c.deleteFunction(ctx, name)
	case path == api.GatewayPathNodes && ctx.IsGet():
		out, err = c.listNodes(ctx)
	case path == api.GatewayPathTasks && ctx.IsGet():
		out, err = c.listTasks(ctx)
	case path == api.GatewayPathAnomalies && ctx.IsGet():
		if err = c.serveAnomalies(ctx); err == nil {
			return
		}
	case path == api.GatewayPathBroker && ctx.IsGet(),
		path == api.GatewayPathDeposits && ctx.IsPost(),
		strings.HasPrefix(path, api.GatewayPathDeposits+"/") && ctx.IsDelete():
		if err = c.relayToBroker(ctx); err == nil {
			return
		}
	case path == api.GatewayPathManifestKey && ctx.IsGet():
		out, err = c.manifestKeys()
	case path == api.GatewayPathWaiting && ctx.IsGet():
		out = c.waitingCalls(c.queue.snapshot())
	case strings.HasPrefix(path, api.GatewayPathWaiting+"/") && ctx.IsDelete():
		err = c.cancelWaiting(ctx, strings.TrimPrefix(path, api.GatewayPathWaiting+"/"))
	case isPlacement && ctx.IsGet():
		out, err = c.explain(ctx, task)
	case path == "/healthz" && (ctx.IsGet() || ctx.IsHead()):
		ctx.SetBodyString("OK\n")
		return
	case path == "/readyz" && (ctx.IsGet() || ctx.IsHead()):
		if err = c.Ready(); err == nil {
			ctx.SetBodyString("OK\n")
			return
		}
	default:
		err = &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("%s %s is not served here", ctx.Method(), path),
			Remedy: "invoke with POST " + api.GatewayPathInvoke + "NAME; see docs/cli.md"}
	}
	switch {
	case err != nil:
		c.problem(ctx, err)
	case out == nil:
		ctx.SetStatusCode(fasthttp.StatusNoContent)
	default:
		c.reply(ctx, out)
	}
}

// Ready reports whether there is a node to serve with, a majority of the store,
// what waits of asynchronous calls, and the manifest opener if there should be one.
func (c *Coordinator) Ready() error {
	if c.dep.Majority != nil {
		if err := c.dep.Majority(); err != nil {
			return err
		}
	}
	if c.async != nil {
		if err := c.async.Queue.Ready(); err != nil {
			return err
		}
	}
	if c.dep.Manifests != nil {
		if _, err := c.manifestKeys(); err != nil {
			return err
		}
	}
	for _, n := range c.dep.Mesh.Snapshot().Nodes {
		if n.Load.Epoch != 0 {
			return nil
		}
	}
	return api.Errorf(api.CodeUnavailable, "no node has joined yet")
}

func (c *Coordinator) reply(ctx *fasthttp.RequestCtx, out any) {
	b, err := json.Marshal(out)
	if err != nil {
		c.problem(ctx, fmt.Errorf("encode reply: %w", err))
		return
	}
	ctx.SetContentType(api.ContentTypeJSON)
	ctx.SetBody(b)
}

// problem replies with err as a problem document.
func (c *Coordinator) problem(ctx *fasthttp.RequestCtx, err error) {
	gate.Problem(ctx, c.log, err)
}

// HandleError turns what fasthttp refuses by itself into a problem document.
func (c *Coordinator) HandleError(ctx *fasthttp.RequestCtx, err error) {
	gate.ErrorHandler(c.log)(ctx, err)
}
