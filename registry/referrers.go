package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
)

// referrer is a manifest that is about another one, as the distribution
// specification lists it.
type referrer struct {
	MediaType    string            `json:"mediaType"`
	Digest       string            `json:"digest"`
	Size         int64             `json:"size"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
}

// maxReferrers bounds a listing. More than so many signatures of one image are
// somebody's defect. maxAnnotations, in bytes, is what a manifest's annotations may
// have to be in it: a listing is made in memory, and whoever may push, to any
// repository, must not make it longer than clients read.
const (
	maxReferrers   = 1000
	maxAnnotations = 2 << 10
	maxType        = 255 // bytes of a media type, RFC 6838
)

func (r *Registry) referrersPath(name string, subject digest) string {
	return filepath.Join(r.repoPath(name), "_referrers", subject.hex())
}

// refer notes that the manifest d is about another, which need not be here yet.
func (r *Registry) refer(name string, m manifest, d digest) error {
	if m.Subject == nil {
		return nil
	}
	subject, _ := parseDigest(m.Subject.Digest) // parsed before
	return r.replaceFile(filepath.Join(r.referrersPath(name, subject), d.hex()), nil)
}

func long(annotations map[string]string) bool {
	n := 0
	for k, v := range annotations {
		n += len(k) + len(v)
	}
	return n > maxAnnotations
}

// listReferrers answers with what is about a digest. What was deleted since is
// left out.
func (r *Registry) listReferrers(req *http.Request, to route) (response, error) {
	subject, ok := parseDigest(to.ref)
	if !ok {
		return response{}, refuse(http.StatusBadRequest, codeDigestInvalid, "use sha256: and 64 hex characters")
	}
	entries, err := os.ReadDir(r.referrersPath(to.name, subject))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return response{}, fmt.Errorf("list referrers: %w", err)
	}
	kind := req.URL.Query().Get("artifactType")
	list := []referrer{}
	for _, e := range entries {
		d, ok := parseDigest("sha256:" + e.Name())
		if !ok || len(list) == maxReferrers {
			continue
		}
		b, err := os.ReadFile(r.manifestPath(to.name, d))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return response{}, fmt.Errorf("list referrers: %w", err)
		}
		m, err := parseManifest(b, "")
		if err != nil {
			return response{}, fmt.Errorf("manifest %s of %s is damaged on disk", d, to.name)
		}
		of := referrer{MediaType: m.MediaType, Digest: d.String(), Size: int64(len(b)), ArtifactType: m.ArtifactType, Annotations: m.Annotations}
		if long(of.Annotations) {
			of.Annotations = nil
		}
		if of.ArtifactType == "" && m.Config != nil {
			of.ArtifactType = m.Config.MediaType
		}
		if len(of.ArtifactType) <= maxType && (kind == "" || of.ArtifactType == kind) {
			list = append(list, of)
		}
	}
	slices.SortFunc(list, func(a, b referrer) int { return slices.Compare([]byte(a.Digest), []byte(b.Digest)) })
	b, err := json.Marshal(struct {
		SchemaVersion int        `json:"schemaVersion"`
		MediaType     string     `json:"mediaType"`
		Manifests     []referrer `json:"manifests"`
	}{2, typeIndex, list})
	if err != nil {
		return response{}, fmt.Errorf("list referrers: %w", err)
	}
	out := reply(http.StatusOK, "Content-Type", typeIndex).withBytes(b)
	if kind != "" {
		out.header.Set("OCI-Filters-Applied", "artifactType")
	}
	return out, nil
}
