package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	goruntime "runtime"
	"time"

	"github.com/faasd-sec/faasd-sec/anomaly/own"
	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/attest"
	"github.com/faasd-sec/faasd-sec/cgroups"
	"github.com/faasd-sec/faasd-sec/daemon"
	"github.com/faasd-sec/faasd-sec/enrol"
	"github.com/faasd-sec/faasd-sec/gossip"
	"github.com/faasd-sec/faasd-sec/image"
	"github.com/faasd-sec/faasd-sec/nbio"
	"github.com/faasd-sec/faasd-sec/node"
	"github.com/faasd-sec/faasd-sec/pki"
	"github.com/faasd-sec/faasd-sec/runtime/containerd"
	"github.com/faasd-sec/faasd-sec/samehost"
	"github.com/faasd-sec/faasd-sec/tracing"
)

const joinRemedy = "join the cluster first: faasd-sec node join --token TOKEN --coordinator HOST:PORT"

// maxCallers are the connections that the gateway serves at once. Each may hold
// a small body before anything is known of its sender: the bound is also one on
// memory, 2 GiB here.
const maxCallers = 8192

// run wires the node's parts and serves until ctx ends.
func run(ctx context.Context, o options) (err error) {
	log, err := daemon.Logger(os.Stderr, o.logFormat, o.logLevel)
	if err != nil {
		return err
	}
	var n enrol.Node
	if err := enrol.Load(o.state, enrol.NodeFile, joinRemedy, &n); err != nil {
		return err
	}
	log = log.With("node", n.ID)
	identity, err := pki.LoadIdentity(filepath.Join(o.state, enrol.IdentityFile), log)
	if err != nil {
		return fmt.Errorf("identity: %w (%s)", err, joinRemedy)
	}
	anomalies, err := own.Open(o.state, n.ID, identity.Signer, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, anomalies.Finish()) }()
	// What serves invocations outlives the signal until they are done.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()

	known := &coordinators{first: n.Registry}
	toRegistry := &http.Client{Transport: &http.Transport{
		DialContext: known.dial, TLSClientConfig: pki.ClientConfig(identity, pki.RoleCoordinator, pki.AnyID), IdleConnTimeout: time.Minute,
	}}
	rc := containerd.Default(o.containerd, o.namespace, filepath.Join(o.runDir, "rt"))
	rc.Registries = map[string]containerd.Registry{n.Registry: {Client: toRegistry}}
	for _, host := range o.insecure {
		rc.Registries[host] = containerd.Registry{PlainHTTP: true}
	}
	rc.Credentials = o.registryAuth.Credentials
	// Not in the run directory, which is a tmpfs on most machines.
	rc.Log, rc.IOPath, rc.Shim, rc.LayerDir = log, o.state, o.shim, filepath.Join(o.state, "layers")
	rt, err := containerd.New(ctx, rc)
	if err != nil {
		return fmt.Errorf("runtime: %w", err)
	}
	defer func() { err = errors.Join(err, rt.Close()) }()

	evidence := &nodeKey{path: o.agent, id: n.ID, identity: identity}
	fs, err := cgroups.Open()
	if err != nil {
		return fmt.Errorf("cgroups: %w", err)
	}
	reg := daemon.Registry()
	anomalies.Register(reg)
	cfg := node.DefaultConfig()
	cfg.ID, cfg.StateDir, cfg.RunDir, cfg.AgentPath = n.ID, o.state, filepath.Join(o.runDir, "s"), o.agent
	cfg.Capacity, cfg.Ports, cfg.Cores, cfg.Registry = o.capacity, o.ports, o.cores, n.Registry
	cfg.IdleAfter, cfg.StartTimeout, cfg.DrainTimeout = o.idleAfter, o.startTimeout, o.drain
	cfg.KeepaliveMin, cfg.KeepaliveMax, cfg.FreezeAfter = o.keepaliveMin, o.keepaliveMax, o.freezeAfter
	cfg.ImageKeep = o.imageKeep
	cfg.PoolMin, cfg.PoolMax, cfg.PoolCreates = o.poolMin, o.poolMax, o.poolCreates
	broker := &node.HTTPBroker{Dial: func(ctx context.Context) (net.Conn, error) {
		return dialBroker(ctx, n.Broker, o.brokerSocket, pki.ClientConfig(identity, pki.RoleKeyBroker, pki.AnyID))
	}}
	near := make(chan struct{})
	go func() { defer close(near); broker.KeepNear(life) }()
	defer func() { end(); <-near }()
	o.trace.Instance, o.trace.Version = n.ID, version
	tracer, err := tracing.Open(ctx, o.trace)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tracer.Close()) }()
	deps := node.Deps{
		Trace:   tracer,
		Runtime: rt, Log: log, Registerer: reg, Free: func() (api.Resources, error) { m, err := fs.Machine(); return m.Free, err },
		Broker:     broker,
		Bundles:    image.NewBlobs("https://"+n.Registry, toRegistry),
		Collectors: []node.Collector{evidence}, MeasureAgent: evidence.measure,
		Kernel: rt.Features, Left: fs.Left,
		Pressure: func() (node.Pressure, bool, error) { return pressure(fs) },
		Anomaly:  anomalies,
		Watching: node.Watching{Monitor: &o.watch, Cgroups: fs, Dir: anomalies.Path, Key: anomalies.Key},
	}
	if err := lendScratch(ctx, o, &deps); err != nil {
		return err
	}
	if err := lendCores(o, fs, &deps); err != nil {
		return err
	}
	closeNetwork, err := lendNetwork(ctx, o, &deps)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeNetwork()) }()
	if o.imagePolicy != "" {
		policy, err := image.LoadPolicy(o.imagePolicy)
		if err != nil {
			return err
		}
		deps.ImagePolicy = image.NewVerifier(policy, n.Registry, image.NewBlobs("https://"+n.Registry, toRegistry), time.Now)
	}
	// The mesh is told what is really lent.
	if o.capacity, err = node.Lends(cfg, deps.Fittings); err != nil {
		return err
	}
	mesh, err := joinMesh(ctx, o, n, log)
	if err != nil {
		return err
	}
	defer mesh.Close()
	known.mesh.Store(mesh)
	deps.Mesh = mesh
	nd, err := node.New(cfg, deps)
	if err != nil {
		return err
	}
	if err := nd.Start(ctx); err != nil {
		return err
	}
	defer nd.Close()

	server := daemon.Server(nd.Handler(), log)
	server.Concurrency = 1 << 16
	ln, err := daemon.Listen(o.listen, pki.ServerConfig(identity, pki.RoleCoordinator))
	if err != nil {
		return err
	}
	g := daemon.NewGroup(life, log)
	g.Go("api", func(ctx context.Context) error { return daemon.Serve(ctx, server, ln, 5*time.Second) })
	if o.localSocket != "" {
		socket, err := daemon.ListenUnix(o.localSocket, nil)
		if err != nil {
			g.Stop()
			return errors.Join(err, g.Wait())
		}
		local := samehost.NewListener(socket, pki.ServerConfig(identity, pki.RoleCoordinator))
		server := daemon.Server(nd.Handler(), log)
		server.Concurrency = 1 << 16
		g.Go("local api", func(ctx context.Context) error { return daemon.Serve(ctx, server, local, 5*time.Second) })
	}
	if o.gateway != "" {
		gatewayLn, err := daemon.Listen(o.gateway, nil)
		if err != nil {
			g.Stop()
			return errors.Join(err, g.Wait())
		}
		serve, failed := nd.Gateway()
		server := daemon.Server(serve, log)
		server.ErrorHandler, server.Concurrency = failed, maxCallers
		g.Go("gateway", func(ctx context.Context) error { return daemon.Serve(ctx, server, gatewayLn, 5*time.Second) })
	}
	if o.opsListen != "" {
		opsLn, err := daemon.Listen(o.opsListen, nil)
		if err != nil {
			g.Stop()
			return errors.Join(err, g.Wait())
		}
		g.Go("ops", func(ctx context.Context) error {
			return daemon.Serve(ctx, daemon.Server(daemon.Ops(reg, nd.Ready), log), opsLn, time.Second)
		})
	}
	g.Go("peers", func(ctx context.Context) error { return enrol.FollowPeers(ctx, mesh, o.state, log) })
	g.Go("certificate", func(ctx context.Context) error {
		return identity.KeepRenewed(ctx, enrol.Renewer(identity, known.addresses))
	})
	log.Info("node serves", "listen", o.listen, "capacity", o.capacity, "version", version)

	select {
	case <-ctx.Done():
	case <-g.Failed():
	}
	// Refuse first, tell the mesh, and let what runs finish; coordinators go to
	// other nodes meanwhile.
	log.Info("node drains")
	nd.Drain(life)
	leave, cancel := context.WithTimeout(life, 3*time.Second)
	defer cancel()
	if lerr := mesh.Leave(leave); lerr != nil {
		log.Warn("leave the mesh", "err", lerr)
	}
	g.Stop()
	return g.Wait()
}

