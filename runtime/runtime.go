// Package runtime is the contract between a node and whatever makes sandboxes
// for it. runtime/containerd implements it with containerd tasks;
// runtime/runtimetest is the one suite that every implementation passes.
//
// A Runtime promises that a sandbox whose Create returned nil runs under
// exactly the limits asked for, read back from the kernel before its first
// instruction, and that Remove leaves nothing of it behind. It does not
// promise anything about what the agent inside does.
package runtime

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// Spec asks for one sandbox.
type Spec struct {
	ID        string           // unique on the node: 1..64 of [a-z0-9-]
	Function  api.FunctionName // label
	Revision  string           // label, hex digest
	Image     Image            // from Pull
	AgentPath string           // the agent binary on the host, bind-mounted read-only at api.AgentBinary
	AgentEnv  []string         // environment of PID 1, "K=V"
	SocketDir string           // host directory, bind-mounted at api.AgentRunDir. Create gives it, and sockets that are in it already, to the sandbox's root, mode 0700; a socket made later has to be made connectable (mode 0666) by who makes it. It is the caller's if Create fails; Remove and Recover delete it
	Resources api.Resources    // the function's limits; all of CPU, Memory and PIDs are required. With Storage the root is writable, up to so many bytes of memory; without, it is read-only. Scratch and the network's are for the caller to provide
	Tmpfs     []Tmpfs          // beside /tmp, which has Resources.Tmp bytes
	Mounts    []Mount          // directories that the caller made
	UID, GID  int              // the function's ids inside the user namespace, never 0; 0 asks the runtime to take those of the image's USER, or 10001 where that is root
	Reserved  string           // the caller's, at most MaxReserved bytes of UTF-8: kept with the sandbox, and in its Info after a restart
	AllowInet bool             // let the function open AF_INET(6) sockets on its loopback
}

// MaxReserved bounds Spec.Reserved: containerd keeps it in a label.
const MaxReserved = 3 << 10

// BlankSpec asks for a sandbox without a function.
type BlankSpec struct {
	ID        string   // as in Spec
	AgentPath string   // as in Spec
	AgentEnv  []string // as in Spec
	SocketDir string   // as in Spec
}

// Tmpfs is one more memory-backed directory, charged to the memory limit.
type Tmpfs struct {
	Path  string // absolute, in the sandbox
	Bytes int64
	Exec  bool // code may run from it
}

// Mount is a directory that the sandbox gets, such as scratch on a disk: nosuid,
// nodev and noexec, its root directory the function's, mode as it is.
type Mount struct {
	// Tree is a mount that is attached nowhere, of a file system that takes id
	// maps: its files have the ids that they have in the sandbox. It stays the
	// caller's, who closes it once the sandbox was made, so as not to keep it
	// alive. Before Linux 6.15 it is good for one try.
	Tree   *os.File
	Target string // absolute, in the sandbox, and not within another mount of it
}

// ScratchPath is where a sandbox whose Resources have Scratch has a mount point
// for it.
const ScratchPath = "/scratch"

// Mounter is a Sandbox that takes a mount after it was made, and before anything
// of its function runs. The target is ScratchPath, or another directory that was
// there from the start. I/O limits of the sandbox hold for the mount's device.
type Mounter interface {
	Mount(ctx context.Context, m Mount) error
}

// Image is a pulled and unpacked image.
type Image struct {
	Ref    string // name the runtime knows it by
	Digest string // manifest or index digest, "sha256:…"
	Config api.ImageConfig
	Size   int64 // compressed bytes
}

// Runtime makes sandboxes.
type Runtime interface {
	// Pull makes ref available, which must resolve to digest, and keeps it from
	// garbage collection until Forget. Pulling what is there already is cheap
	// and needs no registry.
	Pull(ctx context.Context, ref, digest string) (Image, error)
	// Images lists digests that Pull would answer without a registry, those that
	// came last first.
	Images(ctx context.Context) ([]string, error)
	// Forget lets the image of a digest go, once no sandbox runs it any more.
	// Forgetting what is not there is no error.
	Forget(ctx context.Context, digest string) error
	// Create makes a sandbox, verifies its limits and starts its agent. On an
	// error nothing remains.
	Create(ctx context.Context, spec Spec) (Sandbox, error)
	// CanBind says whether a blank can become a sandbox of img here: nil, or an
	// error that wraps ErrUnsupported and says why in words for people. Then
	// Create is the way.
	CanBind(img Image) error
	// CreateBlank makes a sandbox ahead of its function and starts its agent
	// under the limits of AgentOverhead alone. It holds no image. The caller
	// passes the launcher to AdmitLauncher as soon as it is known, which is when
	// the runtime takes the handles that Bind needs; later Bind, or Remove.
	CreateBlank(ctx context.Context, spec BlankSpec) (Sandbox, error)
	// Recover returns the sandboxes of an earlier life of the daemon that still
	// run, and removes the remains of those that do not, blanks included.
	Recover(ctx context.Context) ([]Sandbox, error)
	// Events delivers what happens to sandboxes until Close. The runtime never
	// blocks on a slow reader longer than it must and drops nothing but repeats.
	Events() <-chan Event
	// Close ends the runtime's goroutines. Sandboxes go on running.
	Close() error
}

