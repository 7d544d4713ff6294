// Package keysched is the key schedule of the envelope's suite 0x0001:
// HKDF-SM3 (RFC 5869 with SM3) from a grant's seed to a message's keys. What all
// messages under a grant share is computed once, down to the hash states after
// HMAC's key block.
package keysched

import (
	"crypto/cipher"
	"encoding"
	"encoding/binary"
	"fmt"
	"hash"
	"sync"

	"github.com/emmansun/gmsm/sm3"
	"github.com/emmansun/gmsm/sm4"
)

// Sizes in bytes.
const (
	SeedSize   = 32
	LinkSize   = 32
	BoundSize  = 93 // of a message header, what its keys are bound to
	stateSize  = 108
	outputSize = 16 + 12 + 32 + 32

	labelPRK     = "faasd-sec/v1 prk\x00"
	labelMessage = "faasd-sec/v1 msg\x00"
)

// Keys are one message's secrets, in the order HKDF puts them out.
type Keys struct {
	Key    [16]byte
	Nonce  [12]byte
	Commit [32]byte
	Export [32]byte
}

// Wipe zeroes k.
func (k *Keys) Wipe() { *k = Keys{} }

// AEAD returns SM4-GCM under the message's key. The library keeps the expanded
// key in the result, where it cannot be wiped; it goes with the garbage.
func (k *Keys) AEAD() (cipher.AEAD, error) {
	block, err := sm4.NewCipher(k.Key[:])
	if err != nil {
		return nil, fmt.Errorf("sm4: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("sm4-gcm: %w", err)
	}
	return aead, nil
}

// RecordNonce sets dst to base XOR (four zero bytes || u64 counter).
func RecordNonce(dst, base *[12]byte, counter uint64) {
	*dst = *base
	binary.BigEndian.PutUint64(dst[4:], binary.BigEndian.Uint64(base[4:])^counter)
}

// Links says what a grant's messages have to do with links.
type Links uint8

// What it can be.
const (
	NoLinks    Links = iota // they neither need one nor make one
	MakesLinks              // each makes one: its export
	TakesLinks              // each needs one
)

// Schedule is what the messages under one grant share. It is safe for
// concurrent use until Wipe.
type Schedule struct {
	seed    [SeedSize]byte
	extract mac // keyed with the grant's salt
	expand  mac // keyed with prk; only where no link enters
	links   Links
}

// New computes a grant's schedule.
func New(grant, recipient []byte, seed *[SeedSize]byte, links Links) *Schedule {
	w := pool.Get().(*scratch)
	defer w.free()
	w.h.Reset()
	w.h.Write(grant)
	w.h.Write(recipient)
	salt := w.h.Sum(append(w.buf[:0], labelPRK...))

	s := &Schedule{seed: *seed, links: links}
	s.extract.init(w, salt)
	if links != TakesLinks {
		s.extract.begin(w)
		w.h.Write(s.seed[:])
		s.extract.end(w)
		s.expand.init(w, w.sum[:])
	}
	return s
}

// Derive sets out to the keys of the message whose header begins with bound.
// link is given exactly if the schedule takes links. Export stays zero unless it
// makes them: nobody else uses it, and it takes a third of the hashing.
func (s *Schedule) Derive(out *Keys, bound []byte, link *[LinkSize]byte) error {
	linked := s.links == TakesLinks
	if len(bound) != BoundSize || (link != nil) != linked {
		return fmt.Errorf("key schedule: %d header bytes and link %t, want %d and %t", len(bound), link != nil, BoundSize, linked)
	}
	w := pool.Get().(*scratch)
	defer w.free()
	expand := &s.expand
	if linked {
		s.extract.begin(w)
		w.h.Write(s.seed[:])
		w.h.Write(link[:])
		s.extract.end(w)
		expand = &w.linked
		expand.init(w, w.sum[:])
	}
	info := append(append(w.buf[:0], labelMessage...), bound...)
	info = append(info, 0)
	var okm [96]byte
	blocks := 2 // up to commit's end
	if s.links == MakesLinks {
		blocks = 3
	}
	for i := range blocks {
		info[len(info)-1] = byte(i + 1)
		expand.begin(w)
		if i > 0 {
			w.h.Write(w.sum[:])
		}
		w.h.Write(info)
		expand.end(w)
		copy(okm[32*i:], w.sum[:])
	}
	copy(out.Key[:], okm[0:])
	copy(out.Nonce[:], okm[16:])
	copy(out.Commit[:], okm[28:])
	if s.links == MakesLinks {
		copy(out.Export[:], okm[60:outputSize])
	}
	clear(okm[:])
	return nil
}

// Seed returns the seed, for the sender's salts.
func (s *Schedule) Seed() []byte { return s.seed[:] }

// Wipe zeroes everything. Nobody may be using s.
func (s *Schedule) Wipe() { *s = Schedule{} }

// mac is HMAC-SM3 under one key: the hash states after the inner and outer key
// block, as the library serialises them.
type mac struct {
	inner, outer [stateSize]byte
}

// sm3State is what the library's hash offers beyond hash.Hash.
type sm3State interface {
	hash.Hash
	encoding.BinaryAppender
	encoding.BinaryUnmarshaler
}

// scratch is a hash with room to work; it holds secrets only between get and free.
type scratch struct {
	h      sm3State
	sum    [32]byte
	buf    [128]byte
	block  [sm3.BlockSize]byte // of a MAC's key; zero between two uses
	linked mac
}

var pool = sync.Pool{New: func() any { return &scratch{h: sm3.New().(sm3State)} }}

func (w *scratch) free() {
	// Reset leaves the last partial block in the hash: write over it first.
	clear(w.block[:])
	w.h.Reset()
	w.h.Write(w.block[:sm3.BlockSize-1])
	w.h.Reset()
	clear(w.sum[:])
	clear(w.buf[:])
	w.linked = mac{}
	pool.Put(w)
}

// init keys m; key has at most 64 bytes and may lie in w.buf or w.sum.
func (m *mac) init(w *scratch, key []byte) {
	block := &w.block
	clear(block[:])
	copy(block[:], key)
	for i := range block {
		block[i] ^= 0x36
	}
	w.save(&m.inner, block[:])
	for i := range block {
		block[i] ^= 0x36 ^ 0x5c
	}
	w.save(&m.outer, block[:])
	clear(block[:])
}

func (w *scratch) save(dst *[stateSize]byte, block []byte) {
	w.h.Reset()
	w.h.Write(block)
	state, err := w.h.AppendBinary(dst[:0])
	if err != nil || len(state) != stateSize {
		panic("keysched: the SM3 library serialises its state differently")
	}
}

func (w *scratch) load(state *[stateSize]byte) {
	if err := w.h.UnmarshalBinary(state[:]); err != nil {
		panic("keysched: SM3 state: " + err.Error())
	}
}

// begin starts a MAC; the caller writes the message to w.h, and end leaves the
// result in w.sum.
func (m *mac) begin(w *scratch) { w.load(&m.inner) }

func (m *mac) end(w *scratch) {
	w.h.Sum(w.sum[:0])
	w.load(&m.outer)
	w.h.Write(w.sum[:])
	w.h.Sum(w.sum[:0])
}
