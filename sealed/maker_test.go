package sealed_test

import (
	"crypto"
	"crypto/cipher"
	"crypto/hkdf"
	"encoding/binary"
	"testing"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/sm3"
	"github.com/emmansun/gmsm/sm4"
)

// maker makes envelopes from docs/envelope.md alone, without the packages under
// test: field by field, valid or not. It is the second implementation that the
// vectors come from.
type maker struct {
	magic      string
	suite      uint16
	role       uint8
	recipient  []byte // point; its key id goes into the grant
	to         []byte // point the seed is encrypted to
	signer     *sm2.PrivateKey
	sender     []byte
	reply      []byte
	context    []byte
	notBefore  uint64
	notAfter   uint64
	name       string
	seed       []byte
	enc        []byte // instead of an encryption of seed
	editSig    func(sig []byte) []byte
	msgMagic   string
	id         []byte
	issued     uint64
	expires    uint64
	flags      uint8
	salt       []byte
	grantInMsg []byte // instead of SM3(GRANT)
	link       []byte
	editCommit func([]byte)
	records    [][]byte // plaintexts; the last one is final
	headers    func(i int, header uint32) uint32
	noFinal    bool
	random     byte // what SM2 encryption draws, byte for byte

	// Set by make.
	grantLen, headLen int
	recordAt          []int
	export            []byte
}

const (
	vectorNow  = 1_800_000_000_000 // unix ms
	vectorName = "echo.demo"
)

// point returns 04 || x || y.
func point(k *sm2.PrivateKey) []byte {
	p, err := sm2.PublicKeyToECDH(&k.PublicKey)
	if err != nil {
		panic(err)
	}
	return p.Bytes()
}

func spki(point []byte) []byte {
	return append([]byte("\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x81\x1c\xcf\x55\x01\x82\x2d\x03\x42\x00"), point...)
}

// testKey derives a private key from a label.
func testKey(label string) *sm2.PrivateKey {
	d := sm3.Sum([]byte("faasd-sec vectors: " + label))
	k, err := sm2.NewPrivateKey(d[:])
	if err != nil {
		panic(err)
	}
	return k
}

type repeat byte

func (r repeat) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(r)
	}
	return len(p), nil
}

func hash(parts ...[]byte) []byte {
	h := sm3.New()
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

// newMaker is a valid request of one record, from the key "caller sign" to the
// key "function decrypt".
func newMaker(role uint8, random byte) *maker {
	from, to := testKey("caller sign"), testKey("function decrypt")
	m := &maker{
		magic: "FSG1", suite: 1, role: role, signer: from, sender: point(from),
		recipient: point(to), to: point(to), reply: make([]byte, 65), context: hash([]byte("a revision")),
		notBefore: vectorNow/1000 - 60, notAfter: vectorNow/1000 + 3000, name: vectorName,
		seed: hash([]byte{random}), msgMagic: "FSM1", id: hash([]byte("id"), []byte{random})[:16],
		issued: vectorNow - 1000, expires: vectorNow + 59_000, salt: hash([]byte("salt"), []byte{random})[:24],
		random: random, records: [][]byte{[]byte("plaintext")},
	}
	switch role {
	case 1:
		m.reply = point(testKey("caller decrypt"))
		m.records = [][]byte{append(requestHead(), "hello"...)}
	case 2:
		m.link = hash([]byte("a request's export32"))
		m.records = [][]byte{append(replyHead(), "hello back"...)}
	case 4, 5:
		m.context = make([]byte, 32)
	}
	return m
}

// withLength puts the u32 before a head.
func withLength(head []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(head))), head...)
}

// requestHead is {1: "POST", 2: "/a/b", 3: "q=1", 4: ["content-type", h'746578742f706c61696e']}.
func requestHead() []byte {
	return withLength([]byte("\xa4\x01\x64POST\x02\x64/a/b\x03\x63q=1\x04\x82\x6ccontent-type\x4atext/plain"))
}

