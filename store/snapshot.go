package store

import (
	"context"
	"io"
)

// Snapshot reads the whole store as it is at one moment, in etcd's own format
// with its checksum at the end. It needs no majority. The caller closes it.
func (s *Store) Snapshot(ctx context.Context) (io.ReadCloser, error) {
	r, err := s.client.Snapshot(ctx)
	return r, failure("take a snapshot", err)
}
