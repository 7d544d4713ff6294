package sealed

import (
	"crypto/rand"
	"encoding/binary"
	"sync"
	"sync/atomic"

	"github.com/emmansun/gmsm/sm3"

	"github.com/faasd-sec/faasd-sec/sealed/internal/keysched"
)

// Salts makes message salts that no clone of the process makes again. A salt is
//
//	SM3(seed || 32 random bytes || u64 process-wide counter || instance id)[:24]
//
// so it repeats only if the random source, the counter and the instance id all
// repeat. The seed keeps a weak random source from showing in clear.
type Salts struct {
	instance []byte
	next     func() uint64
}

// saltCounter counts every message this process ever sealed, whatever grant or
// Salts it used: the format asks for a process-wide counter, which is the one
// reason for a variable at package level.
var saltCounter atomic.Uint64

// NewSalts returns a source for a machine or process with the given instance id,
// a value that differs per clone, such as the VM generation id. Sixteen bytes
// drawn now are part of it, so an empty instance protects across restarts, and
// only a given one across clones of memory whose random source was cloned too.
func NewSalts(instance []byte) *Salts {
	drawn := make([]byte, 16, 16+len(instance))
	rand.Read(drawn) // never fails: the runtime ends the process instead
	return &Salts{instance: append(drawn, instance...), next: func() uint64 { return saltCounter.Add(1) }}
}

// processSalts is what grants use that were given no Salts.
var processSalts = sync.OnceValue(func() *Salts { return NewSalts(nil) })

// Sizes in bytes of what a salt is hashed from, beside the instance id.
const (
	saltRandom = 32
	saltFixed  = keysched.SeedSize + saltRandom + 8
)

// fill sets dst to a new salt, hashing in the room behind buf.
func (s *Salts) fill(dst *[24]byte, buf, seed, drawn []byte) {
	buf = append(append(buf, seed...), drawn...)
	buf = binary.BigEndian.AppendUint64(buf, s.next())
	buf = append(buf, s.instance...)
	sum := sm3.Sum(buf)
	clear(buf)
	copy(dst[:], sum[:])
}
