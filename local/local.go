// Package local runs a whole cluster on one machine: a private containerd, the
// key broker, the manifest opener, the coordinator and any number of nodes, each its own process
// with its own state, exactly the binaries that a cluster of machines runs.
//
// It promises that Run returns only when every process, mount, cgroup and
// socket that it caused is gone. A part that dies is started again; one that
// keeps dying ends the cluster with what it last said.
package local

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/coordinator/openfaas"
	"github.com/faasd-sec/faasd-sec/enrol"
	"github.com/faasd-sec/faasd-sec/manifest/ask"
	"github.com/faasd-sec/faasd-sec/pki"
	"github.com/faasd-sec/faasd-sec/runtime/containerd/daemon"
)

// Config sets up a cluster.
type Config struct {
	Nodes int // at least 1
	// Coordinators are how many share one store, 1 to 7 and odd; 0 is 1. The
	// first listens at Listen, the others on free ports of its host.
	Coordinators int
	State        string // everything that should survive; "" is a temporary directory, removed at the end
	Listen       string // the gateway, host:port; port 0 chooses one
	Bin          string // directory of the binaries
	Containerd   string // socket of a containerd to use; "" starts a private one
	CPU          string // lent to functions by each node, such as "2" (default: all nodes together four times the cores)
	Memory       string // lent to functions by each node, such as "2Gi" (default: all nodes together three quarters of the machine's)
	IdleAfter    time.Duration
	NodeArgs     []string // more flags for each node, after the cluster's own
	Args         []string // more flags for the coordinator, likewise
	Labels       []string // of each node in order, as the node's -labels; those without have none
	Gateways     bool     // each node serves callers directly as well, on a free port of loopback
	Log          *slog.Logger
}

// Cluster is a running cluster.
type Cluster struct {
	cfg     Config
	state   string
	run     string // short directory below /run
	temp    bool
	lock    *os.File // of state, held as long as the cluster is up
	log     *slog.Logger
	gateway string
	direct  map[int]string // gateways of nodes
	ports   ports
	procs   []*process
	ctrd    *daemon.Daemon
	socket  string
	broker  api.BrokerInfo

	manifest api.ManifestKeys
	drawn    map[string]bool    // ports that are somebody's, listening or not yet
	peers    []string           // addresses of the coordinators' stores, where there are several
	others   []coordinatorPorts // of the second coordinator and those after it
}

// ports are the addresses of the parts, all on loopback.
type ports struct {
	gateway, cluster, gossip, ops, broker, brokerOps string

	peer string // of the first coordinator's store, where it has others
}

// Gateway is the URL for callers and owners.
func (c *Cluster) Gateway() string { return "http://" + c.gateway }

// NodeGateway is the URL at which node i, counted from 1, serves callers
// directly, "" where it does not.
func (c *Cluster) NodeGateway(i int) string { return c.direct[i] }

// Broker is the public identity of the cluster's key broker.
func (c *Cluster) Broker() api.BrokerInfo { return c.broker }

// ManifestKeys are the keys of the cluster's manifest opener.
func (c *Cluster) ManifestKeys() api.ManifestKeys { return c.manifest }

// State is the directory of all state.
func (c *Cluster) State() string { return c.state }

// BasicAuth is the directory of the OpenFaaS API's user and password.
func (c *Cluster) BasicAuth() string { return filepath.Join(c.state, "basic-auth") }

// Start brings the cluster up and returns when it takes invocations. Stop must
// be called afterwards; on an error nothing is left.
func Start(ctx context.Context, cfg Config) (_ *Cluster, retErr error) {
	c := &Cluster{cfg: cfg, log: cfg.Log, direct: map[int]string{}}
	if err := c.check(); err != nil {
		return nil, err
	}
	defer func() {
		if retErr != nil {
			sctx, cancel := stopContext()
			defer cancel()
			retErr = errors.Join(retErr, c.Stop(sctx))
		}
	}()
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"state directory", c.prepare},
		{"containerd", c.startContainerd},
		{"key broker", c.startBroker},
		{"manifest opener", c.startOpener},
		{"coordinator", c.startCoordinator},
		{"coordinators", c.startOthers},
		{"nodes", c.startNodes},
		{"readiness", c.waitReady},
	} {
		began := time.Now()
		if err := step.do(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", step.what, err)
		}
		c.log.Debug("up", "step", step.what, "took", time.Since(began))
	}
	return c, nil
}

func stopContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 90*time.Second)
}

// prepare makes directories, the cluster's authority and keys.
func (c *Cluster) prepare(context.Context) error {
	c.state = c.cfg.State
	if c.state == "" {
		dir, err := os.MkdirTemp("", "faasd-sec-")
		if err != nil {
			return err
		}
		c.state, c.temp = dir, true
	}
	var err error
	if c.state, err = filepath.Abs(c.state); err != nil {
		return err
	}
	if err := os.MkdirAll(c.logs(), 0o700); err != nil {
		return &api.Error{Code: api.CodeInvalid, Field: "state", Err: err, Message: "cannot make the state directory", Remedy: "choose another"}
	}
	// Before anything of an earlier run is ended: it may be a cluster that runs.
	if err := c.lockState(); err != nil {
		return err
	}
	// Sandboxes pass through these directories under ids of their own.
	sum := sha256.Sum256([]byte(c.state))
	c.run = filepath.Join("/run/faasd-sec", hex.EncodeToString(sum[:4]))
	if err := os.MkdirAll(c.run, 0o711); err != nil {
		return err
	}
	if err := c.stopStale(); err != nil {
		return err
	}
	dir := filepath.Join(c.state, "coordinator")
	if err := openfaas.EnsureCredentials(c.BasicAuth()); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, enrol.ClusterFile)); errors.Is(err, os.ErrNotExist) {
		if _, err := enrol.Init(dir, []string{"any"}, rand.Reader); err != nil {
			return err
		}
	}
	return c.choosePorts()
}

func (c *Cluster) logs() string         { return filepath.Join(c.state, "logs") }
func (c *Cluster) bin(b string) string  { return filepath.Join(c.cfg.Bin, b) }
func (c *Cluster) node(i int) string    { return filepath.Join(c.state, "node-"+strconv.Itoa(i)) }
func (c *Cluster) caDir() string        { return filepath.Join(c.state, "coordinator", enrol.CADir) }
func (c *Cluster) brokerDir() string    { return filepath.Join(c.state, "keybroker") }
func (c *Cluster) nodeID(i int) string  { return "node-" + strconv.Itoa(i) }
func (c *Cluster) nodeRun(i int) string { return filepath.Join(c.run, "n"+strconv.Itoa(i)) }
func (c *Cluster) brokerTLS() string    { return filepath.Join(c.brokerDir(), "tls.pem") }
func (c *Cluster) brokerSocket() string { return filepath.Join(c.run, "keybroker.sock") }
func (c *Cluster) openerSocket() string { return filepath.Join(c.run, "opener", "socket") }
func (c *Cluster) namespace(i int) string {
	return filepath.Base(c.run) + "-n" + strconv.Itoa(i)
}

// choosePorts finds free ones for every part, those first that are given.
func (c *Cluster) choosePorts() error {
	if err := c.keepPeers(); err != nil {
		return err
	}
	var err error
	if c.ports.gateway, err = c.listenable(c.cfg.Listen); err != nil {
		return &api.Error{Code: api.CodeConflict, Field: "listen", Err: err,
			Message: c.cfg.Listen + " cannot be listened on", Remedy: "choose another with --listen"}
	}
	c.gateway = c.ports.gateway
	for _, at := range []*string{&c.ports.cluster, &c.ports.gossip, &c.ports.ops, &c.ports.broker, &c.ports.brokerOps} {
		if *at, err = c.port("127.0.0.1"); err != nil {
			return err
		}
	}
	return c.chooseOthers()
}

