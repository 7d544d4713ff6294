package dcbor

import (
	"bytes"
	"math"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
)

// TestEncodesLikeAnotherImplementation compares with a general CBOR library in
// its deterministic mode.
func TestEncodesLikeAnotherImplementation(t *testing.T) {
	mode, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		t.Fatal(err)
	}
	same := func(got []byte, v any) {
		t.Helper()
		want, err := mode.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("%x, want %x for %v", got, want, v)
		}
	}
	for _, n := range []uint64{0, 23, 24, 255, 256, 65535, 65536, 1<<32 - 1, 1 << 32, math.MaxUint64} {
		same(AppendUint(nil, n), n)
	}
	for _, n := range []int{0, 1, 23, 24, 255, 256, 70000} {
		same(AppendBytes(nil, make([]byte, n)), make([]byte, n))
		same(AppendText(nil, strings.Repeat("é", n)), strings.Repeat("é", n))
	}
	same(AppendBool(AppendBool(AppendArray(nil, 2), true), false), []any{true, false})
	same(AppendText(AppendText(AppendText(AppendText(AppendMap(nil, 2), "z"), "1"), "aa"), "2"), map[string]string{"aa": "2", "z": "1"})
	if !LessText("z", "aa") || LessText("aa", "z") || !LessText("a", "b") || LessText("a", "a") {
		t.Fatal("text keys are not ordered by their encoding")
	}
}

func TestDecoderRefusesEverythingElse(t *testing.T) {
	read := map[string]func(*Decoder){
		"uint":  func(d *Decoder) { d.Uint() },
		"bytes": func(d *Decoder) { d.Bytes(8) },
		"text":  func(d *Decoder) { d.Text(8) },
		"bool":  func(d *Decoder) { d.Bool() },
		"array": func(d *Decoder) { d.Array(8) },
		"map":   func(d *Decoder) { d.Map(8) },
	}
	for _, c := range []struct{ kind, in string }{
		{"uint", ""}, {"uint", "\x18\x17"}, {"uint", "\x19\x00\xff"}, {"uint", "\x1a\x00\x00\xff\xff"},
		{"uint", "\x1b\x00\x00\x00\x00\xff\xff\xff\xff"}, {"uint", "\x1c"}, {"uint", "\x1f"}, {"uint", "\x20"},
		{"uint", "\x19\x01"}, {"uint", "\xf5"}, {"uint", "\x00\x00"}, {"uint", "\xc0\x00"},
		{"bytes", "\x45abcd"}, {"bytes", "\x49123456789"}, {"bytes", "\x5f\x41a\xff"}, {"bytes", "\x61a"}, {"bytes", "\x58\x01a"},
		{"bytes", "\x5b\xff\xff\xff\xff\xff\xff\xff\xff"},
		{"text", "\x41a"}, {"text", "\x61\xff"}, {"text", "\x7f\xff"}, {"text", "\x69123456789"},
		{"bool", "\xf6"}, {"bool", "\x01"}, {"bool", ""}, {"bool", "\xf8\x15"},
		{"array", "\x89"}, {"array", "\x9f\xff"}, {"array", "\xa0"}, {"map", "\xa9"}, {"map", "\xbf\xff"}, {"map", "\x80"},
	} {
		d := NewDecoder([]byte(c.in)).Field("it")
		read[c.kind](d)
		if err := d.End(); err == nil {
			t.Errorf("%s took %x", c.kind, c.in)
		}
	}
}

func TestFirstFailureSticksAndNamesItsField(t *testing.T) {
	d := NewDecoder([]byte("\xa2\x01\x05\x03\x06"))
	d.Field("map").MapOf(2)
	if got := d.Key(1, "one").Uint(); got != 5 {
		t.Fatal(got)
	}
	d.Key(2, "two").Uint()
	d.Key(3, "three").Uint()
	if err := d.End(); err == nil || !strings.Contains(err.Error(), "two: key 3 stands where key 2 belongs") {
		t.Fatal(err)
	}
}

// FuzzDecoder decodes with a script of reads and checks that what was accepted
// encodes to the same bytes again.
func FuzzDecoder(f *testing.F) {
	f.Add([]byte("\x82\x01\x43abc\x62hi\xf5"), []byte("aubtx"))
	f.Add([]byte("\x82\x01\x43abc\x62hi\xf5"), []byte("ausx"))
	f.Fuzz(func(t *testing.T, in, script []byte) {
		out, err := again(NewDecoder(in), script)
		if err == nil && !bytes.Equal(out, in) {
			t.Fatalf("%x was read as %x", in, out)
		}
		shared, sharedErr := again(NewStringDecoder(in), script)
		if (err == nil) != (sharedErr == nil) || !bytes.Equal(shared, out) {
			t.Fatalf("%x was read as %x (%v), with strings as %x (%v)", in, out, err, shared, sharedErr)
		}
	})
}

// again writes what it reads, one item per step of script, and what is left.
func again(d *Decoder, script []byte) (out []byte, err error) {
	for _, op := range script {
		switch op {
		case 'u':
			out = AppendUint(out, d.Uint())
		case 'b':
			out = AppendBytes(out, d.Bytes(100))
		case 's':
			out = AppendBytes(out, d.ByteString(100))
		case 't':
			out = AppendText(out, d.Text(100))
		case 'a':
			out = AppendArray(out, d.Array(100))
		case 'm':
			out = AppendMap(out, d.Map(100))
		case 'x':
			out = AppendBool(out, d.Bool())
		}
		if d.Err() != nil {
			return out, d.Err()
		}
	}
	return append(out, d.Rest()...), nil
}
