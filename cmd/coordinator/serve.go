package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	goruntime "runtime"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/valyala/fasthttp"
	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/anomaly"
	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/coordinator"
	"github.com/faasd-sec/faasd-sec/daemon"
	"github.com/faasd-sec/faasd-sec/enrol"
	"github.com/faasd-sec/faasd-sec/gossip"
	"github.com/faasd-sec/faasd-sec/nbio"
	"github.com/faasd-sec/faasd-sec/pki"
	"github.com/faasd-sec/faasd-sec/samehost"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// serve opens the coordinator's listeners: the gateway, the cluster's, the
// operator's socket and the one for metrics.
func serve(g *daemon.Group, o options, co *coordinator.Coordinator, operator *admin, others *clusterSide, identity *pki.Identity,
	reg *prometheus.Registry, log *slog.Logger) error {
	gateway := daemon.Server(co.Gateway(), log)
	gateway.ErrorHandler, gateway.ConnState = co.HandleError, co.Replied
	// Each connection may hold a small body before anything is known of its
	// sender: the bound is also one on memory, 2 GiB here.
	gateway.Concurrency = maxCallers
	ln, err := daemon.Listen(o.listen, nil)
	if err != nil {
		return err
	}
	g.Go("gateway", func(ctx context.Context) error { return daemon.Serve(ctx, gateway, ln, o.drain) })

	clusterLn, err := daemon.Listen(o.clusterListen, pki.OptionalPeerConfig(identity, pki.RoleNode, pki.RoleCoordinator))
	if err != nil {
		return err
	}
	cluster := daemon.Server(others.serve(co.Cluster(nodeOf)), log)
	g.Go("cluster", func(ctx context.Context) error { return daemon.Serve(ctx, cluster, clusterLn, shutdownTimeout) })

	// Whoever may use the state directory may use the operator's socket.
	socket, err := daemon.ListenUnix(filepath.Join(o.state, enrol.AdminSocket), nil)
	if err != nil {
		return err
	}
	g.Go("admin", func(ctx context.Context) error {
		return daemon.Serve(ctx, daemon.Server(operator.serve, log), socket, time.Second)
	})
	if o.opsListen == "" {
		return nil
	}
	ops, err := daemon.Listen(o.opsListen, nil)
	if err != nil {
		return err
	}
	g.Go("ops", func(ctx context.Context) error {
		return daemon.Serve(ctx, daemon.Server(daemon.Ops(reg, co.Ready), log), ops, time.Second)
	})
	return nil
}

// nodeOf is the id of the node at the other end, "" where there is none.
func nodeOf(ctx *fasthttp.RequestCtx) string { return peerOf(ctx, pki.RoleNode) }

// peerOf is the id of the one at the other end, "" without a certificate of
// that role.
func peerOf(ctx *fasthttp.RequestCtx, role pki.Role) string {
	cs := ctx.TLSConnectionState()
	if cs == nil || len(cs.PeerCertificates) == 0 {
		return ""
	}
	peer, err := pki.PeerIdentity(cs)
	if err != nil || peer.Role != role {
		return ""
	}
	return peer.ID
}

// memberDialer opens mutual TLS connections to members of one role.
type memberDialer struct {
	identity *pki.Identity
	role     pki.Role
	bootID   string // of this machine; empty: over the network always
}

// DialNode implements coordinator.Dialer: only the member itself completes the
// handshake. A node on this machine is reached over its unix socket, where the
// handshake is all there is of TLS; it stays, since gossip may name any path.
func (d memberDialer) DialNode(ctx context.Context, node api.NodeMeta) (net.Conn, error) {
	config := pki.ClientConfig(d.identity, d.role, node.ID)
	if path, ok := api.LocalPath(node.Local, d.bootID); ok {
		if conn, err := samehost.Dial(ctx, path, config); err == nil {
			return conn, nil
		}
	}
	conn, err := nodeDialing().DialContext(ctx, "tcp", node.Addr)
	if err != nil {
		return nil, err
	}
	t := tls.Client(nbio.Wrap(conn), config)
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return t, nil
}

