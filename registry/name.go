package registry

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"strings"
)

// The grammar of the distribution specification. A path component can begin
// neither with '_' nor with '.', which keeps our own directories apart and
// names inside the registry's directory.
var (
	nameRE = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagRE  = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
)

func validName(s string) bool { return len(s) <= 255 && nameRE.MatchString(s) }
func validTag(s string) bool  { return tagRE.MatchString(s) }

// digest is a SHA-256 digest, the one algorithm that is taken.
type digest [sha256.Size]byte

func (d digest) hex() string    { return hex.EncodeToString(d[:]) }
func (d digest) String() string { return "sha256:" + d.hex() }

// parseDigest reads "sha256:" and 64 lower-case hex characters.
func parseDigest(s string) (digest, bool) {
	var d digest
	h, ok := strings.CutPrefix(s, "sha256:")
	if !ok || len(h) != 2*len(d) || strings.ToLower(h) != h {
		return d, false
	}
	_, err := hex.Decode(d[:], []byte(h))
	return d, err == nil
}

// route is what a path asks for.
type route struct {
	kind string // "base", "blob", "upload", "manifest", "tags", "referrers"
	name string // repository
	ref  string // digest, tag or upload id
}

// parseRoute reads a path from its end, as names may have any number of parts.
func parseRoute(path string) (route, bool) {
	rest, ok := strings.CutPrefix(path, "/v2")
	if !ok || (rest != "" && rest[0] != '/') {
		return route{}, false
	}
	if rest == "" || rest == "/" {
		return route{kind: "base"}, true
	}
	part := strings.Split(rest[1:], "/")
	n := len(part)
	r := route{ref: part[n-1]}
	end := n - 2
	switch {
	case n >= 4 && part[n-3] == "blobs" && part[n-2] == "uploads":
		r.kind, end = "upload", n-3
	case n >= 3 && part[n-2] == "blobs" && part[n-1] == "uploads":
		r.kind, r.ref = "upload", ""
	case n >= 3 && part[n-2] == "blobs":
		r.kind = "blob"
	case n >= 3 && part[n-2] == "manifests":
		r.kind = "manifest"
	case n >= 3 && part[n-2] == "referrers":
		r.kind = "referrers"
	case n >= 3 && part[n-2] == "tags" && part[n-1] == "list":
		r.kind = "tags"
	default:
		return route{}, false
	}
	r.name = strings.Join(part[:end], "/")
	return r, true
}
