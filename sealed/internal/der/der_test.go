package der

import (
	"bytes"
	"strings"
	"testing"
)

func encodeInt(v string) string { return "\x02" + string(rune(len(v))) + v }

func seq(parts ...string) []byte {
	body := strings.Join(parts, "")
	if len(body) >= 128 {
		return append([]byte{0x30, 0x81, byte(len(body))}, body...)
	}
	return append([]byte{0x30, byte(len(body))}, body...)
}

var octets = "\x04\x20" + strings.Repeat("c", 32)

func TestSignatureHasOneEncoding(t *testing.T) {
	high := "\x00" + order[:31] + "\x22" // n-1
	for name, c := range map[string]struct {
		b  []byte
		ok bool
	}{
		"small":                {seq(encodeInt("\x01"), encodeInt("\x7f")), true},
		"largest":              {seq(encodeInt(high), encodeInt(high)), true},
		"r is n":               {seq(encodeInt("\x00"+order), encodeInt("\x01")), false},
		"s is n":               {seq(encodeInt("\x01"), encodeInt("\x00"+order)), false},
		"r is 0":               {seq(encodeInt("\x00"), encodeInt("\x01")), false},
		"s is 0":               {seq(encodeInt("\x01"), encodeInt("\x00")), false},
		"r is negative":        {seq(encodeInt("\x80"), encodeInt("\x01")), false},
		"r is padded":          {seq(encodeInt("\x00\x01"), encodeInt("\x01")), false},
		"r is empty":           {seq(encodeInt(""), encodeInt("\x01\x01")), false},
		"s is missing":         {seq(encodeInt("\x01")), false},
		"a third integer":      {seq(encodeInt("\x01"), encodeInt("\x01"), encodeInt("\x01")), false},
		"bytes after it":       {append(seq(encodeInt("\x01"), encodeInt("\x01")), 0), false},
		"long length form":     {[]byte("\x30\x81\x06\x02\x01\x01\x02\x01\x01"), false},
		"indefinite length":    {[]byte("\x30\x80\x02\x01\x01\x02\x01\x01\x00\x00"), false},
		"a set":                {[]byte("\x31\x06\x02\x01\x01\x02\x01\x01"), false},
		"cut":                  {[]byte("\x30\x06\x02\x01\x01\x02\x01"), false},
		"nothing":              {nil, false},
		"integer beyond 2^264": {seq(encodeInt(strings.Repeat("\x01", 34)), encodeInt("\x01")), false},
	} {
		if got := IsSignature(c.b); got != c.ok {
			t.Errorf("%s: %t, want %t", name, got, c.ok)
		}
	}
}

func TestSeedHasOneEncoding(t *testing.T) {
	full := "\x00" + strings.Repeat("\xee", 32)
	for name, c := range map[string]struct {
		b  []byte
		ok bool
	}{
		"small":           {seq(encodeInt("\x01"), encodeInt("\x00"), octets, octets), true},
		"largest":         {seq(encodeInt(full), encodeInt(full), octets, octets), true},
		"x is p":          {seq(encodeInt("\x00"+prime), encodeInt("\x01"), octets, octets), false},
		"y is negative":   {seq(encodeInt("\x01"), encodeInt("\x80"), octets, octets), false},
		"C2 of 31 bytes":  {seq(encodeInt("\x01"), encodeInt("\x01"), octets, "\x04\x1f"+octets[3:]), false},
		"C3 of 33 bytes":  {seq(encodeInt("\x01"), encodeInt("\x01"), "\x04\x21c"+octets[2:], octets), false},
		"a long length":   {seq(encodeInt("\x01"), encodeInt("\x01"), "\x04\x81\x20"+octets[2:], octets), false},
		"bytes inside it": {seq(encodeInt("\x01"), encodeInt("\x01"), octets, octets, "\x00"), false},
		"bytes after it":  {append(seq(encodeInt("\x01"), encodeInt("\x01"), octets, octets), 0), false},
		"raw point":       {append([]byte{4}, bytes.Repeat([]byte{1}, 128)...), false},
	} {
		if got := IsSeed(c.b); got != c.ok {
			t.Errorf("%s: %t, want %t", name, got, c.ok)
		}
		if c.ok && len(c.b) > MaxSeed {
			t.Errorf("%s: %d bytes, beyond MaxSeed", name, len(c.b))
		}
	}
}

func FuzzDER(f *testing.F) {
	f.Add(seq(encodeInt("\x01"), encodeInt("\x7f")))
	f.Add(seq(encodeInt("\x01"), encodeInt("\x00"), octets, octets))
	f.Fuzz(func(t *testing.T, b []byte) {
		if IsSignature(b) && (len(b) > MaxSignature || IsSeed(b)) {
			t.Fatalf("%x: too long, or both", b)
		}
		if IsSeed(b) && len(b) > MaxSeed {
			t.Fatalf("%x: too long", b)
		}
	})
}