// Sandbox is one started sandbox.
type Sandbox interface {
	ID() string
	Info() Info
	// AdmitLauncher moves the process that will become the parent of all of the
	// function's processes into the function's own sub-cgroup. pid is as the
	// host sees it and must be a process of this sandbox.
	AdmitLauncher(ctx context.Context, pid int) error
	// Bind makes a blank whose launcher was admitted a sandbox of spec's function:
	// when it returns nil its limits are written and read back and its root is
	// mounted, and nothing of the function has run. ID, AgentPath, AgentEnv and
	// SocketDir of spec are those of the blank or empty. It is called once; after
	// an error the sandbox can only be removed.
	Bind(ctx context.Context, spec Spec) error
	// Freeze stops every process of the sandbox where it is, Thaw lets them go
	// on. Both are idempotent and return when the kernel has done it. A frozen
	// sandbox can be removed.
	Freeze(ctx context.Context) error
	Thaw(ctx context.Context) error
	// Usage reads the sandbox's counters from the kernel.
	Usage(ctx context.Context) (Usage, error)
	// OOMKills counts OOM kills in the function's sub-cgroup since Create.
	OOMKills(ctx context.Context) (int64, error)
	// Remove ends the sandbox: SIGTERM to the agent, SIGKILL after grace, then
	// everything that belongs to it is deleted. It is idempotent, and can be
	// tried again where it failed. An agent that has not yet come to listening
	// for SIGTERM does not hear it: give no grace to one that never said hello.
	Remove(ctx context.Context, grace time.Duration) error
}

// Info is what stays the same in a sandbox's life, but for Bind, and can be
// recovered.
type Info struct {
	ID        string
	Function  api.FunctionName
	Revision  string
	SocketDir string
	Resources api.Resources
	Reserved  string // as in Spec
	UID, GID  int
	CreatedAt time.Time
	PID       int    // of the agent, as the host sees it
	Start     string // api.StartPooled or api.StartPlain
	Blank     bool   // it has no function yet
}

// Usage are a sandbox's counters.
type Usage struct {
	Memory     int64         // bytes now
	MemoryPeak int64         // bytes at most, 0 where the kernel does not tell
	CPU        time.Duration // in all
	Throttled  time.Duration // time held back by the CPU quota
	PIDs       int64
}

// EventKind says what happened.
type EventKind string

// The kinds of events.
const (
	EventExit      EventKind = "exit"       // PID 1 ended; ExitCode is set
	EventOOM       EventKind = "oom"        // the kernel killed something of the function for its memory limit
	EventPIDsLimit EventKind = "pids_limit" // a fork was refused for the pids limit
)

// Event is one thing that happened to a sandbox.
type Event struct {
	Kind     EventKind
	ID       string
	ExitCode uint32
	At       time.Time
}

// ExitUnknown is the ExitCode of an EventExit where the implementation could
// not learn the real one.
const ExitUnknown = 255

// AgentOverhead is api.AgentOverhead: the runtime adds it to the limits of the
// sandbox's own cgroup.
func AgentOverhead() api.Resources { return api.AgentOverhead() }

// Errors that callers branch on.
var (
	// ErrLimits means that the kernel did not take a limit as asked.
	ErrLimits = errors.New("runtime: limits in the kernel differ from those asked for")
	// ErrGone means that the sandbox no longer runs.
	ErrGone = errors.New("runtime: sandbox is gone")
	// ErrUnsupported means that this host lacks something a sandbox needs.
	ErrUnsupported = errors.New("runtime: host lacks a needed feature")
)
