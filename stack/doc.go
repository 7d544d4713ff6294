// Package stack reads function.yml: the shape of an OpenFaaS stack file with four
// additions inside a function, "sealed", "needs", "scale" and "build".
//
// What it promises: every value was understood. A field it does not know, a
// quantity that does not parse or a value out of range is an error that names
// file, line and column, the field and what to write instead; nothing falls back
// to a default because it could not be read.
//
// What it does not: it reads no file but the one given, and resolves no secret,
// directory or image; whether they exist is found out by who uses them.
package stack

import (
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// Defaults of what function.yml leaves out.
const (
	DefaultCPU         = 500       // millicores
	DefaultMemory      = 128 << 20 // bytes
	DefaultPIDs        = 128       // processes and threads
	DefaultTmp         = 64 << 20  // bytes, part of memory
	DefaultMaxInFlight = 64        // concurrent invocations in one sandbox
	DefaultRead        = 10 * time.Second
	DefaultWrite       = 10 * time.Second
	DefaultExec        = 30 * time.Second
	DefaultStart       = 30 * time.Second
	DefaultUpstream    = "http://127.0.0.1:8080"
	DefaultMode        = "http"
	DefaultBundlePath  = "/function"
	DefaultAttestation = "node-key"

	minPIDs   = 16       // below that no runtime starts
	minMemory = 16 << 20 // bytes
)

// File is a whole function.yml.
type File struct {
	Path      string
	Gateway   string     // provider.gateway, empty if not given
	Functions []Function // in the order of the file
	Warnings  []string   // what is accepted for compatibility and has no effect
}

// Function is one function, with every default filled in.
type Function struct {
	Name  api.FunctionName
	Image string // repository[:tag] in the cluster's registry, or a reference elsewhere
	Dir   string // directory that relative paths start from: the file's own

	Lang        string // informational
	Handler     string // build context, relative to Dir
	Process     []string
	Environment map[string]string
	EnvFiles    []string          // relative to Dir; Environment wins over them
	Secrets     []string          // names
	Labels      map[string]string // in clear, not signed
	Annotations map[string]string // likewise
	Constraints map[string]string // node labels that placement must match
	Resources   api.Resources

	Mode        string // http, serializing or streaming
	Upstream    string // "unix" or "http://127.0.0.1:PORT"
	Bundle      string // directory, relative to Dir; empty for none
	BundlePath  string // where it appears
	Callers     Callers
	Read        time.Duration
	Write       time.Duration
	Exec        time.Duration
	Start       time.Duration
	Idle        time.Duration // until an unused sandbox is stopped; 0 leaves it to the nodes
	MaxQueued   time.Duration // longest age of a queued invocation, 0 refuses them
	MaxInFlight int
	Attestation []string

	Scale *api.Scale // how many replicas; nil: on demand
	Needs *Needs     // nil: tasks get what Resources says
	Plain *api.Plain // nil: it is sealed; only LoadPlain and ParsePlain set it
	Build *Build     // nil: the image is made elsewhere
	Line  int        // where it begins in the file
}

// Callers says who may invoke a function.
type Callers struct {
	Any    bool     // everybody with a key of their own
	Owner  bool     // who deploys it
	Listed []string // fingerprints, 64 hex digits
}

// Build says how faasd-sec build makes the image.
type Build struct {
	From       string // "scratch", "debian:package,package", or an image reference
	Copy       []Copy
	Go         string // directory of a Go main package, relative to Dir; empty for none
	Entrypoint []string
	Cmd        []string
	Env        map[string]string
	WorkDir    string
	User       string
	Labels     map[string]string
}

// Copy puts a file or directory into the image.
type Copy struct {
	Src  string // relative to Dir
	Dst  string // absolute
	Mode uint32 // permission bits, 0 keeps the file's
}
