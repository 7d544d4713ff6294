package registry

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// upload is a blob on its way in. Its digest is computed as it comes, so that
// finishing reads nothing again.
type upload struct {
	id   string
	name string // repository

	mu     sync.Mutex // one request at a time
	file   *os.File   // nil once finished or dropped
	hash   hash.Hash
	size   int64
	active time.Time // guarded by Registry.mu
}

// handleUpload serves /v2/NAME/blobs/uploads/[ID].
func (r *Registry) handleUpload(req *http.Request, to route) (response, error) {
	if to.ref == "" {
		if req.Method != http.MethodPost {
			return response{}, refuse(http.StatusMethodNotAllowed, codeUnsupported, "an upload begins with POST")
		}
		return r.beginUpload(req, to)
	}
	u, err := r.findUpload(to)
	if err != nil {
		return response{}, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.file == nil {
		return response{}, errNoUpload()
	}
	switch req.Method {
	case http.MethodGet, http.MethodHead:
		return u.progress(http.StatusNoContent), nil
	case http.MethodPatch:
		err := r.receive(req, u)
		r.touch(u) // it may have taken longer than an idle one is kept
		if err != nil {
			return response{}, err
		}
		return u.progress(http.StatusAccepted), nil
	case http.MethodPut:
		return r.finishUpload(req, u)
	case http.MethodDelete:
		r.forget(u)
		return reply(http.StatusNoContent), nil
	}
	return response{}, refuse(http.StatusMethodNotAllowed, codeUnsupported, req.Method+" is not served here")
}

// beginUpload answers POST: a mount of a blob that is there, a whole blob in
// one request, or a new upload.
func (r *Registry) beginUpload(req *http.Request, to route) (response, error) {
	q := req.URL.Query()
	if d, ok := parseDigest(q.Get("mount")); ok {
		if _, there, err := r.statBlob(d); err != nil {
			return response{}, err
		} else if there {
			now := r.cfg.Now() // as for HEAD: it is about to be referred to
			if err := os.Chtimes(r.blobPath(d), now, now); err != nil {
				return response{}, fmt.Errorf("mount blob: %w", err)
			}
			return created(to.name, d), nil
		}
	}
	u, err := r.newUpload(to.name)
	if err != nil {
		return response{}, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if q.Get("digest") != "" {
		resp, err := r.finishUpload(req, u)
		if err != nil {
			r.forget(u) // nobody was told its id
		}
		return resp, err
	}
	return u.progress(http.StatusAccepted), nil
}

func (r *Registry) newUpload(name string) (*upload, error) {
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, fmt.Errorf("draw an upload id: %w", err)
	}
	u := &upload{id: hex.EncodeToString(id[:]), name: name, hash: sha256.New()}
	if err := r.admit(u); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(r.cfg.Dir, "uploads", u.id), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		r.forget(u)
		return nil, fmt.Errorf("begin upload: %w", err)
	}
	u.file = f
	return u, nil
}

// admit counts an upload in, dropping those whose clients went away.
func (r *Registry) admit(u *upload) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.cfg.Now()
	if r.uploads == nil {
		return refuse(http.StatusServiceUnavailable, codeUnknown, "the registry is closing")
	}
	for id, old := range r.uploads {
		// One that is receiving right now is busy, however long ago it began.
		if now.Sub(old.active) > r.cfg.UploadIdle && old.mu.TryLock() {
			old.drop()
			old.mu.Unlock()
			delete(r.uploads, id)
		}
	}
	if len(r.uploads) >= r.cfg.MaxUploads {
		return refuse(http.StatusTooManyRequests, codeTooMany, "too many uploads in progress")
	}
	u.active = now
	r.uploads[u.id] = u
	return nil
}

func (r *Registry) findUpload(to route) (*upload, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	u := r.uploads[to.ref]
	if u == nil || u.name != to.name {
		return nil, errNoUpload()
	}
	u.active = r.cfg.Now()
	return u, nil
}

// touch notes that an upload is not idle.
func (r *Registry) touch(u *upload) {
	r.mu.Lock()
	defer r.mu.Unlock()
	u.active = r.cfg.Now()
}

func errNoUpload() error {
	return refuse(http.StatusNotFound, codeUploadUnknown, "no such upload; begin anew")
}

// forget drops an upload. The caller holds u.mu or is its only user.
func (r *Registry) forget(u *upload) {
	r.mu.Lock()
	delete(r.uploads, u.id)
	r.mu.Unlock()
	u.drop()
}

// drop closes and removes the file. It is idempotent.
func (u *upload) drop() {
	if u.file != nil {
		u.file.Close()
		os.Remove(u.file.Name())
		u.file = nil
	}
}

