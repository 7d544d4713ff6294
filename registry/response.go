package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"

	"github.com/faasd-sec/faasd-sec/api"
)

// response is an answer that is not tied to one HTTP library. Its body is read
// by whoever sends it, so a blob goes from the disk to the socket in pieces.
type response struct {
	status int
	header http.Header
	body   io.ReadCloser // nil for none
	length int64         // of the body, also where it is not sent (HEAD)
}

// reply makes a response without a body from header pairs.
func reply(status int, pairs ...string) response {
	h := make(http.Header, len(pairs)/2)
	for i := 0; i+1 < len(pairs); i += 2 {
		h.Set(pairs[i], pairs[i+1])
	}
	return response{status: status, header: h}
}

func (r response) withBytes(b []byte) response {
	r.body, r.length = io.NopCloser(bytes.NewReader(b)), int64(len(b))
	return r
}

// The codes of the distribution specification that are used here.
const (
	codeBlobUnknown     = "BLOB_UNKNOWN"
	codeUploadInvalid   = "BLOB_UPLOAD_INVALID"
	codeUploadUnknown   = "BLOB_UPLOAD_UNKNOWN"
	codeDigestInvalid   = "DIGEST_INVALID"
	codeManifestBlob    = "MANIFEST_BLOB_UNKNOWN"
	codeManifestInvalid = "MANIFEST_INVALID"
	codeManifestUnknown = "MANIFEST_UNKNOWN"
	codeNameInvalid     = "NAME_INVALID"
	codeSizeInvalid     = "SIZE_INVALID"
	codeTagInvalid      = "TAG_INVALID"
	codeUnauthorized    = "UNAUTHORIZED"
	codeDenied          = "DENIED"
	codeUnsupported     = "UNSUPPORTED"
	codeTooMany         = "TOOMANYREQUESTS"
	codeUnknown         = "UNKNOWN"
)

// refusal is an error that is told to the client.
type refusal struct {
	status  int
	code    string
	message string
}

func (e *refusal) Error() string { return e.code + ": " + e.message }

func refuse(status int, code, message string) error {
	return &refusal{status: status, code: code, message: message}
}

// failed turns an error into an answer. What is no refusal is ours: the client
// learns that it happened, the log learns what.
func (r *Registry) failed(req *http.Request, err error) response {
	var ref *refusal
	var coded *api.Error
	switch {
	case errors.As(err, &ref):
	case errors.As(err, &coded) && coded.Status() < 500:
		code := codeDenied
		if coded.Status() == http.StatusUnauthorized {
			code = codeUnauthorized
		}
		ref = &refusal{status: coded.Status(), code: code, message: coded.Message}
	default:
		r.cfg.Log.Error("registry request failed", "method", req.Method, "path", req.URL.Path, "error", err)
		ref = &refusal{status: http.StatusInternalServerError, code: codeUnknown, message: "the coordinator's log has more"}
	}
	type item struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	b, err := json.Marshal(map[string][]item{"errors": {{ref.code, ref.message}}})
	if err != nil { // cannot be: two strings
		b = nil
	}
	return reply(ref.status, "Content-Type", "application/json").withBytes(b)
}

// send writes a response with net/http.
func (resp response) send(w http.ResponseWriter, req *http.Request) error {
	if resp.body != nil {
		defer resp.body.Close()
	}
	for k, v := range resp.header {
		w.Header()[k] = v
	}
	if resp.status != http.StatusNoContent {
		w.Header().Set("Content-Length", strconv.FormatInt(resp.length, 10))
	}
	w.WriteHeader(resp.status)
	if resp.body == nil || req.Method == http.MethodHead {
		return nil
	}
	_, err := io.Copy(w, resp.body)
	return err
}
