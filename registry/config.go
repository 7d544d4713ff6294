package registry

import (
	"log/slog"
	"net/http"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// Access is what a request is about to do.
type Access struct {
	Repository string // "" for the version check
	Write      bool   // push or delete, else pull
}

// Authorizer decides about a request before its body is read. Its error is
// answered with the status of its api.Code; one without a code denies. It may
// replace r.Body, to check the body's digest as it is read.
type Authorizer func(r *http.Request, a Access) error

// AllowAll is for a listener that authenticates its clients itself, such as
// one over mutual TLS, and for tests.
func AllowAll(*http.Request, Access) error { return nil }

// Config says where the registry stores and what it takes.
type Config struct {
	// Dir holds everything; it is created with mode 0700. One process uses it.
	Dir string
	// Authorize is asked about every request. It is required.
	Authorize Authorizer

	MaxBlobBytes     int64         // of one blob
	MaxManifestBytes int64         // of one manifest
	MinFreeBytes     int64         // pushes are refused, and broken off, while the disk has less
	MaxUploads       int           // in progress at a time
	UploadIdle       time.Duration // after which an upload in progress may be dropped

	Log *slog.Logger
	Now func() time.Time
}

// DefaultConfig stores in dir. The caller sets Authorize.
func DefaultConfig(dir string, log *slog.Logger) Config {
	return Config{
		Dir:              dir,
		MaxBlobBytes:     4 << 30,
		MaxManifestBytes: 4 << 20,
		MinFreeBytes:     256 << 20,
		MaxUploads:       64,
		UploadIdle:       30 * time.Minute,
		Log:              log,
		Now:              time.Now,
	}
}

func (c Config) check() error {
	switch {
	case c.Dir == "":
		return api.Invalid("registry.dir", "set a directory", "it is empty")
	case c.Authorize == nil:
		return api.Invalid("registry.authorize", "set a decision, or AllowAll where the listener authenticates", "it is missing")
	case c.MaxBlobBytes <= 0 || c.MaxManifestBytes <= 0 || c.MinFreeBytes < 0 || c.MaxUploads <= 0 || c.UploadIdle <= 0:
		return api.Invalid("registry", "start from DefaultConfig", "a limit is not positive")
	case c.Log == nil || c.Now == nil:
		return api.Invalid("registry", "start from DefaultConfig", "no logger or no clock")
	}
	return nil
}
