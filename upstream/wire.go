package upstream

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/faasd-sec/faasd-sec/sealed"
)

// Limits of a reply's header. The head of a sealed reply takes 60,000 bytes of
// CBOR and 256 fields; a function that sends more is told so.
const (
	maxHeaderBytes = 56 << 10
	maxFields      = 250
	lineBuffer     = 16 << 10 // of a connection's reader: one header line fits
)

// ErrReply means that the function's reply breaks HTTP/1.1.
var ErrReply = errors.New("reply is not HTTP/1.1")

func badReply(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrReply, fmt.Sprintf(format, args...))
}

// hopByHop are the headers that mean the connection, not the message
// (RFC 9110, 7.6.1), and those that we set ourselves.
func hopByHop(lower string) bool {
	switch lower {
	case "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
		"proxy-authenticate", "proxy-authorization":
		return true
	}
	return false
}

// validToken reports whether s is a token of RFC 9110.
func validToken(s string) bool {
	if s == "" {
		return false
	}
	for i := 0; i < len(s); i++ {
		if !tokenByte(s[i]) {
			return false
		}
	}
	return true
}

func tokenByte(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	}
	return strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

// validValue reports whether s holds no control character but tab.
func validValue[T string | []byte](s T) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; (c < ' ' && c != '\t') || c == 0x7f {
			return false
		}
	}
	return true
}

// validTarget reports whether s can stand in a request line.
func validTarget(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == '#' {
			return false
		}
	}
	return true
}

// appendRequest writes a request's header. length is -1 for a chunked body.
func appendRequest(dst []byte, r *Request, host string) ([]byte, error) {
	path := r.Path
	if path == "" {
		path = "/"
	}
	switch {
	case !validToken(r.Method) || r.Method == "CONNECT":
		return dst, fmt.Errorf("method %q cannot be passed to a function", r.Method)
	case path[0] != '/' || !validTarget(path) || strings.ContainsRune(path, '?'):
		return dst, errors.New("path is not an absolute, escaped path")
	case !validTarget(r.Query):
		return dst, errors.New("query is not escaped")
	}
	dst = append(append(append(dst, r.Method...), ' '), path...)
	if r.Query != "" {
		dst = append(append(dst, '?'), r.Query...)
	}
	dst = append(append(append(dst, " HTTP/1.1\r\nHost: "...), host...), "\r\n"...)
	drop := connectionOptions(r.Header)
	for _, f := range r.Header {
		switch {
		case hopByHop(f.Name), f.Name == "host", f.Name == "content-length", f.Name == "expect", drop.has(f.Name):
			continue
		case !validToken(f.Name) || !validValue(f.Value):
			return dst, fmt.Errorf("header %q is malformed", f.Name)
		}
		dst = append(append(append(dst, f.Name...), ": "...), f.Value...)
		dst = append(dst, "\r\n"...)
	}
	if r.Upgrade != "" {
		if !validToken(strings.ReplaceAll(r.Upgrade, "/", "-")) {
			return dst, errors.New("the protocol to upgrade to is malformed")
		}
		dst = append(append(append(dst, "Connection: Upgrade\r\nUpgrade: "...), r.Upgrade...), "\r\n"...)
	}
	switch {
	case r.Length < 0:
		dst = append(dst, "Transfer-Encoding: chunked\r\n"...)
	case r.Length > 0 || hasBody(r.Method):
		dst = append(strconv.AppendInt(append(dst, "Content-Length: "...), r.Length, 10), "\r\n"...)
	}
	return append(dst, "\r\n"...), nil
}

func hasBody(method string) bool { return method == "POST" || method == "PUT" || method == "PATCH" }

// options are the header names that a Connection header lists: they are
// hop-by-hop too.
type options []string

func (o options) has(name string) bool {
	for _, n := range o {
		if strings.EqualFold(n, name) {
			return true
		}
	}
	return false
}

func connectionOptions(fields []sealed.Field) options {
	var out options
	for _, f := range fields {
		if f.Name == "connection" {
			for v := range strings.SplitSeq(f.Value, ",") {
				out = append(out, strings.TrimSpace(v))
			}
		}
	}
	return out
}

// head is a reply's parsed header.
type head struct {
	status  int
	http10  bool
	close   bool
	keep    bool // HTTP/1.0 with keep-alive
	chunked bool
	length  int64 // -1 if absent
	fields  []sealed.Field
}

