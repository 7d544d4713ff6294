package registry

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Media types of what may be pushed as a manifest.
const (
	typeManifest       = "application/vnd.oci.image.manifest.v1+json"
	typeIndex          = "application/vnd.oci.image.index.v1+json"
	typeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	typeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// manifest is what the registry reads of one.
type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        *descriptor  `json:"config"`
	Layers        []descriptor `json:"layers"`
	Manifests     []descriptor `json:"manifests"`

	// Of what is about another manifest: a signature, a bill of materials.
	Subject      *descriptor       `json:"subject"`
	ArtifactType string            `json:"artifactType"`
	Annotations  map[string]string `json:"annotations"`
}

type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
}

// blobs are the blobs that the manifest refers to.
func (m manifest) blobs() []descriptor {
	if m.Config == nil {
		return m.Layers
	}
	return append([]descriptor{*m.Config}, m.Layers...)
}

// parseManifest reads and checks the form of a manifest. contentType may be
// empty for one that was checked before.
func parseManifest(b []byte, contentType string) (manifest, error) {
	bad := func(format string, args ...any) (manifest, error) {
		return manifest{}, refuse(http.StatusBadRequest, codeManifestInvalid, fmt.Sprintf(format, args...))
	}
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return bad("it is not JSON")
	}
	if m.SchemaVersion != 2 {
		return bad("schemaVersion is %d, want 2", m.SchemaVersion)
	}
	if contentType != "" {
		t, _, err := mime.ParseMediaType(contentType)
		if err != nil {
			return bad("the content type does not parse")
		}
		if m.MediaType != "" && m.MediaType != t {
			return bad("the content type is %s, mediaType is %s", t, m.MediaType)
		}
	}
	if m.MediaType == "" { // optional in OCI; told by the content
		m.MediaType = typeManifest
		if m.Manifests != nil {
			m.MediaType = typeIndex
		}
	}
	switch m.MediaType {
	case typeManifest, typeDockerManifest:
		if m.Config == nil || m.Manifests != nil {
			return bad("an image manifest has a config and no manifests")
		}
	case typeIndex, typeDockerList:
		if m.Config != nil || m.Layers != nil {
			return bad("an index has manifests alone")
		}
	default:
		return bad("%q is not a type that is taken", m.MediaType)
	}
	all := slices.Concat(m.blobs(), m.Manifests)
	if m.Subject != nil {
		all = append(all, *m.Subject)
	}
	for _, d := range all {
		if _, ok := parseDigest(d.Digest); !ok || d.Size < 0 {
			return bad("%.100q is not a sha256 digest with a size", d.Digest)
		}
	}
	return m, nil
}

func (r *Registry) getManifest(to route) (response, error) {
	d, err := r.resolve(to)
	if err != nil {
		return response{}, err
	}
	b, err := os.ReadFile(r.manifestPath(to.name, d))
	if errors.Is(err, fs.ErrNotExist) {
		return response{}, errNoManifest()
	} else if err != nil {
		return response{}, fmt.Errorf("read manifest: %w", err)
	}
	m, err := parseManifest(b, "")
	if err != nil || sha256.Sum256(b) != d {
		return response{}, fmt.Errorf("manifest %s of %s is damaged on disk", d, to.name)
	}
	return reply(http.StatusOK, "Content-Type", m.MediaType, "Docker-Content-Digest", d.String(),
		"Etag", `"`+d.String()+`"`).withBytes(b), nil
}

// resolve turns a tag or digest into a digest.
func (r *Registry) resolve(to route) (digest, error) {
	if strings.Contains(to.ref, ":") {
		d, ok := parseDigest(to.ref)
		if !ok {
			return d, refuse(http.StatusBadRequest, codeDigestInvalid, "use sha256: and 64 hex characters")
		}
		return d, nil
	}
	if !validTag(to.ref) {
		return digest{}, refuse(http.StatusBadRequest, codeTagInvalid, "not a tag")
	}
	b, err := os.ReadFile(r.tagPath(to.name, to.ref))
	if errors.Is(err, fs.ErrNotExist) {
		return digest{}, errNoManifest()
	} else if err != nil {
		return digest{}, fmt.Errorf("read tag: %w", err)
	}
	d, ok := parseDigest(string(b))
	if !ok {
		return d, fmt.Errorf("tag %s of %s is damaged on disk", to.ref, to.name)
	}
	return d, nil
}

func errNoManifest() error {
	return refuse(http.StatusNotFound, codeManifestUnknown, "no such manifest")
}

