package store

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/faasd-sec/faasd-sec/api"
)

// Function is one function as deployed: sealed, with a Descriptor, or Plain, and
// never both. Of a sealed one the signed descriptor is what counts; the other
// fields repeat what the coordinator reads often, and were checked against it by
// whoever wrote the record.
type Function struct {
	Name        api.FunctionName `json:"name"`
	Revision    string           `json:"revision"`             // revision digest, hex
	Owner       string           `json:"owner,omitempty"`      // fingerprint of the owner's signing key, hex; empty for a plain function
	Sequence    uint64           `json:"sequence"`             // the descriptor's; grows with every deployment
	Descriptor  []byte           `json:"descriptor,omitempty"` // signed, docs/envelope.md; empty for a plain function
	Plain       *api.Plain       `json:"plain,omitempty"`      // nil for a sealed function
	ImageRef    string           `json:"image_ref"`            // where to pull it
	ImageDigest string           `json:"image_digest"`         // "sha256:…"
	BundleRef   string           `json:"bundle_ref,omitempty"` // repository@digest of the sealed bundle
	Resources   api.Resources    `json:"resources"`            // what one sandbox reserves
	UpdatedAt   int64            `json:"updated_at"`           // unix seconds
	CreatedAt   int64            `json:"created_at,omitempty"` // unix seconds of the first deployment of a plain function

	// Bounds are the owner's bounds of manifests for this revision, as the
	// manifest opener gave them back: nobody else reads them. They go with the
	// record, and so with the revision.
	Bounds []byte `json:"bounds,omitempty"`

	// Labels and Annotations are a sealed function's, as its owner sent them beside
	// the descriptor; a plain one's are in Plain.
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`

	// Scale is how many replicas it is to have; nil: on demand. Replicas is what
	// somebody set by hand at ReplicasAt, in unix milliseconds; nil: nothing.
	Scale      *api.Scale `json:"scale,omitempty"`
	Replicas   *int       `json:"replicas,omitempty"`
	ReplicasAt int64      `json:"replicas_at,omitempty"`

	// Next is the revision that is to follow once it is ready, Beside are those that
	// serve with this one. Highest is the highest sequence of those that came to
	// nothing.
	Next    *Function    `json:"next,omitempty"`
	Beside  []Beside     `json:"beside,omitempty"`
	Rollout *api.Rollout `json:"rollout,omitempty"` // the last one
	Highest uint64       `json:"highest,omitempty"`

	// Traffic is a sealed function's signed traffic statement, which names revisions
	// that may have replicas beside its latest one; Stated is the sequence of the
	// last one there was.
	Traffic []byte `json:"traffic,omitempty"`
	Stated  uint64 `json:"stated,omitempty"`

	// Version is the record's version in the store, to be named when it is
	// replaced. It is set by reads and not stored.
	Version int64 `json:"-"`
}

func (s *Store) functionPrefix() string { return s.cfg.Prefix + "functions/" }

func (s *Store) functionKey(n api.FunctionName) (string, error) {
	// Only canonical names become keys: "f" and "f.openfaas-fn" are one.
	full, err := api.ParseFunctionName(string(n))
	if err != nil {
		return "", err
	}
	if full != n {
		return "", api.Invalid("name", fmt.Sprintf("use %q", full), fmt.Sprintf("%q is not a full name", n))
	}
	return s.functionPrefix() + string(n), nil
}

// PutFunction writes f if the record's version is expected (Absent for a new
// function, AnyVersion for no check) and returns the new version. Otherwise
// nothing is written and the error is CodeConflict.
func (s *Store) PutFunction(ctx context.Context, f Function, expected int64) (int64, error) {
	key, err := s.functionKey(f.Name)
	if err != nil {
		return 0, err
	}
	if (f.Plain == nil) == (len(f.Descriptor) == 0) {
		return 0, api.Errorf(api.CodeInternal, "a function is sealed or plain: %s is both or neither", f.Name)
	}
	b, err := json.Marshal(f)
	if err != nil {
		return 0, fmt.Errorf("encode function %s: %w", f.Name, err)
	}
	return s.put(ctx, "function "+f.Name.Short(), key, b, expected)
}

// GetFunction reads one function as it is now; CodeNotFound if there is none.
// The path of an invocation asks a Cache instead.
func (s *Store) GetFunction(ctx context.Context, n api.FunctionName) (*Function, error) {
	key, err := s.functionKey(n)
	if err != nil {
		return nil, err
	}
	b, version, err := s.get(ctx, "function "+n.Short(), key)
	if err != nil {
		return nil, err
	}
	return parseFunction(string(n), b, version)
}

// ListFunctions reads all functions, ordered by name, as of one moment. A
// record that does not parse is an error.
func (s *Store) ListFunctions(ctx context.Context) ([]*Function, error) {
	var (
		all  []*Function
		fail error
	)
	_, err := s.list(ctx, "functions", s.functionPrefix(), func(key string, value []byte, version int64) {
		f, err := parseFunction(key, value, version)
		if err != nil && fail == nil {
			fail = err
		}
		all = append(all, f)
	})
	if err != nil {
		return nil, err
	}
	if fail != nil {
		return nil, fail
	}
	return all, nil
}

// DeleteFunction removes a function if its version is expected, and returns
// the version from which on it is gone, for Cache.Wait.
func (s *Store) DeleteFunction(ctx context.Context, n api.FunctionName, expected int64) (int64, error) {
	key, err := s.functionKey(n)
	if err != nil {
		return 0, err
	}
	return s.remove(ctx, "function "+n.Short(), key, expected)
}

func parseFunction(key string, value []byte, version int64) (*Function, error) {
	f := &Function{}
	if err := json.Unmarshal(value, f); err != nil {
		return nil, api.Wrap(api.CodeInternal, fmt.Errorf("decode record: %w", err), "the record of function "+key+" is damaged")
	}
	if string(f.Name) != key {
		return nil, api.Errorf(api.CodeInternal, "the record of function %s names %s", key, f.Name)
	}
	f.Version = version
	return f, nil
}
