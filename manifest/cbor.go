package manifest

import (
	"fmt"
	"slices"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/manifest/internal/strict"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// MaxEncoded bounds an encoded manifest or bounds document, in bytes.
const MaxEncoded = 16384

// Versions of both documents. The second has lists of what may be opened and cores
// of a task's own, and is written only where there is one of these: who knows the
// first alone reads all others.
const (
	Version       = 1
	versionSecond = 2
)

// version is that of a document with something that the first version lacks, or
// without.
func version(second bool) uint64 {
	if second {
		return versionSecond
	}
	return Version
}

func (m *Manifest) version() uint64 { return version(m.Needs.second()) }

func (b *Bounds) version() uint64 {
	return version(b.Default.second() || len(b.Max.Allow) > 0 || b.Max.Cores > 0 ||
		slices.ContainsFunc(b.Overridable, func(f Field) bool { return f == FieldAllow || f == FieldCores }))
}

func (n *Needs) second() bool { return len(n.Allow) > 0 || n.Cores > 0 }

// checkVersion holds what a document is against what its version says: there is
// one encoding of each.
func checkVersion(got byte, want uint64) error {
	if uint64(got) != want {
		return api.Invalid("manifest", "seal what this release's client encodes", fmt.Sprintf("version %d of what is version %d", got, want))
	}
	return nil
}

// The kinds of body that travel under role 4. They stand at the same place in
// every version, so that neither is ever taken for the other.
const (
	kindManifest = 1
	kindBounds   = 2
)

// The documents as they are written; docs/manifest.md lists the keys.
type (
	manifestDoc struct {
		Version  uint64        `cbor:"1,keyasint"`
		Kind     uint64        `cbor:"2,keyasint"`
		Task     sealed.ID     `cbor:"3,keyasint"`
		Suite    uint16        `cbor:"4,keyasint"`
		Revision sealed.Digest `cbor:"5,keyasint"`
		Needs    Needs         `cbor:"6,keyasint"`
		Deadline uint64        `cbor:"7,keyasint"`
		Priority uint8         `cbor:"8,keyasint"`
		Retry    Retry         `cbor:"9,keyasint"`
	}
	boundsDoc struct {
		Version     uint64               `cbor:"1,keyasint"`
		Kind        uint64               `cbor:"2,keyasint"`
		Suite       uint16               `cbor:"3,keyasint"`
		Revision    sealed.Digest        `cbor:"4,keyasint"`
		Default     Needs                `cbor:"5,keyasint"`
		Priority    uint8                `cbor:"6,keyasint"`
		Retry       Retry                `cbor:"7,keyasint"`
		Max         Max                  `cbor:"8,keyasint"`
		Overridable []uint16             `cbor:"9,keyasint"` // not bytes: a list of those would be a byte string
		Initiators  []sealed.Fingerprint `cbor:"10,keyasint"`
		Any         bool                 `cbor:"11,keyasint"`
	}
)

// Encode checks m and returns its one encoding, which is the caller's to wipe.
func (m *Manifest) Encode() ([]byte, error) {
	if err := m.Validate(); err != nil {
		return nil, err
	}
	return encode(&manifestDoc{m.version(), kindManifest, m.Task, m.Suite, m.Revision, m.Needs, m.DeadlineMS, m.Priority, m.Retry})
}

// Decode reads a manifest strictly and checks it.
func Decode(b []byte) (*Manifest, error) {
	var d manifestDoc
	if err := decode(b, kindManifest, &d); err != nil {
		return nil, err
	}
	m := &Manifest{d.Task, d.Suite, d.Revision, d.Needs, d.Deadline, d.Priority, d.Retry}
	d = manifestDoc{} // the one copy is the caller's, see Wipe
	if err := checkVersion(b[2], m.version()); err != nil {
		return m, err
	}
	return m, m.Validate()
}

// Encode checks b and returns its one encoding, which is the caller's to wipe.
func (b *Bounds) Encode() ([]byte, error) {
	if err := b.Validate(); err != nil {
		return nil, err
	}
	fields := make([]uint16, len(b.Overridable))
	for i, f := range b.Overridable {
		fields[i] = uint16(f)
	}
	return encode(&boundsDoc{b.version(), kindBounds, b.Suite, b.Revision, b.Default, b.Priority, b.Retry, b.Max, fields, b.Initiators, b.AnyInitiator})
}

// DecodeBounds reads a bounds document strictly and checks it.
func DecodeBounds(enc []byte) (*Bounds, error) {
	var d boundsDoc
	if err := decode(enc, kindBounds, &d); err != nil {
		return nil, err
	}
	fields := make([]Field, len(d.Overridable))
	for i, f := range d.Overridable {
		fields[i] = Field(min(f, 255)) // what is unknown is refused below
	}
	b := &Bounds{d.Suite, d.Revision, d.Default, d.Priority, d.Retry, d.Max, fields, d.Initiators, d.Any}
	if err := checkVersion(enc[2], b.version()); err != nil {
		return b, err
	}
	return b, b.Validate()
}

func encode(doc any) ([]byte, error) {
	b, err := strict.Marshal(doc, 4096)
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if len(b) > MaxEncoded {
		clear(b)
		return nil, api.Invalid("manifest", "list less", fmt.Sprintf("%d bytes, at most %d", len(b), MaxEncoded))
	}
	return b, nil
}

func decode(b []byte, kind byte, doc any) error {
	bad := func(remedy, message string) error { return api.Invalid("manifest", remedy, message) }
	// Both documents begin with a map's head, 01, the version, 02 and the kind,
	// each one byte: say what is meant before a key is called unknown.
	switch {
	case len(b) > MaxEncoded:
		return bad("list less", fmt.Sprintf("%d bytes, at most %d", len(b), MaxEncoded))
	case len(b) < 5 || b[1] != 1 || b[3] != 2:
		return bad("seal what this release's client encodes", "not a manifest or bounds document")
	case b[2] != Version && b[2] != versionSecond:
		return bad("update this cluster, or use a client of its release", fmt.Sprintf("version %d is unknown, want %d or %d", b[2], Version, versionSecond))
	case b[4] != kind:
		return bad("deposit bounds, open manifests", fmt.Sprintf("kind is %d, want %d", b[4], kind))
	}
	if err := strict.Unmarshal(b, doc); err != nil {
		// The library's words may quote what it read, and this error travels.
		return bad("seal what this release's client encodes", "not the deterministic CBOR of this version: a key, a type or a form is wrong")
	}
	return nil
}
