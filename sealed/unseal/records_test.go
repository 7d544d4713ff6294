package unseal

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/internal/keysched"
)

// sealRecords seals texts under fixed keys, the last one final.
func sealRecords(tb testing.TB, texts ...string) []byte {
	tb.Helper()
	var keys keysched.Keys
	aead, err := keys.AEAD()
	if err != nil {
		tb.Fatal(err)
	}
	var out []byte
	for i, text := range texts {
		var nonce [12]byte
		keysched.RecordNonce(&nonce, &keys.Nonce, uint64(i))
		header := uint32(len(text))
		if i == len(texts)-1 {
			header |= 1 << 31
		}
		at := len(out)
		out = binary.BigEndian.AppendUint32(out, header)
		out = aead.Seal(out, nonce[:], []byte(text), out[at:at+4])
	}
	return out
}

func newRecords(tb testing.TB, body []byte, from uint64) *records {
	tb.Helper()
	var keys keysched.Keys
	aead, err := keys.AEAD()
	if err != nil {
		tb.Fatal(err)
	}
	return &records{src: newSource(bytes.NewReader(body)), aead: aead, base: keys.Nonce, count: from}
}

// TestRecordBeyondTheLastIsRefused: the 2^24th record may be the last, no other
// may follow it.
func TestRecordBeyondTheLastIsRefused(t *testing.T) {
	r := newRecords(t, []byte{0x80, 0, 0, 0}, sealed.MaxRecords)
	defer r.src.close()
	if _, _, err := r.header(); sealed.CodeOf(err) != sealed.CodeRecord {
		t.Fatal(err)
	}
	r = newRecords(t, nil, sealed.MaxRecords)
	defer r.src.close()
	if _, _, err := r.header(); sealed.CodeOf(err) != sealed.CodeTruncated {
		t.Fatal(err)
	}
}

// FuzzRecords reads any bytes as records under a key the fuzzer's seeds are
// sealed with: what comes out is what was sealed, from its beginning.
func FuzzRecords(f *testing.F) {
	const whole = "onetwothree"
	good := sealRecords(f, "one", "two", "three")
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add(append(bytes.Clone(good), 0))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Add(sealRecords(f, "one", ""))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := newRecords(t, b, 0)
		defer r.src.close()
		var got []byte
		for !r.final {
			text, err := r.next(nil, nil)
			if err != nil {
				if code := sealed.CodeOf(err); code != sealed.CodeRecord && code != sealed.CodeTruncated {
					t.Fatal(err)
				}
				break
			}
			got = append(got, text...)
		}
		if !bytes.HasPrefix([]byte(whole), got) {
			t.Fatalf("%q came out of %x", got, b)
		}
	})
}
