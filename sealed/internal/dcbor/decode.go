package dcbor

import (
	"encoding/binary"
	"fmt"
	"unicode/utf8"
)

// Decoder reads items off the front of a buffer. The first failure sticks:
// every later call returns zero values, and Err says what happened and in which
// field.
type Decoder struct {
	rest  []byte
	all   string // a copy of the input that strings are parts of, or empty
	field string
	err   error
}

// NewDecoder reads b.
func NewDecoder(b []byte) *Decoder { return &Decoder{rest: b} }

// NewStringDecoder reads b, of which most becomes strings: all of them are parts
// of one copy, so that many cost no more than one.
func NewStringDecoder(b []byte) *Decoder { return &Decoder{rest: b, all: string(b)} }

// Field names what is read next, for errors.
func (d *Decoder) Field(name string) *Decoder { d.field = name; return d }

// Err returns the first failure.
func (d *Decoder) Err() error { return d.err }

// Rest returns what was not read.
func (d *Decoder) Rest() []byte { return d.rest }

// Fail records a failure of the caller's own checks.
func (d *Decoder) Fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("%s: %s", d.field, fmt.Sprintf(format, args...))
	}
	d.rest = nil
}

// End fails if bytes are left.
func (d *Decoder) End() error {
	if d.err == nil && len(d.rest) != 0 {
		d.field = "end"
		d.Fail("%d bytes after the last item", len(d.rest))
	}
	return d.err
}

func (d *Decoder) head(major byte, what string) uint64 {
	if d.err != nil {
		return 0
	}
	if len(d.rest) == 0 {
		d.Fail("ends before its %s", what)
		return 0
	}
	first := d.rest[0]
	if first&0xe0 != major {
		d.Fail("is not a CBOR %s", what)
		return 0
	}
	info := first & 0x1f
	if info < 24 {
		d.rest = d.rest[1:]
		return uint64(info)
	}
	if info > 27 {
		d.Fail("has an indefinite or reserved length")
		return 0
	}
	size := 1 << (info - 24)
	if len(d.rest) < 1+size {
		d.Fail("ends inside the head of its %s", what)
		return 0
	}
	var n, least uint64
	switch arg := d.rest[1 : 1+size]; size {
	case 1:
		n, least = uint64(arg[0]), 24
	case 2:
		n, least = uint64(binary.BigEndian.Uint16(arg)), 1<<8
	case 4:
		n, least = uint64(binary.BigEndian.Uint32(arg)), 1<<16
	default:
		n, least = binary.BigEndian.Uint64(arg), 1<<32
	}
	if n < least {
		d.Fail("is not in its shortest form")
		return 0
	}
	d.rest = d.rest[1+size:]
	return n
}

func (d *Decoder) str(major byte, what string, limit int) []byte {
	n := d.head(major, what)
	if d.err != nil {
		return nil
	}
	if n > uint64(limit) {
		d.Fail("has %d bytes, at most %d are allowed", n, limit)
		return nil
	}
	if n > uint64(len(d.rest)) {
		d.Fail("ends inside its %s", what)
		return nil
	}
	v := d.rest[:n:n]
	d.rest = d.rest[n:]
	return v
}

// Uint reads an unsigned integer.
func (d *Decoder) Uint() uint64 { return d.head(majorUint, "unsigned integer") }

// last returns v, which was taken off the input last, as a string.
func (d *Decoder) last(v []byte) string {
	if d.all == "" {
		return string(v)
	}
	end := len(d.all) - len(d.rest)
	return d.all[end-len(v) : end]
}

// Bytes reads a byte string of at most limit bytes; it aliases the input.
func (d *Decoder) Bytes(limit int) []byte { return d.str(majorBytes, "byte string", limit) }

// ByteString is Bytes as a Go string.
func (d *Decoder) ByteString(limit int) string { return d.last(d.Bytes(limit)) }

// Fixed reads a byte string of exactly len(dst) bytes into dst.
func (d *Decoder) Fixed(dst []byte) {
	v := d.Bytes(len(dst))
	if d.err == nil && len(v) != len(dst) {
		d.Fail("has %d bytes, want %d", len(v), len(dst))
		return
	}
	copy(dst, v)
}

// Text reads a text string of at most limit bytes.
func (d *Decoder) Text(limit int) string {
	v := d.str(majorText, "text string", limit)
	if !utf8.Valid(v) {
		d.Fail("is not UTF-8")
		return ""
	}
	return d.last(v)
}

// Bool reads false or true.
func (d *Decoder) Bool() bool {
	if d.err != nil {
		return false
	}
	if len(d.rest) == 0 || (d.rest[0] != encFalse && d.rest[0] != encTrue) {
		d.Fail("is not a CBOR false or true")
		return false
	}
	v := d.rest[0] == encTrue
	d.rest = d.rest[1:]
	return v
}

// Array reads the head of an array of at most limit items.
func (d *Decoder) Array(limit int) int { return d.count(majorArray, "array", limit) }

// Map reads the head of a map of at most limit pairs.
func (d *Decoder) Map(limit int) int { return d.count(majorMap, "map", limit) }

// MapOf reads the head of a map of exactly n pairs.
func (d *Decoder) MapOf(n int) {
	if got := d.Map(n); d.err == nil && got != n {
		d.Fail("has %d pairs, want %d", got, n)
	}
}

// Key reads the integer key of a pair and fails unless it is want: with the
// count fixed by MapOf, that refuses unknown, missing, repeated and unordered
// keys alike. It names the pair's value.
func (d *Decoder) Key(want uint64, name string) *Decoder {
	if got := d.Uint(); d.err == nil && got != want {
		d.field = name
		d.Fail("key %d stands where key %d belongs", got, want)
	}
	d.field = name
	return d
}

func (d *Decoder) count(major byte, what string, limit int) int {
	n := d.head(major, what)
	if d.err != nil {
		return 0
	}
	if n > uint64(limit) {
		d.Fail("has %d items, at most %d are allowed", n, limit)
		return 0
	}
	return int(n)
}
