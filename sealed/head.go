package sealed

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/faasd-sec/faasd-sec/sealed/internal/dcbor"
)

// Limits of a head's parts, in bytes; MaxHead bounds the whole.
const (
	maxMethod     = 32
	maxPath       = 8192
	maxQuery      = 16384
	maxFields     = 256
	maxFieldName  = 256
	maxFieldValue = 32768
)

// Field is one HTTP header field. Name is in lower case; a repeated name is a
// repeated Field, in order.
type Field struct {
	Name, Value string
}

// RequestHead is what a function sees of an invocation besides its body.
type RequestHead struct {
	Method string  // an upper-case token, 1..32 bytes
	Path   string  // "" or an absolute path, escaped as it was written; without the function's own prefix
	Query  string  // without '?'
	Header []Field // at most 256
}

// ReplyHead is a function's answer besides its body.
type ReplyHead struct {
	Status int // 200..999
	Header []Field
}

// AppendTo appends the encoding with its length before it: how a request's
// plaintext begins. It refuses what ParseRequestHead refuses.
func (h RequestHead) AppendTo(dst []byte) ([]byte, error) {
	if err := h.check(); err != nil {
		return nil, fmt.Errorf("sealed: request head: %w", err)
	}
	at := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	dst = dcbor.AppendMap(dst, 4)
	dst = dcbor.AppendText(dcbor.AppendUint(dst, 1), h.Method)
	dst = dcbor.AppendText(dcbor.AppendUint(dst, 2), h.Path)
	dst = dcbor.AppendText(dcbor.AppendUint(dst, 3), h.Query)
	dst = appendFields(dcbor.AppendUint(dst, 4), h.Header)
	return finishHead(dst, at)
}

// AppendTo appends the encoding with its length before it: how a reply's
// plaintext begins. It refuses what ParseReplyHead refuses.
func (h ReplyHead) AppendTo(dst []byte) ([]byte, error) {
	if err := h.check(); err != nil {
		return nil, fmt.Errorf("sealed: reply head: %w", err)
	}
	at := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	dst = dcbor.AppendMap(dst, 2)
	dst = dcbor.AppendUint(dcbor.AppendUint(dst, 1), uint64(h.Status))
	dst = appendFields(dcbor.AppendUint(dst, 2), h.Header)
	return finishHead(dst, at)
}

func finishHead(dst []byte, at int) ([]byte, error) {
	n := len(dst) - at - 4
	if n > MaxHead {
		return nil, fmt.Errorf("sealed: head: %d bytes encoded, at most %d are allowed", n, MaxHead)
	}
	binary.BigEndian.PutUint32(dst[at:], uint32(n))
	return dst, nil
}

// SplitHead splits the first record of a request or reply into its encoded head
// and the start of the body. The head's length must lie inside the record.
func SplitHead(record []byte) (head, body []byte, err error) {
	if len(record) < 4 {
		return nil, nil, errors.New("head: the first record ends inside its length")
	}
	n := binary.BigEndian.Uint32(record)
	if n > MaxHead || int(n) > len(record)-4 {
		return nil, nil, fmt.Errorf("head: %d bytes, the first record has room for %d", n, min(MaxHead, len(record)-4))
	}
	return record[4 : 4+n], record[4+n:], nil
}

// ParseRequestHead decodes a request's head strictly, without its length.
func ParseRequestHead(b []byte) (RequestHead, error) {
	var h RequestHead
	d := dcbor.NewStringDecoder(b)
	d.Field("head").MapOf(4)
	h.Method = d.Key(1, "method").Text(maxMethod)
	h.Path = d.Key(2, "path").Text(maxPath)
	h.Query = d.Key(3, "query").Text(maxQuery)
	h.Header = readFields(d.Key(4, "header"))
	err := d.End()
	if err == nil {
		err = h.check()
	}
	if err != nil {
		return RequestHead{}, fmt.Errorf("request head: %w", err)
	}
	return h, nil
}