// silence is how long a machine may leave packets unanswered. Functions may take
// their time over an invocation; the kernel of a machine that is there does not.
const silence = 10 * time.Second

// nodeDialing makes connections break when their other end has been cut off, so
// that invocations there end with node_lost and not at some far deadline.
func nodeDialing() *net.Dialer {
	return &net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: silence / 2, Interval: silence / 5, Count: 3},
		Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			cerr := c.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silence.Milliseconds()))
			})
			return errors.Join(cerr, err)
		},
	}
}

// joinMesh starts gossip for a member that runs nothing.
func joinMesh(ctx context.Context, o options, cl enrol.Cluster, anomalies anomaly.Sink, log *slog.Logger) (*gossip.Mesh, error) {
	cfg := gossip.DefaultLAN()
	cfg.Meta = api.NodeMeta{ID: o.id, Addr: o.clusterAdvertise, Roles: []string{api.RoleCoordinator}, Arch: goruntime.GOARCH}
	cfg.Bind, cfg.Advertise, cfg.Label, cfg.Logger = o.gossipListen, o.gossipAdvertise, cl.ID, log
	cfg.Suspect = func(id string) {
		anomalies.Append(anomaly.Event{Kind: anomaly.HeartbeatMissed, Node: id, Code: "suspect"})
	}
	for _, k := range cl.GossipKeys {
		key, err := gossip.ParseKey(k)
		if err != nil {
			return nil, fmt.Errorf("cluster file: gossip key: %w", err)
		}
		cfg.Keys = append(cfg.Keys, key)
	}
	cfg.Seeds = enrol.KnownPeers(o.state, nil, log)
	m, err := gossip.Join(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("gossip: %w", err)
	}
	return m, nil
}

// maxCallers are the connections that the gateway serves at once.
const maxCallers = 8192

// owners reads who may deploy.
func owners(cl enrol.Cluster) (list []sealed.Fingerprint, anyOwner bool, err error) {
	for _, s := range cl.Owners {
		if s == "any" {
			anyOwner = true
			continue
		}
		f, err := sealed.ParseFingerprint(s)
		if err != nil {
			return nil, false, api.Invalid("owners", "list fingerprints or any in "+enrol.ClusterFile, err.Error())
		}
		list = append(list, f)
	}
	return list, anyOwner, nil
}

// importBootstrap hands the token that init made to the store, once.
func importBootstrap(ctx context.Context, desk *enrol.Desk, state string) error {
	var b enrol.Bootstrap
	err := enrol.Load(state, enrol.BootstrapFile, "", &b)
	if api.CodeOf(err) == api.CodeNotFound {
		return nil
	}
	if err == nil {
		err = desk.Import(ctx, b)
	}
	if err != nil {
		return fmt.Errorf("bootstrap token: %w", err)
	}
	return os.Remove(filepath.Join(state, enrol.BootstrapFile))
}

// etcdTLS is how an external etcd is reached, nil for no TLS.
func etcdTLS(o options) (*tls.Config, error) {
	if o.etcdCA == "" && o.etcdCert == "" && o.etcdKey == "" {
		return nil, nil
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS13}
	if o.etcdCA != "" {
		pem, err := os.ReadFile(o.etcdCA)
		if err != nil {
			return nil, api.Invalid("etcd-ca", "name a PEM file", err.Error())
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, api.Invalid("etcd-ca", "name a PEM file", "it holds no certificate")
		}
	}
	if o.etcdCert != "" || o.etcdKey != "" {
		pair, err := tls.LoadX509KeyPair(o.etcdCert, o.etcdKey)
		if err != nil {
			return nil, api.Invalid("etcd-cert", "name certificate and key, both as PEM", err.Error())
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}
