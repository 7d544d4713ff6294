package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"go.yaml.in/yaml/v3"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// Policy says whose signature an image needs before a node runs it. An image that
// no rule is for is refused.
type Policy struct {
	Rules []Rule
}

// Rule trusts signers for repositories.
type Rule struct {
	Prefix  string // "team-a" is team-a and all below it, not team-ab; "" is everything
	Signers []sealed.Fingerprint
}

// LoadPolicy reads a policy from a YAML file. What is not known is an error.
func LoadPolicy(path string) (*Policy, error) {
	invalid := func(field, remedy, message string, err error) error {
		return &api.Error{Code: api.CodeInvalid, Field: path + ": " + field, Message: message, Remedy: remedy, Err: err}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, invalid("file", "check the path", "the image policy cannot be read", err)
	}
	var f struct {
		Rules []struct {
			Prefix  *string  `yaml:"prefix"`
			Signers []string `yaml:"signers"`
		} `yaml:"rules"`
	}
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(&f); err != nil && !errors.Is(err, io.EOF) {
		return nil, invalid("rules", "docs/images.md has an example", strings.ReplaceAll(err.Error(), "\n", " "), nil)
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, invalid("rules", "write one document", "there is a second document", nil)
	}
	p := &Policy{}
	seen := make(map[string]bool)
	for i, r := range f.Rules {
		at := func(name string) string { return fmt.Sprintf("rules[%d].%s", i, name) }
		if r.Prefix == nil {
			return nil, invalid(at("prefix"), `write the repositories it is for, or "" for all`, "it is missing", nil)
		}
		rule := Rule{Prefix: strings.TrimSuffix(*r.Prefix, "/")}
		if strings.ContainsAny(rule.Prefix, "*@ \n") || seen[rule.Prefix] {
			return nil, invalid(at("prefix"), "write each beginning of a repository's name once, without wildcards", fmt.Sprintf("%q", *r.Prefix), nil)
		}
		seen[rule.Prefix] = true
		for j, s := range r.Signers {
			fp, err := sealed.ParseFingerprint(s)
			if err != nil {
				return nil, invalid(fmt.Sprintf("rules[%d].signers[%d]", i, j), "give the 64 hex digits that faasd-sec key show prints", "it is not a fingerprint", nil)
			}
			rule.Signers = append(rule.Signers, fp)
		}
		p.Rules = append(p.Rules, rule)
	}
	return p, nil
}

// signers are those of the longest prefix that fits; false where none does.
func (p *Policy) signers(repo string) (list []sealed.Fingerprint, ok bool) {
	best := -1
	for _, r := range p.Rules {
		fits := r.Prefix == "" || repo == r.Prefix || strings.HasPrefix(repo, r.Prefix+"/")
		if fits && len(r.Prefix) > best {
			best, list, ok = len(r.Prefix), r.Signers, true
		}
	}
	return list, ok
}

// Attachments fetches what is attached to images of one registry. *Blobs does.
type Attachments interface {
	Attached(ctx context.Context, repo, digest string, kind types.MediaType) ([][]byte, error)
}

var _ Attachments = (*Blobs)(nil)

const (
	signatureFresh = 10 * time.Minute // an image that was found signed is not asked for again
	signatureSlack = 5 * time.Minute  // by which a signer's clock may be ahead
	maxVerified    = 4096             // images that are remembered
	foreignTimeout = 20 * time.Second // of one request to another registry
)

// Verifier holds images against a policy. It is safe for concurrent use.
type Verifier struct {
	policy   *Policy
	registry string // the cluster's own, as references name it
	own      Attachments
	now      func() time.Time

	mu   sync.Mutex
	good map[string]time.Time // reference@digest -> when it was found signed
}

// NewVerifier verifies images of the cluster's registry, which references name as
// registry and own reads from. Those of other registries are refused unless a rule
// names their host; they are then looked up there over HTTPS, without credentials.
func NewVerifier(p *Policy, registry string, own Attachments, now func() time.Time) *Verifier {
	return &Verifier{policy: p, registry: registry, own: own, now: now, good: make(map[string]time.Time)}
}

// Check returns nil if somebody whom the policy trusts for ref, HOST/REPOSITORY,
// signed the image with this digest under this name. Else the error is an
// *api.Error of CodeForbidden, or of CodeUnavailable where nobody could be asked.
func (v *Verifier) Check(ctx context.Context, ref, digest string) error {
	host, path, _ := strings.Cut(ref, "/")
	repo, from := ref, Attachments(nil)
	if host == v.registry {
		repo, from = path, v.own
	}
	trusted, ok := v.policy.signers(repo)
	if !ok {
		return refusal("no rule of the image policy is for " + repo)
	}
	key, now := ref+"@"+digest, v.now()
	v.mu.Lock()
	at, known := v.good[key]
	v.mu.Unlock()
	if age := now.Sub(at); known && age >= 0 && age < signatureFresh {
		return nil
	}
	if from == nil {
		from = NewBlobs("https://"+host, &http.Client{Timeout: foreignTimeout})
	} else {
		path = repo
	}
	found, err := from.Attached(ctx, path, digest, TypeSignature)
	if err != nil {
		return api.Wrap(api.CodeUnavailable, err, "the signatures of "+repo+" could not be read")
	}
	for _, content := range found {
		s, err := VerifySignature(content)
		if err != nil || s.Repository != repo || s.Digest != digest || s.Time.After(now.Add(signatureSlack)) {
			continue
		}
		for _, t := range trusted {
			if t == s.Signer {
				v.remember(key, now)
				return nil
			}
		}
	}
	return refusal(fmt.Sprintf("none of %d signatures of %s is by a signer that the image policy trusts for it", len(found), repo))
}

func (v *Verifier) remember(key string, now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.good) >= maxVerified {
		clear(v.good)
	}
	v.good[key] = now
}

func refusal(message string) error {
	return &api.Error{Code: api.CodeForbidden, Field: "image", Message: message,
		Remedy: "have it signed by deploying it, and its owner's fingerprint listed in the node's image policy"}
}
