package keybroker

import (
	"bytes"
	"fmt"
	"sync"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// maxKnown bounds the descriptors, and the files of functions, that are kept in
// memory, a few kilobytes each.
const maxKnown = 1024

// known remembers the descriptors that verified, so that a release need not verify
// the same bytes again. A descriptor is public, and what
// verifying it gives depends on its bytes and the owner's alone: both are
// compared in full.
type known struct {
	mu sync.Mutex
	of map[knownKey]*knownDescriptor
}

type knownKey struct {
	name     api.FunctionName
	sequence uint64
}

type knownDescriptor struct {
	owner, signed []byte
	desc          *sealed.Descriptor // shared: must not be changed
	revision      sealed.Digest
}

// verify is h.descriptor with the revision.
func (k *known) verify(name api.FunctionName, owner []byte, h *held) (*sealed.Descriptor, sealed.Digest, error) {
	k.mu.Lock()
	had := k.of[knownKey{name, h.Sequence}]
	k.mu.Unlock()
	if had != nil && bytes.Equal(had.owner, owner) && bytes.Equal(had.signed, h.Descriptor) {
		return had.desc, had.revision, nil
	}
	desc, err := h.descriptor(owner)
	if err != nil {
		return nil, sealed.Digest{}, fmt.Errorf("keybroker: stored descriptor of %s: %w", name, err)
	}
	rev, err := desc.Revision()
	if err != nil {
		return nil, sealed.Digest{}, fmt.Errorf("keybroker: revision of %s: %w", name, err)
	}
	k.keep(name, owner, h, desc, rev)
	return desc, rev, nil
}

// keep remembers what h.descriptor returned.
func (k *known) keep(name api.FunctionName, owner []byte, h *held, desc *sealed.Descriptor, rev sealed.Digest) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.of == nil {
		k.of = make(map[knownKey]*knownDescriptor)
	}
	key := knownKey{name, h.Sequence}
	makeRoom(k.of, key)
	k.of[key] = &knownDescriptor{owner: bytes.Clone(owner), signed: bytes.Clone(h.Descriptor), desc: desc, revision: rev}
}

// makeRoom drops any one entry of a map that is full and lacks key.
func makeRoom[K comparable, T any](m map[K]T, key K) {
	if _, had := m[key]; had || len(m) < maxKnown {
		return
	}
	for other := range m {
		delete(m, other)
		return
	}
}
