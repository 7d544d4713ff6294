package containerd

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"regexp"
	goruntime "runtime"
	"time"
)

// Config says which containerd to use and where to keep what is ours.
type Config struct {
	Address     string // unix socket of containerd (1.6 or later)
	Namespace   string // containerd namespace, also the name of the cgroup above all sandboxes
	RunDir      string // for mounts and records; in the mount namespace that containerd runs in, and every parent passable by all (o+x)
	LayerDir    string // for layers made here; on a file system that supports idmapped mounts, as disks do, and tmpfs from Linux 6.3 on; "" is RunDir
	Snapshotter string // must hand out overlay or bind mounts
	Shim        string // containerd's name of the runtime, "io.containerd.runc.v2"
	Runc        string // path of the OCI runtime; "" lets the shim find runc

	// Each sandbox has 65536 host user ids. UIDBase is the first id lent; 0
	// claims a span of UIDCount ranges that no other runtime of this machine
	// has, by a lock in UIDLockDir, and the same one again after a restart.
	UIDBase    uint32
	UIDCount   int    // sandboxes that can have a range at the same time
	UIDLockDir string // shared by all runtimes of the machine

	CgroupRoot string // parent cgroup of all namespaces, "/faasd-sec"
	IOPath     string // whose block device Resources.ReadBps and WriteBps limit; "" is RunDir's

	NoBind error // why no sandbox is to be made ahead of its function; nil where the machine can

	Registries map[string]Registry // how to reach a registry, by host[:port]; others are reached over HTTPS, on the loopback over HTTP

	// Credentials are those for registries without a Client of their own; with an empty
	// user the secret is an identity token. nil is anonymous.
	Credentials func(host string) (user, secret string, err error)

	MaxCreates    int           // creates and removals of tasks at the same time; more wait
	MaxPulls      int           // different images fetched from registries at the same time; more wait
	CallTimeout   time.Duration // one call of containerd
	CreateTimeout time.Duration // all of Create
	PullTimeout   time.Duration // all of Pull
	UnwindTimeout time.Duration // cleaning up after a failed Create, and each removal

	Log *slog.Logger
}

// Registry says how to talk to one registry.
type Registry struct {
	Client    *http.Client // nil is http.DefaultClient; give one with the cluster's certificates for mutual TLS
	PlainHTTP bool         // no TLS; for loopback only
}

// Default is the configuration for the containerd at address, with its own
// namespace and runDir.
func Default(address, namespace, runDir string) Config {
	return Config{
		Address: address, Namespace: namespace, RunDir: runDir,
		Snapshotter: "overlayfs", Shim: "io.containerd.runc.v2",
		UIDCount: 1024, UIDLockDir: "/run/faasd-sec-ids",
		CgroupRoot:    "/faasd-sec",
		MaxCreates:    2 * goruntime.NumCPU(),
		MaxPulls:      3,
		CallTimeout:   10 * time.Second,
		CreateTimeout: 30 * time.Second,
		PullTimeout:   5 * time.Minute,
		UnwindTimeout: 20 * time.Second,
		Log:           slog.New(slog.DiscardHandler),
	}
}

var namespaceForm = regexp.MustCompile(`^[A-Za-z0-9]+([-._][A-Za-z0-9]+)*$`)

func (c Config) check() error {
	var errs []error
	need := func(ok bool, field, remedy string) {
		if !ok {
			errs = append(errs, fmt.Errorf("containerd config: %s: %s", field, remedy))
		}
	}
	need(filepath.IsAbs(c.Address), "Address", "give the absolute path of containerd's socket")
	need(namespaceForm.MatchString(c.Namespace) && len(c.Namespace) <= 76, "Namespace", "use letters, digits and single - . _ between them")
	need(filepath.IsAbs(c.RunDir), "RunDir", "give an absolute path")
	need(c.LayerDir == "" || filepath.IsAbs(c.LayerDir), "LayerDir", "give an absolute path, or none")
	need(c.Snapshotter != "" && c.Shim != "", "Snapshotter and Shim", "start from Default")
	need(c.UIDBase%idsPerSandbox == 0, "UIDBase", "give a multiple of 65536, or 0 for a span of its own")
	need(c.UIDCount > 0 && uint64(max(c.UIDBase, firstSpan))+uint64(c.UIDCount)*idsPerSandbox <= lastID, "UIDCount", "the ranges must end below 2^32-65536")
	need(filepath.IsAbs(c.UIDLockDir), "UIDLockDir", "give an absolute path")
	need(filepath.IsAbs(c.CgroupRoot) && filepath.Clean(c.CgroupRoot) != "/", "CgroupRoot", "give a path below the root, such as /faasd-sec")
	need(c.MaxCreates > 0, "MaxCreates", "give at least 1")
	need(c.MaxPulls > 0, "MaxPulls", "give at least 1")
	need(c.CallTimeout > 0 && c.CreateTimeout > 0 && c.PullTimeout > 0 && c.UnwindTimeout > 0, "timeouts", "give more than 0")
	need(c.Log != nil, "Log", "give a logger; slog.DiscardHandler for none")
	return errors.Join(errs...)
}
