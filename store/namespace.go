package store

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/faasd-sec/faasd-sec/api"
)

// Namespace is a namespace that somebody created. Those that only have functions
// in them, and the default one, need no record.
type Namespace struct {
	Name        string            `json:"name"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	CreatedAt   int64             `json:"created_at"` // unix seconds

	// Version is the record's version in the store. It is set by reads and not
	// stored.
	Version int64 `json:"-"`
}

func (s *Store) namespacePrefix() string { return s.cfg.Prefix + "namespaces/" }

func (s *Store) namespaceKey(name string) (string, error) {
	if err := api.CheckNamespace(name); err != nil {
		return "", err
	}
	return s.namespacePrefix() + name, nil
}

// PutNamespace writes n if the record's version is expected, as PutFunction does,
// and returns the new version; CodeConflict otherwise.
func (s *Store) PutNamespace(ctx context.Context, n Namespace, expected int64) (int64, error) {
	key, err := s.namespaceKey(n.Name)
	if err != nil {
		return 0, err
	}
	b, err := json.Marshal(n)
	if err != nil {
		return 0, fmt.Errorf("encode namespace %s: %w", n.Name, err)
	}
	return s.put(ctx, "namespace "+n.Name, key, b, expected)
}

// GetNamespace reads one record; CodeNotFound if there is none.
func (s *Store) GetNamespace(ctx context.Context, name string) (*Namespace, error) {
	key, err := s.namespaceKey(name)
	if err != nil {
		return nil, err
	}
	b, version, err := s.get(ctx, "namespace "+name, key)
	if err != nil {
		return nil, err
	}
	return parseNamespace(name, b, version)
}

// ListNamespaces reads all records, ordered by name, as of one moment.
func (s *Store) ListNamespaces(ctx context.Context) ([]*Namespace, error) {
	var (
		all  []*Namespace
		fail error
	)
	_, err := s.list(ctx, "namespaces", s.namespacePrefix(), func(key string, value []byte, version int64) {
		n, err := parseNamespace(key, value, version)
		if err != nil && fail == nil {
			fail = err
		}
		all = append(all, n)
	})
	if err == nil {
		err = fail
	}
	if err != nil {
		return nil, err
	}
	return all, nil
}

// DeleteNamespace removes a record if its version is expected.
func (s *Store) DeleteNamespace(ctx context.Context, name string, expected int64) error {
	key, err := s.namespaceKey(name)
	if err != nil {
		return err
	}
	_, err = s.remove(ctx, "namespace "+name, key, expected)
	return err
}

func parseNamespace(key string, value []byte, version int64) (*Namespace, error) {
	n := &Namespace{}
	if err := json.Unmarshal(value, n); err != nil {
		return nil, api.Wrap(api.CodeInternal, fmt.Errorf("decode record: %w", err), "the record of namespace "+key+" is damaged")
	}
	if n.Name != key {
		return nil, api.Errorf(api.CodeInternal, "the record of namespace %s names %s", key, n.Name)
	}
	n.Version = version
	return n, nil
}
