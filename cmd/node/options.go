package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/cgroups"
	"github.com/faasd-sec/faasd-sec/daemon"
	"github.com/faasd-sec/faasd-sec/image"
	"github.com/faasd-sec/faasd-sec/monitor"
	"github.com/faasd-sec/faasd-sec/node"
	"github.com/faasd-sec/faasd-sec/tracing"
)

// options are the flags.
type options struct {
	state, runDir, agent          string
	listen, advertise             string
	localSocket, brokerSocket     string
	gateway                       string
	gossipListen, gossipAdvertise string
	opsListen                     string
	containerd, namespace         string
	shim                          string
	cpu, memory                   string
	pids                          int64
	ingress, egress, scratch      string
	networkBridge, networkSubnet  string
	networkAllow, networkNever    string
	portRange, pinCores           string
	labels                        string
	imagePolicy                   string
	idleAfter, startTimeout       time.Duration
	freezeAfter, imageKeep        time.Duration
	keepaliveMin, keepaliveMax    time.Duration
	poolMin, poolMax, poolCreates int
	drain                         time.Duration
	registryAuth                  image.AuthFile
	insecure                      []string // registries without TLS
	logFormat, logLevel           string
	trace                         tracing.Config
	showVersion                   bool

	watch    monitor.Config
	capacity api.Resources
	ports    node.PortRange
	cores    cgroups.CPUs
	labelMap map[string]string
}

// Version implements daemon.Options.
func (o options) Version() bool { return o.showVersion }

func parse(args []string) (options, error) {
	var o options
	d := node.DefaultConfig()
	fs := flag.NewFlagSet("node", flag.ContinueOnError)
	fs.StringVar(&o.state, "state", "/var/lib/faasd-sec/node", "state `directory`, made by `faasd-sec node join`")
	fs.StringVar(&o.runDir, "run", "/run/faasd-sec/node", "`directory` of sockets and mounts; short, cleared by a reboot")
	fs.StringVar(&o.agent, "agent", "", "the agent `binary` (default: agent beside this binary)")
	fs.StringVar(&o.listen, "listen", "0.0.0.0:7480", "`address` of the mutual-TLS API for coordinators")
	fs.StringVar(&o.advertise, "advertise", "", "`host:port` under which coordinators reach -listen (default: -listen, where that is one address)")
	fs.StringVar(&o.localSocket, "local-socket", "", "unix `socket` of the same API for a coordinator on this machine; empty for none")
	fs.StringVar(&o.brokerSocket, "broker-socket", "", "unix `socket` of a key broker on this machine (keybroker --local-socket), tried before its address; empty for none")
	fs.StringVar(&o.gateway, "gateway", "", "`address` of a gateway for callers of functions hosted here, such as 127.0.0.1:8081; plain HTTP, as a coordinator's is: on loopback, or behind a proxy with TLS; empty for none")
	fs.StringVar(&o.gossipListen, "gossip-listen", "0.0.0.0:7946", "`ip:port` of the gossip mesh, TCP and UDP")
	fs.StringVar(&o.gossipAdvertise, "gossip-advertise", "", "`ip:port` under which members reach -gossip-listen (default: the same)")
	fs.StringVar(&o.opsListen, "ops-listen", "127.0.0.1:7481", "`address` of /metrics, /healthz and /readyz; empty for none")
	fs.StringVar(&o.containerd, "containerd", "/run/containerd/containerd.sock", "`socket` of containerd")
	fs.StringVar(&o.namespace, "containerd-namespace", "faasd-sec", "containerd `namespace` of this node alone")
	fs.StringVar(&o.shim, "shim", shimAuto, "what makes sandboxes: `own`, runc, or auto for own where it lies beside this binary and the machine has cgroup v1")
	fs.StringVar(&o.cpu, "capacity-cpu", "", "CPU lent to functions, such as 8 or 7500m (default: four times the cores; limits are rarely used up at once)")
	fs.StringVar(&o.memory, "capacity-memory", "", "memory lent to functions, such as 12Gi (default: three quarters of the machine's)")
	fs.Int64Var(&o.pids, "capacity-pids", 16384, "processes and threads lent to functions")
	fs.StringVar(&o.ingress, "ingress", "", "bandwidth lent to functions into this machine, in bit/s, such as 500M or 2G; empty for none")
	fs.StringVar(&o.egress, "egress", "", "and out of it; empty for none")
	fs.StringVar(&o.scratch, "scratch", "", "room on disk lent to functions, such as 50Gi; empty for none")
	fs.StringVar(&o.portRange, "port-range", "", "ports of this machine lent to functions, TCP and UDP, such as `30000-30999`; empty for none")
	fs.StringVar(&o.pinCores, "pin-cores", "", "cores of this machine lent to tasks that ask for cores of their own, such as `2-3`; empty for none")
	fs.StringVar(&o.networkBridge, "network-bridge", "fsec0", "`name` of the bridge that functions with a network are on")
	fs.StringVar(&o.networkSubnet, "network-subnet", "10.213.0.0/16", "`addresses` of functions with a network")
	fs.StringVar(&o.networkAllow, "network-allow", "", "what such functions may open, `10.0.0.0/8:443/tcp,…`; empty for nothing: they answer on their ports alone")
	fs.StringVar(&o.networkNever, "network-never", "", "what they never reach, whatever is allowed, `10.1.0.0/16,…`: the other machines of the cluster")
	fs.StringVar(&o.imagePolicy, "image-policy", "", "`file` that says whose signed images may run here, docs/images.md; empty for all that owners name")
	fs.StringVar(&o.labels, "labels", "", "labels for placement, `k=v,k=v`")
	fs.DurationVar(&o.idleAfter, "idle-after", 0, "stop a sandbox unused for so long, where neither the function nor its past says (default 5m)")
	fs.DurationVar(&o.keepaliveMin, "keepalive-min", 0, "the shortest such time that a function's past can lead to (default 1m, or -idle-after if shorter)")
	fs.DurationVar(&o.keepaliveMax, "keepalive-max", 0, "the longest one (default 30m, or -idle-after if longer)")
	fs.DurationVar(&o.freezeAfter, "freeze-after", d.FreezeAfter, "freeze a sandbox unused for so long until the next call; 0 for never")
	fs.DurationVar(&o.imageKeep, "image-keep", d.ImageKeep, "let an image go that no revision on this node has used for so long; 0 for never")
	fs.IntVar(&o.poolMin, "pool-min", d.PoolMin, "sandboxes kept ready without a function at the least")
	fs.IntVar(&o.poolMax, "pool-max", d.PoolMax, "and at the most; 0 for no pool")
	fs.IntVar(&o.poolCreates, "pool-creates", d.PoolCreates, "sandboxes of the pool made at once")
	fs.DurationVar(&o.startTimeout, "start-timeout", 0, "longest cold start, image pull included (default 1m)")
	fs.DurationVar(&o.drain, "drain-timeout", 0, "longest wait for invocations when told to stop (default 30s)")
	watchFlags(fs, &o.watch)
	o.trace = tracing.Default("node")
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
		return o, fmt.Errorf("unexpected argument %q: node takes flags only", fs.Arg(0))
	}
	if o.showVersion {
		return o, nil
	}
	return o, o.resolve()
}