// listenable is addr, or one of its host with a free port where its port is 0.
func (c *Cluster) listenable(addr string) (string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr, err
	}
	if port == "0" {
		return c.port(host)
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return addr, err
	}
	if !c.draw(addr) {
		err = errors.New("a coordinator's store has that port")
	}
	return addr, errors.Join(err, ln.Close())
}

// port is a free address of host whose port none of this cluster's parts was given.
func (c *Cluster) port(host string) (string, error) {
	for {
		addr, err := freePort(host)
		if err != nil || c.draw(addr) {
			return addr, err
		}
	}
}

// draw gives an address's port to a part, unless one has it, on whichever host:
// a wildcard address has that of every other.
func (c *Cluster) draw(addr string) bool {
	_, port, err := net.SplitHostPort(addr)
	if err != nil || c.drawn[port] {
		return false
	}
	if c.drawn == nil {
		c.drawn = map[string]bool{}
	}
	c.drawn[port] = true
	return true
}

// freePort is an address of host that nobody has, for TCP and UDP. It is below
// the ports that the kernel gives to connections: one of those could be taken by
// a connection of the cluster itself before its listener is there.
func freePort(host string) (string, error) {
	const low, high, tries = 20000, 32768, 64
	var last error
	for range tries {
		addr := net.JoinHostPort(host, strconv.Itoa(low+mathrand.IntN(high-low)))
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			last = err
			continue
		}
		pc, err := net.ListenPacket("udp", addr)
		if err == nil {
			err = pc.Close()
		}
		if last = errors.Join(err, ln.Close()); last == nil {
			return addr, nil
		}
	}
	return "", fmt.Errorf("no free port in %d tries: %w", tries, last)
}

func (c *Cluster) startContainerd(ctx context.Context) error {
	if c.cfg.Containerd != "" {
		c.socket = c.cfg.Containerd
		return nil
	}
	cfg := daemon.Default(filepath.Join(c.state, "containerd"))
	cfg.Socket, cfg.Log = filepath.Join(c.run, "containerd.sock"), c.log
	d, err := daemon.Start(ctx, cfg)
	if err != nil {
		return err
	}
	c.ctrd, c.socket = d, d.Address()
	return nil
}

func (c *Cluster) startBroker(ctx context.Context) error {
	ca, err := pki.Load(c.caDir())
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.brokerDir(), 0o700); err != nil {
		return err
	}
	if _, err := pki.EnsureIdentity(c.brokerTLS(), ca, pki.RoleKeyBroker, "keybroker", pki.MaxTTL, c.log); err != nil {
		return err
	}
	// On one's own machine there is nobody to keep the passphrase from who
	// could not read the broker's memory as well; the flag's name says so.
	return c.spawn(ctx, "keybroker", "http://"+c.ports.brokerOps+"/readyz", c.bin("keybroker"),
		"--listen", c.ports.broker, "--local-socket", c.brokerSocket(), "--metrics-listen", c.ports.brokerOps,
		"--state-dir", c.brokerDir(), "--tls-identity", c.brokerTLS(), "--insecure-passphrase")
}

// callbacks allow those to this machine where only this machine can call: who is
// there reaches its own ports anyway.
func (c *Cluster) callbacks() []string {
	host, _, err := net.SplitHostPort(c.ports.gateway)
	if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
		return nil
	}
	return []string{"-callback-allow", "127.0.0.0/8,::1/128"}
}

func (c *Cluster) startCoordinator(ctx context.Context) error {
	args := []string{
		"-state", filepath.Join(c.state, "coordinator"), "-listen", c.ports.gateway,
		"-cluster-listen", c.ports.cluster, "-gossip-listen", c.ports.gossip,
		"-ops-listen", c.ports.ops, "-broker", c.ports.broker,
		"-manifest-opener", c.openerSocket(), "-basic-auth-dir", c.BasicAuth()}
	if c.ports.peer != "" {
		args = append(args, "-peer-listen", c.ports.peer)
	}
	args = append(args, c.callbacks()...)
	args = append(args, c.cfg.Args...)
	first, err := c.launch("coordinator", serves(c.ports.ops), c.bin("coordinator"), args...)
	if err != nil {
		return err
	}
	if c.haveJoined() {
		return nil // one alone is no majority: it serves once the others are there
	}
	return c.served(ctx, first)
}