func (r *Registry) putManifest(req *http.Request, to route) (response, error) {
	byDigest := strings.Contains(to.ref, ":")
	want, ok := parseDigest(to.ref)
	if byDigest && !ok {
		return response{}, refuse(http.StatusBadRequest, codeDigestInvalid, "use sha256: and 64 hex characters")
	}
	if !byDigest && !validTag(to.ref) {
		return response{}, refuse(http.StatusBadRequest, codeTagInvalid, "not a tag")
	}
	b, err := io.ReadAll(io.LimitReader(req.Body, r.cfg.MaxManifestBytes+1))
	if err != nil {
		return response{}, refuse(http.StatusBadRequest, codeManifestInvalid, "the body broke off")
	}
	if int64(len(b)) > r.cfg.MaxManifestBytes {
		return response{}, refuse(http.StatusRequestEntityTooLarge, codeSizeInvalid, fmt.Sprintf("a manifest has at most %d bytes", r.cfg.MaxManifestBytes))
	}
	d := digest(sha256.Sum256(b))
	if byDigest && d != want {
		return response{}, refuse(http.StatusBadRequest, codeDigestInvalid, "the content has another digest")
	}
	contentType := req.Header.Get("Content-Type")
	if contentType == "" {
		return response{}, refuse(http.StatusBadRequest, codeManifestInvalid, "the content type is missing")
	}
	m, err := parseManifest(b, contentType)
	if err != nil {
		return response{}, err
	}
	r.gc.RLock()
	defer r.gc.RUnlock()
	if err := r.checkReferences(to.name, m); err != nil {
		return response{}, err
	}
	if err := r.spare(int64(len(b))); err != nil {
		return response{}, err
	}
	if err := r.replaceFile(r.manifestPath(to.name, d), b); err != nil {
		return response{}, err
	}
	if err := r.refer(to.name, m, d); err != nil {
		return response{}, err
	}
	if !byDigest {
		if err := r.replaceFile(r.tagPath(to.name, to.ref), []byte(d.String())); err != nil {
			return response{}, err
		}
	}
	out := reply(http.StatusCreated, "Location", "/v2/"+to.name+"/manifests/"+d.String(), "Docker-Content-Digest", d.String())
	if m.Subject != nil {
		out.header.Set("OCI-Subject", m.Subject.Digest)
	}
	return out, nil
}

// checkReferences refuses a manifest of which a part is missing or has another
// size, so that what can be pulled can be pulled whole.
func (r *Registry) checkReferences(name string, m manifest) error {
	for _, ref := range m.blobs() {
		d, _ := parseDigest(ref.Digest) // parsed before
		size, there, err := r.statBlob(d)
		if err != nil {
			return err
		}
		if !there || size != ref.Size {
			return refuse(http.StatusBadRequest, codeManifestBlob, fmt.Sprintf("no blob %s of %d bytes", d, ref.Size))
		}
	}
	for _, ref := range m.Manifests {
		d, _ := parseDigest(ref.Digest)
		st, err := os.Stat(r.manifestPath(name, d))
		if errors.Is(err, fs.ErrNotExist) || (err == nil && st.Size() != ref.Size) {
			return refuse(http.StatusBadRequest, codeManifestUnknown, fmt.Sprintf("no manifest %s of %d bytes in this repository", d, ref.Size))
		} else if err != nil {
			return fmt.Errorf("stat manifest: %w", err)
		}
	}
	return nil
}

// deleteManifest removes a tag, or a manifest with the tags that name it. The
// blobs go with the next Collect.
func (r *Registry) deleteManifest(to route) (response, error) {
	d, err := r.resolve(to)
	if err != nil {
		return response{}, err
	}
	r.gc.Lock() // a tag must not come to name what is being removed
	defer r.gc.Unlock()
	if !strings.Contains(to.ref, ":") {
		if err := os.Remove(r.tagPath(to.name, to.ref)); err != nil {
			return response{}, fmt.Errorf("delete tag: %w", err)
		}
		return reply(http.StatusAccepted), nil
	}
	tags, err := r.tags(to.name)
	if err != nil {
		return response{}, err
	}
	for _, tag := range tags {
		at, err := r.resolve(route{name: to.name, ref: tag})
		if err != nil {
			return response{}, err
		}
		if at == d {
			if err := os.Remove(r.tagPath(to.name, tag)); err != nil {
				return response{}, fmt.Errorf("delete tag: %w", err)
			}
		}
	}
	if err := os.Remove(r.manifestPath(to.name, d)); errors.Is(err, fs.ErrNotExist) {
		return response{}, errNoManifest()
	} else if err != nil {
		return response{}, fmt.Errorf("delete manifest: %w", err)
	}
	return reply(http.StatusAccepted), syncDir(filepath.Dir(r.manifestPath(to.name, d)))
}

// tags lists a repository's tags in order.
func (r *Registry) tags(name string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(r.repoPath(name), "_tags"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list tags: %w", err)
	}
	tags := make([]string, 0, len(entries))
	for _, e := range entries {
		tags = append(tags, e.Name())
	}
	slices.Sort(tags)
	return tags, nil
}

// listTags answers with n tags after last.
func (r *Registry) listTags(req *http.Request, to route) (response, error) {
	if _, err := os.Stat(filepath.Join(r.repoPath(to.name), "_manifests")); errors.Is(err, fs.ErrNotExist) {
		return response{}, refuse(http.StatusNotFound, "NAME_UNKNOWN", "no such repository")
	} else if err != nil {
		return response{}, fmt.Errorf("list tags: %w", err)
	}
	tags, err := r.tags(to.name)
	if err != nil {
		return response{}, err
	}
	q := req.URL.Query()
	if last := q.Get("last"); last != "" {
		i, found := slices.BinarySearch(tags, last)
		if found {
			i++
		}
		tags = tags[i:]
	}
	if s := q.Get("n"); s != "" {
		n, err := strconv.ParseUint(s, 10, 31)
		if err != nil {
			return response{}, refuse(http.StatusBadRequest, codeUnsupported, "n is not a number")
		}
		tags = tags[:min(len(tags), int(n))]
	}
	b, err := json.Marshal(struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{to.name, tags})
	if err != nil {
		return response{}, fmt.Errorf("list tags: %w", err)
	}
	return reply(http.StatusOK, "Content-Type", "application/json").withBytes(b), nil
}
