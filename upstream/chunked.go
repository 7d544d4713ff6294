package upstream

import (
	"bufio"
	"bytes"
	"io"
	"strconv"
)

// chunkReader reads a chunked body up to and including its trailer.
type chunkReader struct {
	br   *bufio.Reader
	left int64 // of the chunk
	more bool  // a chunk was begun: CRLF follows it
	done bool
}

func (c *chunkReader) Read(p []byte) (int, error) {
	if c.done {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	for c.left == 0 {
		if err := c.next(); err != nil {
			return 0, err
		}
	}
	n, err := c.br.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// buffered is the number of bytes that Read returns without waiting, 1 for an
// end that has arrived. What stands between two chunks is not content.
func (c *chunkReader) buffered() int {
	have := c.br.Buffered()
	if c.done || c.left > 0 || have == 0 {
		return int(min(c.left, int64(have)))
	}
	b, err := c.br.Peek(have)
	if err != nil {
		return 0
	}
	if c.more {
		if _, b, _ = bytes.Cut(b, []byte("\n")); len(b) == 0 {
			return 0
		}
	}
	line, rest, ok := bytes.Cut(b, []byte("\n"))
	if !ok {
		return 0
	}
	if len(line) > 0 && line[0] == '0' { // the last one: its trailer ends in an empty line
		return min(1, len(rest))
	}
	return len(rest)
}

// next reads the line before a chunk; after the last one the trailer.
func (c *chunkReader) next() error {
	var n int
	line := func() ([]byte, error) {
		b, err := readLine(c.br, &n)
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return b, err
	}
	if c.more {
		b, err := line()
		if err != nil {
			return err
		}
		if len(b) != 0 {
			return badReply("a chunk longer than it said")
		}
	}
	b, err := line()
	if err != nil {
		return err
	}
	for i, ch := range b {
		if ch == ';' || ch == ' ' || ch == '\t' { // extensions mean nothing to us
			b = b[:i]
			break
		}
	}
	size, err := strconv.ParseUint(string(b), 16, 62)
	if err != nil {
		return badReply("a malformed chunk size")
	}
	c.left, c.more = int64(size), true
	if size > 0 {
		return nil
	}
	for n = 0; n < maxHeaderBytes; {
		b, err := line()
		if err != nil {
			return err
		}
		if len(b) == 0 {
			c.done = true
			return io.EOF
		}
	}
	return badReply("a trailer over %d bytes", maxHeaderBytes)
}

// chunkWriter frames what is written and sends it at once.
type chunkWriter struct {
	w   io.Writer
	buf []byte
}

func (c *chunkWriter) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil // an empty chunk would end the body
	}
	c.buf = strconv.AppendInt(c.buf[:0], int64(len(p)), 16)
	c.buf = append(append(append(c.buf, "\r\n"...), p...), "\r\n"...)
	if _, err := c.w.Write(c.buf); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (c *chunkWriter) end() error {
	_, err := io.WriteString(c.w, "0\r\n\r\n")
	return err
}
