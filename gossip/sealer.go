package gossip

import (
	"crypto/cipher"
	"crypto/hkdf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/emmansun/gmsm/sm3"
	"github.com/emmansun/gmsm/sm4"
)

// A sealed packet:
//
//	version  1   0xf1
//	salt     16  drawn by the sender
//	counter  u64 big-endian, from 0, of the sender's packets under this salt
//	body         SM4-GCM ciphertext || 16-byte tag
//
// key = HKDF-SM3(secret = cluster key, salt = salt, info = packetInfo), nonce =
// four zero bytes || counter, additional data = everything before body || label.
//
// Why not one key and random nonces: SM4-GCM has 96 bits of nonce, and a cluster
// of 1,000 members sends 2^32 packets in three days, where the odds of a repeated
// nonce, which gives the authentication key away, are no longer negligible (NIST
// SP 800-38D, 8.3). Here a nonce repeats only if two salts of 128 random bits are
// equal, since within one salt the counter never does. A salt is given up after
// 2^20 packets, by when GCM's bounds are still far away, and at each rotation. The
// one way to repeat both is to resume one memory image twice (a snapshot of a
// virtual machine); do not, or restart the daemon afterwards.
//
// The key of a packet is derived anew when it is opened: 3 µs, no state per
// sender but the replay window, nothing an attacker can fill.
const (
	packetVersion    = 0xf1
	saltSize         = 16
	packetHeader     = 1 + saltSize + 8
	tagSize          = 16
	packetOverhead   = packetHeader + tagSize
	packetsPerSalt   = 1 << 20
	packetInfo       = "faasd-sec gossip packet v1"
	streamInfoClient = "faasd-sec gossip stream v1 client"
	streamInfoServer = "faasd-sec gossip stream v1 server"
)

var (
	errForged   = errors.New("gossip: sealed with another key or label, or damaged")
	errReplayed = errors.New("gossip: seen before")
)

// deriveAEAD makes the SM4-GCM of one sender's salt, or of one direction of one
// stream.
func deriveAEAD(k Key, salt []byte, info string) (cipher.AEAD, error) {
	sub, err := hkdf.Key(sm3.New, k[:], salt, info, sm4.BlockSize)
	if err != nil {
		return nil, fmt.Errorf("gossip: derive a key: %w", err)
	}
	block, err := sm4.NewCipher(sub)
	if err != nil {
		return nil, fmt.Errorf("gossip: set up SM4: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("gossip: set up GCM: %w", err)
	}
	return aead, nil
}

// counterNonce is the nonce of the n-th thing sealed under one derived key.
func counterNonce(n uint64) (nonce [12]byte) {
	binary.BigEndian.PutUint64(nonce[4:], n)
	return nonce
}

// sealer seals and opens packets and hands streams their keys. It is safe for
// concurrent use.
type sealer struct {
	label []byte
	rand  io.Reader

	mu      sync.Mutex
	ring    []Key // never changed in place
	aead    cipher.AEAD
	salt    [saltSize]byte
	counter uint64
	replay  replayGuard
}

func newSealer(keys []Key, label string, rand io.Reader) (*sealer, error) {
	s := &sealer{label: []byte(label), rand: rand}
	return s, s.rotate(keys)
}

// rotate puts another ring in place; the first key seals from now on.
func (s *sealer) rotate(keys []Key) error {
	if err := checkKeys(keys); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.ring
	s.ring = append([]Key(nil), keys...)
	if err := s.freshSalt(); err != nil {
		s.ring = old
		return err
	}
	return nil
}

// keys is the ring of the moment.
func (s *sealer) keys() []Key {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ring
}

// freshSalt begins a new run of the counter. s.mu is held. On an error nothing
// has changed.
func (s *sealer) freshSalt() error {
	var salt [saltSize]byte
	if _, err := io.ReadFull(s.rand, salt[:]); err != nil {
		return fmt.Errorf("gossip: draw a salt: %w", err)
	}
	aead, err := deriveAEAD(s.ring[0], salt[:], packetInfo)
	if err != nil {
		return err
	}
	s.aead, s.salt, s.counter = aead, salt, 0
	return nil
}

// seal makes a packet of plain.
func (s *sealer) seal(plain []byte) ([]byte, error) {
	s.mu.Lock()
	if s.counter >= packetsPerSalt {
		if err := s.freshSalt(); err != nil { // never go on with a counter that may run out
			s.mu.Unlock()
			return nil, err
		}
	}
	aead, salt, n := s.aead, s.salt, s.counter
	s.counter++
	s.mu.Unlock()

	b := make([]byte, packetHeader, packetOverhead+len(plain)+len(s.label))
	b[0] = packetVersion
	copy(b[1:], salt[:])
	binary.BigEndian.PutUint64(b[1+saltSize:], n)
	nonce := counterNonce(n)
	return aead.Seal(b, nonce[:], plain, s.packetData(b)), nil
}

func (s *sealer) packetData(header []byte) []byte {
	data := make([]byte, 0, packetHeader+maxLabel)
	return append(append(data, header[:packetHeader]...), s.label...)
}

// open gives what was sealed, or errForged or errReplayed.
func (s *sealer) open(b []byte) ([]byte, error) {
	if len(b) <= packetOverhead || b[0] != packetVersion {
		return nil, errForged
	}
	salt := [saltSize]byte(b[1 : 1+saltSize])
	n := binary.BigEndian.Uint64(b[1+saltSize:])
	if n >= packetsPerSalt { // no sender of ours counts that far
		return nil, errForged
	}
	s.mu.Lock()
	own, ring := salt == s.salt, s.ring
	s.mu.Unlock()
	if own { // sent back at us; memberlist never sends to itself
		return nil, errReplayed
	}
	data, nonce := s.packetData(b), counterNonce(n)
	for _, k := range ring {
		aead, err := deriveAEAD(k, salt[:], packetInfo)
		if err != nil {
			return nil, err
		}
		plain, err := aead.Open(nil, nonce[:], b[packetHeader:], data)
		if err != nil {
			continue
		}
		// Only what opened is remembered, so that forgeries can neither fill the
		// guard nor push a window ahead of its sender.
		s.mu.Lock()
		fresh := s.replay.admit(salt, n)
		s.mu.Unlock()
		if !fresh {
			return nil, errReplayed
		}
		return plain, nil
	}
	return nil, errForged
}