// startOpener starts what opens manifests. As for the broker, on one's own machine
// the passphrase lies beside the keys.
func (c *Cluster) startOpener(ctx context.Context) error {
	return c.spawnWith(ctx, "manifest-opener", c.openerServes, c.bin("manifest-opener"),
		"-socket", c.openerSocket(), "-state-dir", filepath.Join(c.state, "manifest-opener"), "-insecure-passphrase", "-allow-swap")
}

// openerServes asks for the keys, as the coordinator will.
func (c *Cluster) openerServes(ctx context.Context) error {
	a, err := ask.New(ask.DefaultConfig(c.openerSocket()))
	if err != nil {
		return err
	}
	_, err = a.Info(ctx)
	return errors.Join(err, a.Close())
}

func (c *Cluster) startNodes(ctx context.Context) error {
	for i := 1; i <= c.cfg.Nodes; i++ {
		if err := c.startNode(ctx, i); err != nil {
			return fmt.Errorf("%s: %w", c.nodeID(i), err)
		}
	}
	return nil
}

// startNode joins node i, as any machine would, with a token of its own.
func (c *Cluster) startNode(ctx context.Context, i int) error {
	dir := c.node(i)
	var n enrol.Node
	if err := enrol.Load(dir, enrol.NodeFile, "", &n); err != nil {
		token, err := enrol.RequestToken(ctx, filepath.Join(c.state, "coordinator"), pki.RoleNode, 1, time.Minute)
		if err != nil {
			return err
		}
		if n, err = enrol.Join(ctx, c.ports.cluster, token, c.nodeID(i), dir); err != nil {
			return err
		}
	}
	// Ports differ from one run to the next.
	if err := os.Remove(filepath.Join(dir, enrol.PeersFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	n.Coordinator, n.Registry, n.Broker, n.Seeds = c.ports.cluster, c.ports.cluster, c.ports.broker, []string{c.ports.gossip}
	if err := enrol.Save(dir, enrol.NodeFile, n); err != nil {
		return err
	}
	var addr [3]string
	for k := range addr {
		p, err := c.port("127.0.0.1")
		if err != nil {
			return err
		}
		addr[k] = p
	}
	cpu, memory, err := c.share()
	if err != nil {
		return err
	}
	args := []string{
		"-state", dir, "-run", c.nodeRun(i), "-agent", c.bin("agent"), "-listen", addr[0], "-gossip-listen", addr[1],
		"-ops-listen", addr[2], "-local-socket", c.nodeRun(i) + ".sock",
		"-broker-socket", c.brokerSocket(), "-containerd", c.socket, "-containerd-namespace", c.namespace(i),
		"-capacity-cpu", cpu, "-capacity-memory", memory,
	}
	if c.cfg.Gateways {
		p, err := c.port("127.0.0.1")
		if err != nil {
			return err
		}
		args = append(args, "-gateway", p)
		c.direct[i] = "http://" + p
	}
	if c.cfg.IdleAfter > 0 {
		args = append(args, "-idle-after", c.cfg.IdleAfter.String())
	}
	if i <= len(c.cfg.Labels) {
		args = append(args, "-labels", c.cfg.Labels[i-1])
	}
	args = append(args, c.cfg.NodeArgs...)
	return c.spawn(ctx, c.nodeID(i), "http://"+addr[2]+"/healthz", c.bin("node"), args...)
}

// LastLines returns the end of a part's log, for error messages.
func (c *Cluster) lastLines(name string) string {
	f, err := os.Open(filepath.Join(c.logs(), name+".log"))
	if err != nil {
		return ""
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > 2048 {
		if _, err := f.Seek(-2048, io.SeekEnd); err != nil {
			return ""
		}
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return ""
	}
	return string(b)
}