// receive appends the request's body. What arrived before a connection broke
// is kept, so that the client can go on from there.
func (r *Registry) receive(req *http.Request, u *upload) error {
	if cr := req.Header.Get("Content-Range"); cr != "" {
		var from, to int64
		if _, err := fmt.Sscanf(strings.TrimPrefix(cr, "bytes "), "%d-%d", &from, &to); err != nil || from > to {
			return refuse(http.StatusBadRequest, codeUploadInvalid, "Content-Range does not parse")
		}
		if from != u.size {
			return refuse(http.StatusRequestedRangeNotSatisfiable, codeUploadInvalid, fmt.Sprintf("the upload has %d bytes", u.size))
		}
	}
	room := r.cfg.MaxBlobBytes - u.size
	if req.ContentLength > room {
		return r.tooLarge(u)
	}
	if err := r.spare(max(req.ContentLength, 0)); err != nil {
		return err
	}
	if req.Body == nil {
		return nil
	}
	broken := &writeFailure{w: io.MultiWriter(&sparing{r: r, w: u.file}, u.hash)}
	n, err := io.Copy(broken, io.LimitReader(req.Body, room+1))
	u.size += n
	switch {
	case broken.err != nil:
		// Disk and hash may disagree now: nothing can be built on this.
		r.forget(u)
		return fmt.Errorf("store upload: %w", broken.err)
	case err != nil:
		return refuse(http.StatusBadRequest, codeUploadInvalid, "the body broke off")
	case u.size > r.cfg.MaxBlobBytes:
		return r.tooLarge(u)
	}
	return nil
}

// writeFailure remembers that writing failed, as opposed to reading.
type writeFailure struct {
	w   io.Writer
	err error
}

func (f *writeFailure) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	if err != nil {
		f.err = err
	}
	return n, err
}

// spare refuses what would leave the disk less than is to stay free.
func (r *Registry) spare(bytes int64) error {
	free, err := r.free()
	if err != nil {
		return err
	}
	if free-bytes < r.cfg.MinFreeBytes {
		return refuse(http.StatusInsufficientStorage, codeDenied, "the registry's disk is nearly full")
	}
	return nil
}

// lookEvery is how much is written, in bytes, before the disk is looked at again: of
// many uploads the length is not known ahead, and others write too.
const lookEvery = 8 << 20

// sparing writes to the disk until that is nearly full.
type sparing struct {
	r     *Registry
	w     io.Writer
	since int64 // bytes
}

func (s *sparing) Write(p []byte) (int, error) {
	if s.since += int64(len(p)); s.since >= lookEvery {
		s.since = 0
		if err := s.r.spare(0); err != nil {
			return 0, err
		}
	}
	return s.w.Write(p)
}

func (r *Registry) tooLarge(u *upload) error {
	r.forget(u)
	return refuse(http.StatusRequestEntityTooLarge, codeSizeInvalid, fmt.Sprintf("a blob has at most %d bytes", r.cfg.MaxBlobBytes))
}

// finishUpload takes what is left of the body, compares the digest and makes
// the blob visible. The caller holds u.mu.
func (r *Registry) finishUpload(req *http.Request, u *upload) (response, error) {
	want, ok := parseDigest(req.URL.Query().Get("digest"))
	if !ok {
		return response{}, refuse(http.StatusBadRequest, codeDigestInvalid, "give digest=sha256: and 64 hex characters")
	}
	if err := r.receive(req, u); err != nil {
		return response{}, err
	}
	if digest(u.hash.Sum(nil)) != want {
		r.forget(u)
		return response{}, refuse(http.StatusBadRequest, codeDigestInvalid, "the content has another digest")
	}
	r.gc.RLock()
	defer r.gc.RUnlock()
	defer r.forget(u)
	if err := u.file.Sync(); err != nil {
		return response{}, fmt.Errorf("store blob: %w", err)
	}
	now := r.cfg.Now()
	if err := os.Chtimes(u.file.Name(), now, now); err != nil {
		return response{}, fmt.Errorf("store blob: %w", err)
	}
	if err := publish(u.file.Name(), r.blobPath(want)); err != nil {
		return response{}, fmt.Errorf("store blob: %w", err)
	}
	return created(u.name, want), nil
}

func created(name string, d digest) response {
	return reply(http.StatusCreated, "Location", "/v2/"+name+"/blobs/"+d.String(), "Docker-Content-Digest", d.String())
}

// progress tells the client how far the upload is.
func (u *upload) progress(status int) response {
	return reply(status, "Location", "/v2/"+u.name+"/blobs/uploads/"+u.id, "Docker-Upload-Uuid", u.id,
		"Range", fmt.Sprintf("0-%d", max(u.size-1, 0)))
}

// clearUploads removes what an earlier process left.
func (r *Registry) clearUploads() error {
	dir := filepath.Join(r.cfg.Dir, "uploads")
	left, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("open registry: %w", err)
	}
	var errs []error
	for _, e := range left {
		errs = append(errs, os.Remove(filepath.Join(dir, e.Name())))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("open registry: %w", err)
	}
	return nil
}
