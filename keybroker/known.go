package keybroker

import (
	"bytes"
	"fmt"
	"sync"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// maxKnown bounds the functions whose public parts are kept in memory, a few
// kilobytes each.
const maxKnown = 1024

// known remembers the descriptors that verified, one per function, so that a
// release need not verify the same bytes again. A descriptor is public, and what
// verifying it gives depends on its bytes and the owner's alone: both are
// compared in full.
type known struct {
	mu sync.Mutex
	of map[api.FunctionName]*knownDescriptor
}

type knownDescriptor struct {
	owner, signed []byte
	desc          *sealed.Descriptor // shared: must not be changed
	revision      sealed.Digest
}

// verify is r.descriptor with the revision.
func (k *known) verify(name api.FunctionName, r *record) (*sealed.Descriptor, sealed.Digest, error) {
	k.mu.Lock()
	had := k.of[name]
	k.mu.Unlock()
	if had != nil && bytes.Equal(had.owner, r.Owner) && bytes.Equal(had.signed, r.Descriptor) {
		return had.desc, had.revision, nil
	}
	desc, err := r.descriptor()
	if err != nil {
		return nil, sealed.Digest{}, fmt.Errorf("keybroker: stored descriptor of %s: %w", name, err)
	}
	rev, err := desc.Revision()
	if err != nil {
		return nil, sealed.Digest{}, fmt.Errorf("keybroker: revision of %s: %w", name, err)
	}
	k.keep(name, r, desc, rev)
	return desc, rev, nil
}

// keep remembers what r.descriptor returned.
func (k *known) keep(name api.FunctionName, r *record, desc *sealed.Descriptor, rev sealed.Digest) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.of == nil {
		k.of = make(map[api.FunctionName]*knownDescriptor)
	}
	makeRoom(k.of, name)
	k.of[name] = &knownDescriptor{owner: bytes.Clone(r.Owner), signed: bytes.Clone(r.Descriptor), desc: desc, revision: rev}
}

// makeRoom drops any one entry of a map that is full and lacks name.
func makeRoom[T any](m map[api.FunctionName]T, name api.FunctionName) {
	if _, had := m[name]; had || len(m) < maxKnown {
		return
	}
	for other := range m {
		delete(m, other)
		return
	}
}