// replyHead is {1: 200, 2: ["content-type", h'746578742f706c61696e']}.
func replyHead() []byte {
	return withLength([]byte("\xa2\x01\x18\xc8\x02\x82\x6ccontent-type\x4atext/plain"))
}

func (m *maker) make(tb testing.TB) []byte {
	tb.Helper()
	g := []byte(m.magic)
	g = binary.BigEndian.AppendUint16(g, m.suite)
	g = append(g, m.role)
	g = append(g, hash(spki(m.recipient))[:16]...)
	g = append(g, m.sender...)
	g = append(g, m.reply...)
	g = append(g, m.context...)
	g = binary.BigEndian.AppendUint64(g, m.notBefore)
	g = binary.BigEndian.AppendUint64(g, m.notAfter)
	g = append(g, byte(len(m.name)))
	g = append(g, m.name...)
	enc := m.enc
	if enc == nil {
		pub, err := sm2.NewPublicKey(m.to)
		if err != nil {
			tb.Fatal(err)
		}
		if enc, err = sm2.EncryptASN1(repeat(m.random), pub, m.seed); err != nil {
			tb.Fatal(err)
		}
	}
	g = binary.BigEndian.AppendUint16(g, uint16(len(enc)))
	g = append(g, enc...)
	e, err := sm2.CalculateSM2Hash(&m.signer.PublicKey, append([]byte("faasd-sec/v1 grant\x00"), g...), nil)
	if err != nil {
		tb.Fatal(err)
	}
	sig, err := m.signer.Sign(nil, e, crypto.Hash(0)) // nil: deterministic
	if err != nil {
		tb.Fatal(err)
	}
	if m.editSig != nil {
		sig = m.editSig(sig)
	}
	g = append(append(g, byte(len(sig))), sig...)
	m.grantLen = len(g)

	msg := append([]byte(m.msgMagic), m.id...)
	msg = binary.BigEndian.AppendUint64(msg, m.issued)
	msg = binary.BigEndian.AppendUint64(msg, m.expires)
	msg = append(msg, m.flags)
	msg = append(msg, m.salt...)
	if m.grantInMsg != nil {
		msg = append(msg, m.grantInMsg...)
	} else {
		msg = append(msg, hash(g)...)
	}
	salt := append([]byte("faasd-sec/v1 prk\x00"), hash(g, m.to)...)
	ikm := append(append([]byte(nil), m.seed...), m.link...)
	prk, err := hkdf.Extract(sm3.New, ikm, salt)
	if err != nil {
		tb.Fatal(err)
	}
	okm, err := hkdf.Expand(sm3.New, prk, "faasd-sec/v1 msg\x00"+string(msg), 92)
	if err != nil {
		tb.Fatal(err)
	}
	key, nonce, commit := okm[:16], okm[16:28], append([]byte(nil), okm[28:60]...)
	m.export = okm[60:]
	if m.editCommit != nil {
		m.editCommit(commit)
	}
	out := append(append(g, msg...), commit...)
	m.headLen = len(out)

	block, err := sm4.NewCipher(key)
	if err != nil {
		tb.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		tb.Fatal(err)
	}
	m.recordAt = nil
	for i, text := range m.records {
		m.recordAt = append(m.recordAt, len(out))
		header := uint32(len(text))
		if i == len(m.records)-1 && !m.noFinal {
			header |= 1 << 31
		}
		if m.headers != nil {
			header = m.headers(i, header)
		}
		h := binary.BigEndian.AppendUint32(nil, header)
		n := append([]byte(nil), nonce...)
		binary.BigEndian.PutUint64(n[4:], binary.BigEndian.Uint64(n[4:])^uint64(i))
		out = append(out, h...)
		out = aead.Seal(out, n, text, h)
	}
	return out
}

func (m *maker) plaintext() []byte {
	var p []byte
	for _, r := range m.records {
		p = append(p, r...)
	}
	return p
}