// readHead reads one reply header. n counts the bytes taken, so that the caller
// can tell an empty connection from a broken reply. Of the fields those in only
// are kept, or all where that is nil; over most bytes the header is refused.
func readHead(br *bufio.Reader, only []string, most int) (h head, n int, err error) {
	h.length = -1
	line, err := readLine(br, &n)
	if err != nil {
		return h, n, err
	}
	if err := h.statusLine(line); err != nil {
		return h, n, err
	}
	h.fields = make([]sealed.Field, 0, 8)
	for {
		line, err := readLine(br, &n)
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return h, n, err
		}
		if len(line) == 0 {
			break
		}
		if err := h.field(line, only); err != nil {
			return h, n, err
		}
		if n > most || len(h.fields) > maxFields {
			return h, n, badReply("the header is over %d bytes or %d fields", most, maxFields)
		}
	}
	if h.chunked && h.length >= 0 {
		return h, n, badReply("both Content-Length and Transfer-Encoding")
	}
	if drop := connectionOptions(h.fields); len(drop) > 0 {
		h.close = h.close || drop.has("close")
		h.keep = drop.has("keep-alive")
		h.fields = without(h.fields, drop)
	}
	return h, n, nil
}

func without(fields []sealed.Field, drop options) []sealed.Field {
	kept := fields[:0]
	for _, f := range fields {
		if f.Name != "connection" && !drop.has(f.Name) {
			kept = append(kept, f)
		}
	}
	return kept
}

func readLine(br *bufio.Reader, n *int) ([]byte, error) {
	line, err := br.ReadSlice('\n')
	*n += len(line)
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, badReply("a header line is over %d bytes", lineBuffer)
	case err == io.EOF && len(line) > 0:
		return nil, io.ErrUnexpectedEOF
	case err != nil:
		return nil, err
	}
	return bytes.TrimSuffix(line[:len(line)-1], []byte("\r")), nil
}

func (h *head) statusLine(line []byte) error {
	rest, ok := bytes.CutPrefix(line, []byte("HTTP/1."))
	if !ok || len(rest) < 5 || (rest[0] != '1' && rest[0] != '0') || rest[1] != ' ' || (len(rest) > 5 && rest[5] != ' ') {
		return badReply("no status line")
	}
	for _, c := range rest[2:5] {
		if c < '0' || c > '9' {
			return badReply("no status code")
		}
		h.status = h.status*10 + int(c-'0')
	}
	if h.status < 100 {
		return badReply("status code %d", h.status)
	}
	h.http10 = rest[0] == '0'
	return nil
}

func (h *head) field(line []byte, only []string) error {
	name, value, ok := bytes.Cut(line, []byte(":"))
	if !ok || len(name) == 0 {
		return badReply("a header line without a name")
	}
	if !lower(name) {
		return badReply("a malformed header name")
	}
	value = bytes.Trim(value, " \t")
	if !validValue(value) {
		return badReply("header %s has a control character", name)
	}
	switch string(name) {
	case "content-length":
		n, err := strconv.ParseUint(string(value), 10, 63)
		if err != nil || (h.length >= 0 && h.length != int64(n)) {
			return badReply("a malformed Content-Length")
		}
		h.length = int64(n)
		return nil // the sealed reply has a length of its own
	case "transfer-encoding":
		if h.chunked || !bytes.EqualFold(value, []byte("chunked")) {
			return badReply("a Transfer-Encoding other than chunked")
		}
		h.chunked = true
		return nil
	case "connection": // looked at once all lines are there
	case "keep-alive", "proxy-connection", "te", "trailer", "upgrade":
		return nil
	}
	if key := keptName(name, only); key != "" {
		h.fields = append(h.fields, sealed.Field{Name: key, Value: string(value)})
	}
	return nil
}

// lower makes a name lower case where it lies, and reports whether it is a token.
func lower(b []byte) bool {
	for i, c := range b {
		if !tokenByte(c) {
			return false
		}
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return true
}

// keptName is the name of a field to keep, "" for one to drop. The names that
// nearly every reply has cost no allocation.
func keptName(b []byte, only []string) string {
	for _, name := range only {
		if string(b) == name {
			return name
		}
	}
	switch string(b) {
	case "connection": // said of the others, and taken out in the end
		return "connection"
	case "content-type":
		if only == nil {
			return "content-type"
		}
	case "date":
		if only == nil {
			return "date"
		}
	case "server":
		if only == nil {
			return "server"
		}
	}
	if only != nil {
		return ""
	}
	return string(b)
}
