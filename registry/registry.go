package registry

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/api"
)

// Registry is an open registry. It is safe for use by several goroutines and
// has none of its own.
type Registry struct {
	cfg  Config
	lock *os.File
	free func() (int64, error) // bytes that the disk has left for us

	// gc is held for writing while unreferenced blobs are swept, and for
	// reading by what makes a blob or a manifest visible.
	gc sync.RWMutex

	mu      sync.Mutex // guards uploads
	uploads map[string]*upload
}

var _ http.Handler = (*Registry)(nil)

// Open makes or opens the registry in cfg.Dir. Uploads that an earlier process
// left unfinished are removed. A directory in use gives CodeConflict.
func Open(cfg Config) (*Registry, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	for _, d := range []string{"", "blobs", "repos", "uploads"} {
		if err := os.MkdirAll(filepath.Join(cfg.Dir, d), 0o700); err != nil {
			return nil, fmt.Errorf("open registry: %w", err)
		}
	}
	lock, err := os.OpenFile(filepath.Join(cfg.Dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, &api.Error{Code: api.CodeConflict, Field: "registry.dir", Err: err,
			Message: "another process uses the registry in " + cfg.Dir, Remedy: "stop it, or choose another directory"}
	}
	r := &Registry{cfg: cfg, lock: lock, uploads: map[string]*upload{}}
	r.free = r.freeBytes
	if err := r.clearUploads(); err != nil {
		lock.Close()
		return nil, err
	}
	return r, nil
}

// Close drops uploads in progress and unlocks the directory. The server in
// front must have stopped.
func (r *Registry) Close() error {
	r.mu.Lock()
	left := r.uploads
	r.uploads = nil
	r.mu.Unlock()
	for _, u := range left {
		u.drop()
	}
	return r.lock.Close()
}

// ServeHTTP serves everything under /v2/.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if err := r.handle(req).send(w, req); err != nil {
		r.cfg.Log.Debug("registry answer cut off", "path", req.URL.Path, "error", err)
	}
}

// handle answers one request; it never panics on what a client sends.
func (r *Registry) handle(req *http.Request) response {
	resp, err := r.dispatch(req)
	if err != nil {
		resp = r.failed(req, err)
	} else if req.Method == http.MethodGet && resp.length > 0 {
		// Who fetched what is all an operator can see of a herd of starting nodes.
		r.cfg.Log.Info("registry sends", "path", req.URL.Path, "bytes", resp.length, "to", req.RemoteAddr)
	}
	resp.header.Set("Docker-Distribution-Api-Version", "registry/2.0")
	return resp
}

func (r *Registry) dispatch(req *http.Request) (response, error) {
	to, ok := parseRoute(req.URL.Path)
	if !ok {
		return response{}, refuse(http.StatusNotFound, codeUnsupported, "no such path")
	}
	if to.kind != "base" && !validName(to.name) {
		return response{}, refuse(http.StatusBadRequest, codeNameInvalid, "not a repository name")
	}
	read := req.Method == http.MethodGet || req.Method == http.MethodHead
	// Looking at an upload in progress is part of a push.
	access := Access{Repository: to.name, Write: !read || to.kind == "upload"}
	if err := r.cfg.Authorize(req, access); err != nil {
		if api.CodeOf(err) == api.CodeInternal {
			r.cfg.Log.Warn("registry access refused", "method", req.Method, "repository", to.name, "error", err)
			err = refuse(http.StatusForbidden, codeDenied, "access refused")
		}
		return response{}, err
	}
	switch to.kind {
	case "base":
		if read {
			return reply(http.StatusOK, "Content-Type", "application/json").withBytes([]byte("{}")), nil
		}
	case "blob":
		if read {
			return r.getBlob(req, to)
		}
	case "upload":
		return r.handleUpload(req, to)
	case "manifest":
		switch req.Method {
		case http.MethodGet, http.MethodHead:
			return r.getManifest(to)
		case http.MethodPut:
			return r.putManifest(req, to)
		case http.MethodDelete:
			return r.deleteManifest(to)
		}
	case "referrers":
		if read {
			return r.listReferrers(req, to)
		}
	case "tags":
		if read {
			return r.listTags(req, to)
		}
	}
	return response{}, refuse(http.StatusMethodNotAllowed, codeUnsupported, req.Method+" is not served here")
}
