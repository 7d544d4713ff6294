package sealed_test

import (
	"encoding/hex"
	"math"
	"strings"
	"testing"

	"github.com/emmansun/gmsm/sm2"
)

// makeVectors makes the published vectors, the same ones each time.
func makeVectors(t *testing.T) []vector {
	var list []vector
	random := byte(0)
	// add appends a vector of the given role, which change alters and after cuts
	// or flips. An empty code means that it opens.
	add := func(name string, role uint8, code string, x *expect, change func(*maker), after func(*maker, []byte) []byte) {
		random++
		m := newMaker(role, random)
		if change != nil {
			change(m)
		}
		env := m.make(t)
		if after != nil {
			env = after(m, env)
		}
		to := testKey("function decrypt")
		v := vector{
			Name: name, RecipientPrivate: hex.EncodeToString(to.D.FillBytes(make([]byte, 32))), RecipientPublic: hex.EncodeToString(point(to)),
			Link: hex.EncodeToString(m.link), NowMS: vectorNow, Sealed: hex.EncodeToString(env), Error: code, Expect: x,
		}
		if code == "" {
			p := hex.EncodeToString(m.plaintext())
			v.Plaintext = &p
		}
		list = append(list, v)
	}
	ok := func(name string, role uint8, change func(*maker)) { add(name, role, "", nil, change, nil) }
	bad := func(name, code string, role uint8, change func(*maker)) { add(name, role, code, nil, change, nil) }
	cut := func(name, code string, after func(*maker, []byte) []byte) { add(name, 1, code, nil, nil, after) }
	flip := func(at func(*maker) int) func(*maker, []byte) []byte {
		return func(m *maker, b []byte) []byte { b[at(m)] ^= 1; return b }
	}
	long := func(n int) []byte { return []byte(strings.Repeat("0123456789abcdef", n/16+1)[:n]) }

	// What opens.
	ok("request", 1, nil)
	ok("request without body", 1, func(m *maker) { m.records = [][]byte{requestHead()} })
	ok("request without reply key", 1, func(m *maker) { m.reply = make([]byte, 65) })
	ok("request in two records", 1, func(m *maker) { m.records = append(m.records, []byte(" and goodbye")) })
	ok("request in short records, the last one empty", 1, func(m *maker) {
		m.records = append(m.records, []byte{1}, []byte{2, 3}, []byte{4, 5, 6}, nil)
	})
	ok("request with a full record", 1, func(m *maker) {
		m.records = [][]byte{append(requestHead(), long(65536-len(requestHead()))...), []byte("end")}
	})
	ok("request with early input", 1, func(m *maker) { m.flags = 1 })
	add("request that waited in a queue", 1, "", &expect{MaxQueuedMS: 3_600_000}, func(m *maker) {
		m.flags, m.issued, m.expires = 2, vectorNow-50_000, vectorNow-50_000+3_600_000
	}, nil)
	ok("request in its last millisecond", 1, func(m *maker) { m.issued, m.expires = vectorNow-60_000, vectorNow })
	ok("request from a clock 30 s ahead", 1, func(m *maker) { m.issued, m.expires = vectorNow+30_000, vectorNow+40_000 })
	ok("request of the longest life", 1, func(m *maker) { m.expires = m.issued + 300_000 })
	ok("request under a name of 255 bytes", 1, func(m *maker) { m.name = strings.Repeat("a", 200) + "." + strings.Repeat("b", 54) })
	ok("request with an empty head", 1, func(m *maker) {
		m.records = [][]byte{withLength([]byte("\xa4\x01\x63GET\x02\x60\x03\x60\x04\x80"))}
	})
	ok("reply", 2, nil)
	ok("reply opened long after", 2, func(m *maker) {
		m.notBefore, m.notAfter, m.issued, m.expires = 1_000_000_000, 1_000_003_600, 1_000_000_000_000, 1_000_000_300_000
	})
	ok("bundle", 3, func(m *maker) { m.records = [][]byte{append(long(32), "a tar archive"...)} })
	ok("bundle under a grant of a century", 3, func(m *maker) { m.notAfter = m.notBefore + 100*365*86400 })
	ok("bundle under a grant that never ends", 3, func(m *maker) { m.notBefore, m.notAfter = 0, math.MaxUint64 })
	ok("manifest", 4, nil)
	ok("deposit", 5, nil)
	ok("release", 6, nil)
	ok("log", 7, nil)

	// format
	bad("wrong magic", "format", 1, func(m *maker) { m.magic = "FSG2" })
	bad("unknown suite", "format", 1, func(m *maker) { m.suite = 2 })
	bad("role 0", "format", 1, func(m *maker) { m.role = 0 })
	bad("role 8", "format", 1, func(m *maker) { m.role = 8 })
	add("another role than expected", 3, "format", &expect{Role: 1}, nil, nil)
	bad("sender off the curve", "format", 1, func(m *maker) { m.sender[64] ^= 1 })
	bad("sender compressed", "format", 1, func(m *maker) { m.sender[0] = 2 })
	bad("reply key off the curve", "format", 1, func(m *maker) { m.reply[40] ^= 1 })
	bad("reply key is the signing key", "format", 1, func(m *maker) { m.reply = m.sender })
	bad("reply key in a reply", "format", 2, func(m *maker) { m.reply = point(testKey("caller decrypt")) })
	bad("context in a deposit", "format", 5, func(m *maker) { m.context = hash(nil) })
	bad("empty name", "format", 1, func(m *maker) { m.name = "" })
	bad("name without a dot", "format", 1, func(m *maker) { m.name = "echo" })
	bad("name with two dots", "format", 1, func(m *maker) { m.name = "echo.demo.x" })
	bad("name in upper case", "format", 1, func(m *maker) { m.name = "Echo.demo" })
	bad("wrong message magic", "format", 3, func(m *maker) { m.msgMagic = "FSM2" })
	bad("unknown flag", "format", 1, func(m *maker) { m.flags = 4 })
	bad("flag in a reply", "format", 2, func(m *maker) { m.flags = 1 })
	bad("message of another grant", "format", 1, func(m *maker) { m.grantInMsg = hash([]byte("another")) })
	add("reply to another request", 2, "format", &expect{ID: strings.Repeat("07", 16)}, nil, nil)
	add("reply without a link", 2, "format", nil, func(m *maker) { m.link = nil }, nil)
	bad("head longer than its record", "format", 1, func(m *maker) {
		m.records = [][]byte{requestHead()[:20], append(requestHead()[20:], "hello"...)}
	})
	bad("head length alone", "format", 1, func(m *maker) { m.records = [][]byte{{0, 0}} })
	bad("head longer than 60000", "format", 1, func(m *maker) {
		m.records = [][]byte{withLength(append([]byte("\xa4\x01\x64POST\x02\x60\x03\x60\x04\x82\x61a\x59\xea\x60"), long(60000)...))}
	})
	bad("head with a long length form", "format", 1, func(m *maker) {
		m.records = [][]byte{withLength([]byte("\xa4\x01\x78\x03GET\x02\x60\x03\x60\x04\x80"))}
	})
	bad("head with keys out of order", "format", 1, func(m *maker) {
		m.records = [][]byte{withLength([]byte("\xa4\x02\x60\x01\x63GET\x03\x60\x04\x80"))}
	})
	bad("head with an unknown key", "format", 1, func(m *maker) {
		m.records = [][]byte{withLength([]byte("\xa5\x01\x63GET\x02\x60\x03\x60\x04\x80\x05\x60"))}
	})
	bad("head with a line break in a value", "format", 1, func(m *maker) {
		m.records = [][]byte{withLength([]byte("\xa4\x01\x63GET\x02\x60\x03\x60\x04\x82\x61a\x43b\r\n"))}
	})
	bad("head with a byte after it", "format", 1, func(m *maker) {
		m.records = [][]byte{withLength([]byte("\xa4\x01\x63GET\x02\x60\x03\x60\x04\x80\x00"))}
	})

	// unknown_key, wrong_function, stale_revision
	bad("sealed to another key", "unknown_key", 1, func(m *maker) {
		m.recipient = point(testKey("another function"))
		m.to = m.recipient
	})
	add("another function", 1, "wrong_function", &expect{Name: "other.demo"}, nil, nil)
	add("another revision", 1, "stale_revision", &expect{Context: strings.Repeat("09", 32)}, nil, nil)
	add("another revision of a bundle", 3, "stale_revision", &expect{Context: strings.Repeat("09", 32)}, nil, nil)

	// window
	bad("window that ends before it begins", "window", 1, func(m *maker) { m.notAfter = m.notBefore - 1 })
	bad("window longer than an hour", "window", 1, func(m *maker) { m.notAfter = m.notBefore + 3601 })
	bad("issued before the window", "window", 1, func(m *maker) { m.issued = m.notBefore*1000 - 1 })
	bad("issued after the window", "window", 1, func(m *maker) { m.notAfter = m.issued/1000 - 1 })
	bad("issued a millisecond after the window", "window", 1, func(m *maker) {
		m.notAfter = vectorNow/1000 - 2
		m.issued = m.notAfter*1000 + 1
	})
	bad("window whose product overflows", "window", 3, func(m *maker) {
		m.notBefore = math.MaxUint64/1000 + 1 + m.issued/1000
		m.notAfter = m.notBefore
	})
	bad("expires before it was issued", "window", 1, func(m *maker) { m.expires = m.issued - 1 })
	bad("life over five minutes", "window", 1, func(m *maker) { m.expires = m.issued + 300_001 })
	bad("bundle with a life over five minutes", "window", 3, func(m *maker) { m.expires = m.issued + 300_001 })
	bad("expired", "window", 1, func(m *maker) { m.expires = vectorNow - 1 })
	bad("issued in the future", "window", 1, func(m *maker) { m.issued, m.expires = vectorNow+30_001, vectorNow+40_000 })
	bad("queued where nothing is queued", "window", 1, func(m *maker) { m.flags = 2 })
	add("queued for too long", 1, "window", &expect{MaxQueuedMS: 600_000}, func(m *maker) {
		m.flags, m.expires = 2, m.issued+600_001
	}, nil)
	add("queued for more than a day", 1, "window", &expect{MaxQueuedMS: 200_000_000}, func(m *maker) {
		m.flags, m.expires = 2, m.issued+86_400_001
	}, nil)

	// signature
	bad("signature of another grant", "signature", 1, func(m *maker) {
		other := *m
		other.editSig = nil
		other.notAfter--
		env := other.make(t)
		sig := append([]byte(nil), env[other.grantLen-int(sigLen(&other, env)):other.grantLen]...)
		m.editSig = func([]byte) []byte { return sig }
	})
	bad("signature by another key", "signature", 1, func(m *maker) { m.signer = testKey("somebody else") })
	bad("signature with a long length form", "signature", 1, func(m *maker) {
		m.editSig = func(s []byte) []byte { return append([]byte{0x30, 0x81, s[1]}, s[2:]...) }
	})
	bad("signature with a zero too many", "signature", 1, func(m *maker) {
		m.editSig = func(s []byte) []byte {
			return append([]byte{0x30, s[1] + 1, 0x02, s[3] + 1, 0x00}, s[4:]...)
		}
	})
	bad("signature with a byte after it", "signature", 1, func(m *maker) { m.editSig = func(s []byte) []byte { return append(s, 0) } })
	bad("signature with r = 0", "signature", 1, func(m *maker) {
		m.editSig = func([]byte) []byte { return []byte{0x30, 0x06, 0x02, 0x01, 0x00, 0x02, 0x01, 0x01} }
	})
	bad("empty signature", "signature", 1, func(m *maker) { m.editSig = func([]byte) []byte { return nil } })

	// sender
	add("sender not admitted", 1, "sender", &expect{Sender: hex.EncodeToString(hash(spki(point(testKey("somebody else")))))}, nil, nil)
	add("bundle by another than the owner", 3, "sender", &expect{Sender: hex.EncodeToString(hash(spki(point(testKey("somebody else")))))}, nil, nil)

	// commitment
	bad("another commitment", "commitment", 1, func(m *maker) { m.editCommit = func(c []byte) { c[31] ^= 1 } })
	cut("message id changed", "commitment", flip(func(m *maker) int { return m.grantLen + 4 }))
	cut("salt changed", "commitment", flip(func(m *maker) int { return m.grantLen + 37 }))
	cut("flag changed", "commitment", flip(func(m *maker) int { return m.grantLen + 36 }))
	cut("issued changed", "commitment", flip(func(m *maker) int { return m.grantLen + 27 }))
	bad("seed encrypted to another key", "commitment", 1, func(m *maker) { m.to = point(testKey("another function")) })
	bad("seed of 31 bytes", "commitment", 1, func(m *maker) { m.seed = m.seed[:31] })
	bad("seed in the raw encoding", "commitment", 1, func(m *maker) { m.enc = rawSeed(t, m) })
	bad("seed with a byte after it", "commitment", 1, func(m *maker) { m.enc = append(derSeed(t, m), 0) })
	bad("seed with its C3 changed", "commitment", 1, func(m *maker) {
		m.enc = derSeed(t, m)
		m.enc[len(m.enc)-40] ^= 1
	})
	bad("empty seed encryption", "commitment", 1, func(m *maker) { m.enc = []byte{} })
	add("reply bound to another request", 2, "commitment", nil, nil, nil)
	list[len(list)-1].Link = hex.EncodeToString(hash([]byte("another request's export32")))

	// replay
	add("request opened twice", 1, "replay", &expect{Repeat: true}, nil, nil)
	add("deposit opened twice", 5, "replay", &expect{Repeat: true}, nil, nil)
	add("release opened twice", 6, "replay", &expect{Repeat: true}, nil, nil)
	add("second reply to one request", 2, "replay", &expect{Repeat: true}, nil, nil)
	add("manifest opened twice", 4, "", &expect{Repeat: true}, nil, nil)
	add("bundle opened twice", 3, "", &expect{Repeat: true}, nil, nil)

	// record
	cut("ciphertext changed", "record", flip(func(m *maker) int { return m.headLen + 4 }))
	cut("tag changed", "record", func(_ *maker, b []byte) []byte { b[len(b)-1] ^= 1; return b })
	add("final bit removed", 1, "record", nil, func(m *maker) { m.records = append(m.records, []byte("end")) }, func(m *maker, b []byte) []byte {
		b[m.recordAt[1]] ^= 0x80
		return b
	})
	add("final bit set early", 1, "record", nil, func(m *maker) { m.records = append(m.records, []byte("end")) }, func(m *maker, b []byte) []byte {
		b[m.recordAt[0]] ^= 0x80
		return b
	})
	add("records swapped", 3, "record", nil, func(m *maker) {
		m.records = [][]byte{long(20), append(long(19), 'x'), []byte("end")}
	}, func(m *maker, b []byte) []byte {
		x, y, z := m.recordAt[0], m.recordAt[1], m.recordAt[2]
		return append(append(append(append([]byte(nil), b[:x]...), b[y:z]...), b[x:y]...), b[z:]...)
	})
	add("record left out", 3, "record", nil, func(m *maker) {
		m.records = [][]byte{long(20), long(20), []byte("end")}
	}, func(m *maker, b []byte) []byte {
		return append(append([]byte(nil), b[:m.recordAt[0]]...), b[m.recordAt[1]:]...)
	})
	bad("record of no bytes before the final one", "record", 3, func(m *maker) { m.records = [][]byte{long(20), nil, []byte("end")} })
	add("record over 65536 bytes, header alone", 3, "record", nil, func(m *maker) {
		m.headers = func(i int, h uint32) uint32 { return 1<<31 | 65537 }
	}, func(m *maker, b []byte) []byte { return b[:m.headLen+4] })

	// truncated
	cut("nothing at all", "truncated", func(*maker, []byte) []byte { return []byte{} })
	cut("cut in the magic", "truncated", func(_ *maker, b []byte) []byte { return b[:3] })
	cut("cut in the fixed part", "truncated", func(_ *maker, b []byte) []byte { return b[:201] })
	cut("cut in the signature", "truncated", func(m *maker, b []byte) []byte { return b[:m.grantLen-1] })
	cut("cut behind the grant", "truncated", func(m *maker, b []byte) []byte { return b[:m.grantLen] })
	cut("cut in the message header", "truncated", func(m *maker, b []byte) []byte { return b[:m.headLen-1] })
	cut("cut behind the message header", "truncated", func(m *maker, b []byte) []byte { return b[:m.headLen] })
	cut("cut in a record's header", "truncated", func(m *maker, b []byte) []byte { return b[:m.headLen+3] })
	cut("cut in a record", "truncated", func(_ *maker, b []byte) []byte { return b[:len(b)-1] })
	add("cut between records", 1, "truncated", nil, func(m *maker) { m.records = append(m.records, []byte("end")) }, func(m *maker, b []byte) []byte {
		return b[:m.recordAt[1]]
	})
	bad("without a final record", "truncated", 1, func(m *maker) { m.noFinal = true })
	cut("byte after the final record", "truncated", func(_ *maker, b []byte) []byte { return append(b, 0) })
	cut("record after the final record", "truncated", func(m *maker, b []byte) []byte { return append(b, b[m.headLen:]...) })
	return list
}

// sigLen reads sig_len of an envelope that m made.
func sigLen(m *maker, env []byte) byte {
	at := 202 + len(m.name)
	enc := int(env[at])<<8 | int(env[at+1])
	return env[at+2+enc]
}

func derSeed(t *testing.T, m *maker) []byte {
	pub, err := sm2.NewPublicKey(m.to)
	if err != nil {
		t.Fatal(err)
	}
	enc, err := sm2.EncryptASN1(repeat(m.random), pub, m.seed)
	if err != nil {
		t.Fatal(err)
	}
	return enc
}

func rawSeed(t *testing.T, m *maker) []byte {
	pub, err := sm2.NewPublicKey(m.to)
	if err != nil {
		t.Fatal(err)
	}
	enc, err := sm2.Encrypt(repeat(m.random), pub, m.seed, nil)
	if err != nil {
		t.Fatal(err)
	}
	return enc
}