// ParseReplyHead decodes a reply's head strictly, without its length.
func ParseReplyHead(b []byte) (ReplyHead, error) {
	var h ReplyHead
	d := dcbor.NewStringDecoder(b)
	d.Field("head").MapOf(2)
	status := d.Key(1, "status").Uint()
	h.Status = int(min(status, 1000))
	h.Header = readFields(d.Key(2, "header"))
	err := d.End()
	if err == nil {
		err = h.check()
	}
	if err != nil {
		return ReplyHead{}, fmt.Errorf("reply head: %w", err)
	}
	return h, nil
}

func (h *RequestHead) check() error {
	if len(h.Method) < 1 || len(h.Method) > maxMethod {
		return fmt.Errorf("method: %d bytes, want 1..%d", len(h.Method), maxMethod)
	}
	for i := range len(h.Method) {
		if c := h.Method[i]; !(c >= 'A' && c <= 'Z' || c == '-' || c == '_') {
			return errors.New("method: want upper-case letters, - and _")
		}
	}
	if len(h.Path) > maxPath || h.Path != "" && h.Path[0] != '/' || !visible(h.Path, "?#") {
		return fmt.Errorf("path: want nothing, or / and visible ASCII without ? and #, at most %d bytes", maxPath)
	}
	if len(h.Query) > maxQuery || !visible(h.Query, "#") {
		return fmt.Errorf("query: want visible ASCII without #, at most %d bytes", maxQuery)
	}
	return checkFields(h.Header)
}

func (h *ReplyHead) check() error {
	if h.Status < 200 || h.Status > 999 {
		return errors.New("status: want 200..999")
	}
	return checkFields(h.Header)
}

// visible reports whether s is ASCII 0x21..0x7e without the bytes of not.
func visible(s, not string) bool {
	for i := range len(s) {
		if s[i] < 0x21 || s[i] > 0x7e {
			return false
		}
		for j := range len(not) {
			if s[i] == not[j] {
				return false
			}
		}
	}
	return true
}

func checkFields(fields []Field) error {
	if len(fields) > maxFields {
		return fmt.Errorf("header: %d fields, at most %d are allowed", len(fields), maxFields)
	}
	for i := range fields {
		f := &fields[i]
		if len(f.Name) < 1 || len(f.Name) > maxFieldName || !fieldName(f.Name) {
			return fmt.Errorf("header: the name of field %d is not a lower-case HTTP token of 1..%d bytes", i, maxFieldName)
		}
		// CR and LF in a value would let it forge fields where it is written out.
		if len(f.Value) > maxFieldValue || !fieldValue(f.Value) {
			return fmt.Errorf("header: the value of field %d holds control bytes, or more than %d bytes", i, maxFieldValue)
		}
	}
	return nil
}

func fieldName(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '_':
		case c == '!', c == '#', c == '$', c == '%', c == '&', c == '\'', c == '*', c == '+', c == '.', c == '^', c == '`', c == '|', c == '~':
		default:
			return false
		}
	}
	return true
}

func fieldValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < 0x20 && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// appendFields writes name, value, name, value: the order is the sender's.
func appendFields(dst []byte, fields []Field) []byte {
	dst = dcbor.AppendArray(dst, 2*len(fields))
	for i := range fields {
		dst = dcbor.AppendText(dst, fields[i].Name)
		dst = dcbor.AppendBytes(dst, fields[i].Value)
	}
	return dst
}

func readFields(d *dcbor.Decoder) []Field {
	n := d.Array(2 * maxFields)
	if n%2 != 0 {
		d.Fail("has a name without a value")
		return nil
	}
	if n == 0 || n > len(d.Rest()) { // each item has a byte at least
		if n != 0 {
			d.Fail("ends before its last field")
		}
		return nil
	}
	fields := make([]Field, n/2, n/2+1) // an agent adds the id of the call
	for i := range fields {
		fields[i].Name = d.Text(maxFieldName)
		fields[i].Value = d.ByteString(maxFieldValue)
	}
	return fields
}
