package main

import (
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/faasd-sec/faasd-sec/daemon"
	"github.com/faasd-sec/faasd-sec/image"
	"github.com/faasd-sec/faasd-sec/tracing"
)

// options are the flags.
type options struct {
	state, id                     string
	listen, clusterListen         string
	clusterAdvertise              string
	gossipListen, gossipAdvertise string
	opsListen                     string
	broker                        string
	etcd                          string
	peerListen, peerAdvertise     string
	peers                         map[string]string
	peerForgetOthers              bool
	join, joinToken               string
	etcdCA, etcdCert, etcdKey     string
	opener                        string
	openerUID                     int
	basicAuth                     string
	queue, queueEach              int
	queueTimeout                  time.Duration
	maxBody                       int64
	held, heldEach                int64
	async                         asyncOptions
	drain                         time.Duration
	trace                         tracing.Config
	registryAuth                  image.AuthFile
	insecure                      []string // registries without TLS
	logFormat, logLevel           string
	showVersion                   bool
}

// Version implements daemon.Options.
func (o options) Version() bool { return o.showVersion }

// several reports whether there are, or may be, other coordinators on the same store.
func (o options) several() bool { return o.peerListen != "" || o.etcd != "" }

func parse(args []string) (options, error) {
	var o options
	fs := flag.NewFlagSet("coordinator", flag.ContinueOnError)
	fs.StringVar(&o.state, "state", "/var/lib/faasd-sec/coordinator", "state `directory`, made by `faasd-sec init`")
	fs.StringVar(&o.id, "id", "coordinator-1", "this coordinator's `name` in certificate and mesh")
	fs.StringVar(&o.listen, "listen", "127.0.0.1:8080", "`address` of the gateway for callers and owners")
	fs.StringVar(&o.clusterListen, "cluster-listen", "0.0.0.0:7443", "`address` of the TLS API for nodes: joining, registry")
	fs.StringVar(&o.clusterAdvertise, "cluster-advertise", "", "`host:port` under which nodes reach -cluster-listen (default: the same)")
	fs.StringVar(&o.gossipListen, "gossip-listen", "0.0.0.0:7945", "`ip:port` of the gossip mesh, TCP and UDP")
	fs.StringVar(&o.gossipAdvertise, "gossip-advertise", "", "`ip:port` under which members reach -gossip-listen (default: the same)")
	fs.StringVar(&o.opsListen, "ops-listen", "127.0.0.1:7444", "`address` of /metrics, /healthz and /readyz; empty for none")
	fs.StringVar(&o.broker, "broker", "127.0.0.1:8084", "`host:port` of the key broker, as nodes reach it too")
	fs.StringVar(&o.etcd, "etcd", "", "`endpoints` of an external etcd, comma separated (default: an embedded one in the state directory)")
	fs.StringVar(&o.etcdCA, "etcd-ca", "", "`file` with the authority of an external etcd's certificates")
	fs.StringVar(&o.etcdCert, "etcd-cert", "", "`file` with this coordinator's certificate for an external etcd")
	fs.StringVar(&o.etcdKey, "etcd-key", "", "`file` with the key of -etcd-cert")
	var peers string
	fs.StringVar(&o.peerListen, "peer-listen", "", "`ip:port` for the stores of other coordinators, mutual TLS; empty: this one is alone")
	fs.StringVar(&o.peerAdvertise, "peer-advertise", "", "`host:port` under which other coordinators reach -peer-listen (default: the same)")
	fs.StringVar(&peers, "peers", "", "all coordinators of a new store, as `ID=HOST:PORT,…`; each with the same authority and cluster file")
	fs.BoolVar(&o.peerForgetOthers, "peer-forget-others", false, "go on alone with this store, when most coordinators are lost for good")
	fs.StringVar(&o.join, "join", "", "`host:port` of a coordinator's -cluster-listen: become another coordinator, once")
	fs.StringVar(&o.joinToken, "join-token", "", "`token` of faasd-sec coordinator token, or @FILE with it")
	fs.StringVar(&o.opener, "manifest-opener", "", "`socket` of this machine's manifest-opener; empty: sealed manifests are refused")
	fs.IntVar(&o.openerUID, "manifest-opener-uid", os.Geteuid(), "user `id` that the manifest-opener must have")
	fs.StringVar(&o.basicAuth, "basic-auth-dir", "", "`directory` with basic-auth-user and basic-auth-password for the OpenFaaS API; empty: that API is off")
	fs.IntVar(&o.queueEach, "queue-each", 0, "of these for the functions of one owner (default three quarters)")
	fs.IntVar(&o.queue, "queue", 0, "invocations that may wait for room (default 1024)")
	fs.DurationVar(&o.queueTimeout, "queue-timeout", 0, "longest wait for room (default 30s)")
	fs.Int64Var(&o.maxBody, "max-body", 0, "largest sealed request in bytes; -1 is without limit (default 4 GiB)")
	fs.Int64Var(&o.held, "held-bytes", 0, "bytes of requests held at once in all; -1 is without limit (default 512 MiB)")
	fs.Int64Var(&o.heldEach, "held-bytes-each", 0, "of these for one address; -1 is without limit, as behind a proxy (default 128 MiB)")
	o.async.flags(fs)
	fs.DurationVar(&o.drain, "drain-timeout", 30*time.Second, "longest wait for invocations when told to stop")
	o.trace = tracing.Default("coordinator")
	tracing.Flags(fs, &o.trace)
	fs.StringVar((*string)(&o.registryAuth), "registry-auth", "", "`file` with credentials for other registries, a config.json as `docker login` writes it; read anew for each image")
	fs.Func("insecure-registry", "`host:port` of a registry that is spoken to without TLS, beside those on the loopback; may be repeated", func(s string) error {
		o.insecure = append(o.insecure, s)
		return nil
	})
	fs.StringVar(&o.logFormat, "log-format", "json", "json or text")
	fs.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	fs.BoolVar(&o.showVersion, "version", false, "print the version and end")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q: coordinator takes flags only", fs.Arg(0))
	}
	if o.showVersion {
		return o, nil
	}
	var err error
	if o.peers, err = parsePeers(peers); err != nil {
		return o, err
	}
	if o.peerAdvertise == "" {
		o.peerAdvertise = o.peerListen
	}
	if o.clusterAdvertise == "" {
		o.clusterAdvertise = o.clusterListen
	}
	if o.gossipAdvertise == "" {
		o.gossipAdvertise = o.gossipListen
	}
	if daemon.Everywhere(o.clusterAdvertise) || daemon.Everywhere(o.gossipAdvertise) {
		return o, fmt.Errorf("-cluster-listen or -gossip-listen is on all addresses: set -cluster-advertise and -gossip-advertise to the address that nodes reach")
	}
	return o, nil
}
