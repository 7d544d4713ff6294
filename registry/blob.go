package registry

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strconv"
	"strings"
)

// statBlob is a blob's size, and whether it is there.
func (r *Registry) statBlob(d digest) (int64, bool, error) {
	st, err := os.Stat(r.blobPath(d))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	} else if err != nil {
		return 0, false, fmt.Errorf("stat blob: %w", err)
	}
	return st.Size(), true, nil
}

// getBlob answers GET and HEAD, with at most one range.
func (r *Registry) getBlob(req *http.Request, to route) (response, error) {
	d, ok := parseDigest(to.ref)
	if !ok {
		return response{}, refuse(http.StatusBadRequest, codeDigestInvalid, "use sha256: and 64 hex characters")
	}
	f, err := os.Open(r.blobPath(d))
	if errors.Is(err, fs.ErrNotExist) {
		return response{}, refuse(http.StatusNotFound, codeBlobUnknown, "no such blob")
	} else if err != nil {
		return response{}, fmt.Errorf("open blob: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return response{}, fmt.Errorf("stat blob: %w", err)
	}
	resp := reply(http.StatusOK, "Content-Type", "application/octet-stream", "Docker-Content-Digest", d.String(),
		"Accept-Ranges", "bytes", "Etag", `"`+d.String()+`"`, "Cache-Control", "max-age=31536000, immutable")
	resp.length = st.Size()
	if req.Method == http.MethodHead {
		f.Close()
		// Whoever asks is about to refer to it: it is not to be swept meanwhile.
		now := r.cfg.Now()
		return resp, os.Chtimes(r.blobPath(d), now, now)
	}
	from, length, ok := parseRange(req.Header.Get("Range"), st.Size())
	if !ok {
		f.Close()
		return response{}, refuse(http.StatusRequestedRangeNotSatisfiable, codeSizeInvalid, fmt.Sprintf("the blob has %d bytes", st.Size()))
	}
	if length != st.Size() {
		resp.status, resp.length = http.StatusPartialContent, length
		resp.header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, from+length-1, st.Size()))
	}
	resp.body = &section{Reader: io.NewSectionReader(f, from, length), Closer: f}
	return resp, nil
}

// section is a part of a file that closes it.
type section struct {
	io.Reader
	io.Closer
}

// parseRange reads a Range header for a body of size bytes. What is no single
// byte range is ignored, as the HTTP specification allows; false means that
// the range lies outside.
func parseRange(h string, size int64) (from, length int64, ok bool) {
	spec, isBytes := strings.CutPrefix(h, "bytes=")
	first, last, hasDash := strings.Cut(spec, "-")
	if !isBytes || !hasDash || strings.Contains(spec, ",") {
		return 0, size, true
	}
	if first == "" { // the last n bytes
		n, err := strconv.ParseUint(last, 10, 63)
		if err != nil {
			return 0, size, true
		}
		length = min(int64(n), size)
		return size - length, length, length > 0
	}
	a, err := strconv.ParseUint(first, 10, 63)
	if err != nil {
		return 0, size, true
	}
	b := uint64(size - 1)
	if last != "" {
		if b, err = strconv.ParseUint(last, 10, 63); err != nil || b < a {
			return 0, size, true
		}
	}
	if int64(a) >= size {
		return 0, 0, false
	}
	return int64(a), min(int64(b), size-1) - int64(a) + 1, true
}