// dialBroker opens a mutual TLS connection to the key broker. Over its socket on
// this machine the handshake is all there is of TLS.
func dialBroker(ctx context.Context, addr, socket string, config *tls.Config) (net.Conn, error) {
	if socket != "" {
		if conn, err := samehost.Dial(ctx, socket, config); err == nil {
			return conn, nil
		}
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	t := tls.Client(nbio.Wrap(conn), config)
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return t, nil
}

// joinMesh starts gossip.
func joinMesh(ctx context.Context, o options, n enrol.Node, log *slog.Logger) (*gossip.Mesh, error) {
	cfg := gossip.DefaultLAN()
	cfg.Meta = api.NodeMeta{
		ID: n.ID, Addr: o.advertise, Roles: []string{api.RoleNode}, Arch: goruntime.GOARCH,
		Labels: o.labelMap, Tier: attest.TypeNodeKey, Capacity: o.capacity,
	}
	if id := daemon.BootID(); o.localSocket != "" && id != "" {
		cfg.Meta.Local = api.LocalAddr(id, o.localSocket)
	}
	cfg.Bind, cfg.Advertise, cfg.Label = o.gossipListen, o.gossipAdvertise, n.Cluster
	cfg.Seeds = enrol.KnownPeers(o.state, n.Seeds, log)
	for _, k := range n.GossipKeys {
		key, err := gossip.ParseKey(k)
		if err != nil {
			return nil, fmt.Errorf("node file: gossip key: %w", err)
		}
		cfg.Keys = append(cfg.Keys, key)
	}
	m, err := gossip.Join(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("gossip: %w", err)
	}
	log.Info("gossip", "address", m.Addr().String(), "seeds", cfg.Seeds)
	return m, nil
}
