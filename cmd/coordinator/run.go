package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/faasd-sec/faasd-sec/anomaly/own"
	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/coordinator"
	"github.com/faasd-sec/faasd-sec/daemon"
	"github.com/faasd-sec/faasd-sec/enrol"
	"github.com/faasd-sec/faasd-sec/image"
	"github.com/faasd-sec/faasd-sec/manifest/ask"
	"github.com/faasd-sec/faasd-sec/pki"
	"github.com/faasd-sec/faasd-sec/registry"
	"github.com/faasd-sec/faasd-sec/replica"
	"github.com/faasd-sec/faasd-sec/reqauth"
	"github.com/faasd-sec/faasd-sec/tracing"
)

const (
	initRemedy      = "make the cluster first: faasd-sec init --state DIR"
	coordinatorTTL  = 60 * 24 * time.Hour
	shutdownTimeout = 5 * time.Second
)

// run wires the coordinator's parts and serves until ctx ends.
func run(ctx context.Context, o options) (err error) {
	log, err := daemon.Logger(os.Stderr, o.logFormat, o.logLevel)
	if err != nil {
		return err
	}
	log = log.With("coordinator", o.id)
	if err := joinOthers(ctx, o, log); err != nil {
		return err
	}
	var cl enrol.Cluster
	if err := enrol.Load(o.state, enrol.ClusterFile, initRemedy, &cl); err != nil {
		return err
	}
	ca, err := pki.Load(filepath.Join(o.state, enrol.CADir))
	if err != nil {
		return fmt.Errorf("cluster authority: %w (%s)", err, initRemedy)
	}
	identity, err := pki.EnsureIdentity(filepath.Join(o.state, enrol.IdentityFile), ca, pki.RoleCoordinator, o.id, coordinatorTTL, log)
	if err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	anomalies, err := own.Open(o.state, o.id, identity.Signer, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, anomalies.Finish()) }()
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()

	scfg, member, err := storeConfig(o, ca, log)
	if err != nil {
		return err
	}
	reg := daemon.Registry()
	anomalies.Register(reg)
	st, err := openStore(ctx, o, scfg, reg, log)
	if err != nil && ctx.Err() != nil {
		return nil // told to stop before there was anything
	}
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	cache, err := st.NewCache(ctx)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	rcfg := registry.DefaultConfig(filepath.Join(o.state, "registry"), log)
	rcfg.Authorize = registry.AllowAll // the coordinator asks before it hands a request on
	images, err := registry.Open(rcfg)
	if err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	defer func() { err = errors.Join(err, images.Close()) }()

	mesh, err := joinMesh(ctx, o, cl, anomalies, log)
	if err != nil {
		return err
	}
	defer mesh.Close()
	desk := &enrol.Desk{
		Authority: ca, Tokens: st, Cluster: cl, Address: o.clusterAdvertise, Broker: o.broker,
		Seeds: func() []string { return append([]string{o.gossipAdvertise}, mesh.PeersOf(api.RoleCoordinator)...) },
	}
	if o.peerListen != "" {
		desk.Members = st
	}
	reps := replicas(life, o, images, st, mesh, identity, log)
	defer reps.Close()
	if err := importBootstrap(ctx, desk, o.state); err != nil {
		return err
	}
	cfg := coordinator.DefaultConfig()
	cfg.QueueSize, cfg.QueueTimeout, cfg.MaxBody = o.queue, o.queueTimeout, o.maxBody
	cfg.QueueEach = o.queueEach
	cfg.HeldBytes, cfg.HeldBytesEach = o.held, o.heldEach
	if cfg.Owners, cfg.AnyOwner, err = owners(cl); err != nil {
		return err
	}
	if cfg.OpenFaaS, err = openFaaS(o.basicAuth); err != nil {
		return err
	}
	manifests, err := manifestOpener(o)
	if err != nil {
		return err
	}
	if manifests != nil {
		defer func() { err = errors.Join(err, manifests.Close()) }()
	}
	o.trace.Instance, o.trace.Version = o.id, version
	tracer, err := tracing.Open(ctx, o.trace)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tracer.Close()) }()
	deps := coordinator.Deps{
		Trace: tracer,
		Mesh:  mesh, Store: st, Cache: cache, Nodes: memberDialer{identity, pki.RoleNode, daemon.BootID()}, Enrol: desk, Namespaces: st,
		Broker: &http.Client{Transport: &http.Transport{
			TLSClientConfig: pki.ClientConfig(identity, pki.RoleKeyBroker, pki.AnyID), IdleConnTimeout: time.Minute}},
		BrokerURL: "https://" + o.broker, Registry: reps.Through(images.ServeFastHTTP), Images: reps,
		Majority: st.Majority,
		Resolver: &image.Resolver{Own: ownImages(images, reps), Keychain: o.registryAuth, Insecure: o.insecure},
		Auth:     reqauth.NewVerifier(time.Now), Log: log, Registerer: reg,
		Watching: coordinator.Watching{ID: o.id, Anomalies: anomalies, Dir: anomalies.Path, Key: anomalies.Key},
	}
	deps.Secrets = &coordinator.BrokerSecrets{Client: deps.Broker, URL: deps.BrokerURL}
	if manifests != nil {
		deps.Manifests = manifests
	}
	deps.Lead = func(ctx context.Context, name string, run func(context.Context) error) error {
		return st.Lead(ctx, name, o.id, func(ctx context.Context, _ int64) error { return run(ctx) })
	}
	if o.several() {
		deps.Claims = st
		deps.Others = memberDialer{identity: identity, role: pki.RoleCoordinator}
	}
	if deps.Async, err = asyncParts(ctx, life, o, st, scfg, log); err != nil {
		return err
	}
	co, err := coordinator.New(life, cfg, deps)
	if err != nil {
		return err
	}
	defer co.Close()

	g := daemon.NewGroup(life, log)
	g.Go("function cache", cache.Run)
	g.Go("peers", func(ctx context.Context) error { return enrol.FollowPeers(ctx, mesh, o.state, log) })
	g.Go("certificate", func(ctx context.Context) error {
		return identity.KeepRenewed(ctx, ca.SignFunc(pki.RoleCoordinator, o.id, coordinatorTTL))
	})
	if member != nil {
		g.Go("store's certificate", member.KeepRenewed)
	}
	operator := &admin{life: life, desk: desk, store: st, co: co, log: log}
	others := &clusterSide{life: life, desk: desk, replicas: reps, images: images, waits: co.ServeWaits, demand: co.ServeDemand, log: log}
	if err := serve(g, o, co, operator, others, identity, reg, log); err != nil {
		g.Stop()
		return errors.Join(err, g.Wait())
	}
	log.Info("coordinator serves", "gateway", o.listen, "cluster", o.clusterListen, "version", version)
	select {
	case <-ctx.Done():
	case <-g.Failed():
	case <-st.Stopped():
		err = errRemoved(o.id)
	}
	log.Info("coordinator stops")
	leave, cancel := context.WithTimeout(life, shutdownTimeout)
	defer cancel()
	if lerr := mesh.Leave(leave); lerr != nil {
		log.Warn("leave the mesh", "err", lerr)
	}
	g.Stop()
	return errors.Join(err, g.Wait())
}

// manifestOpener is a client of the opener that the flags name, nil for none.
func manifestOpener(o options) (*ask.Client, error) {
	if o.opener == "" {
		return nil, nil
	}
	cfg := ask.DefaultConfig(o.opener)
	cfg.ServerUID = o.openerUID
	return ask.New(cfg)
}

// ownImages resolves images in the cluster's registry: a tag where it was pushed, a digest
// wherever one of the coordinators has it.
func ownImages(images *registry.Registry, reps *replica.Replicas) func(ctx context.Context, repo, tag string) (string, error) {
	return func(ctx context.Context, repo, tag string) (string, error) {
		digest, err := images.Digest(ctx, repo, tag)
		if err != nil || digest != "" || !strings.HasPrefix(tag, "sha256:") {
			return digest, err
		}
		if there, err := reps.HasManifest(ctx, repo, tag); err != nil || !there {
			return "", err
		}
		return tag, nil
	}
}