// resolve fills in what depends on the machine.
func (o *options) resolve() error {
	if o.agent == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find the agent beside this binary: %w", err)
		}
		o.agent = filepath.Join(filepath.Dir(self), "agent")
	}
	if o.advertise == "" {
		o.advertise = o.listen
	}
	if daemon.Everywhere(o.advertise) {
		return api.Invalid("advertise", "give -advertise HOST:PORT, the address at which coordinators reach -listen", fmt.Sprintf("%q is every address of a machine, and so that of whoever asks", o.advertise))
	}
	var err error
	if o.shim, err = shimFor(o.shim); err != nil {
		return err
	}
	o.capacity.CPU = int64(goruntime.NumCPU()) * 4000
	if o.cpu != "" {
		if o.capacity.CPU, err = api.ParseCPU("capacity-cpu", o.cpu); err != nil {
			return err
		}
	}
	if o.memory != "" {
		if o.capacity.Memory, err = api.ParseBytes("capacity-memory", o.memory); err != nil {
			return err
		}
	} else if o.capacity.Memory, err = threeQuarters(); err != nil {
		return err
	}
	if o.capacity.Ingress, err = parseBits("ingress", o.ingress); err != nil {
		return err
	}
	if o.capacity.Egress, err = parseBits("egress", o.egress); err != nil {
		return err
	}
	if o.scratch != "" {
		if o.capacity.Scratch, err = api.ParseBytes("scratch", o.scratch); err != nil {
			return err
		}
	}
	if o.ports, err = node.ParsePortRange(o.portRange); err != nil {
		return err
	}
	o.capacity.Ports = 2 * int64(o.ports.Len()) // of each protocol
	if o.cores, err = cgroups.ParseCPUs("pin-cores", o.pinCores); err != nil {
		return err
	}
	o.capacity.Cores = int64(len(o.cores))
	if o.poolMax == 0 {
		o.poolMin = 0
	}
	if o.poolCreates < 1 {
		return api.Invalid("pool-creates", "use 1 or more, or -pool-max 0 for no pool", fmt.Sprintf("%d", o.poolCreates))
	}
	o.capacity.PIDs = o.pids
	o.labelMap = map[string]string{}
	for _, kv := range strings.Split(o.labels, ",") {
		if kv == "" {
			continue
		}
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			return api.Invalid("labels", "write k=v,k=v", fmt.Sprintf("%q has no key and value", kv))
		}
		if _, twice := o.labelMap[k]; twice {
			return api.Invalid("labels", "give each label one value", fmt.Sprintf("%q is there twice", k))
		}
		o.labelMap[k] = v
	}
	return nil
}

// parseBits reads a bandwidth, "500M" or "1000000", in bit/s; "" is none. Units
// are decimal, as those of networks are.
func parseBits(field, s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	if strings.ContainsAny(s, "i") {
		return 0, api.Invalid(field, `write bit/s with an optional unit k, M or G, as in "500M"`, fmt.Sprintf("%q is not a bandwidth", s))
	}
	v, err := api.ParseBytes(field, s)
	if err != nil {
		return 0, api.Invalid(field, `write bit/s with an optional unit k, M or G, as in "500M"`, fmt.Sprintf("%q is not a bandwidth", s))
	}
	return v, nil
}

// threeQuarters of the machine's memory.
func threeQuarters() (int64, error) {
	fs, err := cgroups.Open()
	if err != nil {
		return 0, fmt.Errorf("cgroups: %w", err)
	}
	m, err := fs.Machine()
	if err != nil {
		return 0, fmt.Errorf("%w: set -capacity-memory", err)
	}
	return m.Capacity.Memory / 4 * 3, nil
}
