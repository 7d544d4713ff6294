package client

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// smallBody is how much of a body is read ahead: one that ends within it is
// sealed in one piece, and can be sent again.
const smallBody = 64 << 10

// input is a request's body, either all of it in memory or the rest of a stream.
type input struct {
	whole  []byte    // all of it, if stream is nil
	stream io.Reader // what comes first was put back
	seeker io.Seeker // not nil if the stream can be sent again from start
	start  int64
	src    io.Reader

	reading <-chan struct{} // closed when the goroutine of the last try let go of stream
}

// newInput looks at a body. With early set nothing is awaited: the first byte is
// sealed as soon as it is there.
func newInput(body io.Reader, early bool) (*input, error) {
	if body == nil {
		return &input{}, nil
	}
	in := &input{src: body}
	if s, ok := body.(io.Seeker); ok {
		if at, err := s.Seek(0, io.SeekCurrent); err == nil {
			in.seeker, in.start = s, at
		}
	}
	if early {
		in.stream = body
		return in, nil
	}
	size := smallBody
	if l, ok := body.(interface{ Len() int }); ok && l.Len() < size {
		size = l.Len() // such as a bytes.Reader: no more than it needs
	}
	head := make([]byte, size+1)
	n, err := io.ReadFull(body, head)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		in.whole = head[:n]
		return in, nil
	case err != nil:
		return nil, fmt.Errorf("client: read the request's body: %w", err)
	}
	in.stream = io.MultiReader(bytes.NewReader(head), body)
	return in, nil
}

// rewind prepares for a second try and reports whether there can be one.
func (in *input) rewind() bool {
	if in.stream == nil {
		return true
	}
	if in.seeker == nil {
		return false
	}
	<-in.reading // what can seek does not block in Read, and its reader has been closed
	if _, err := in.seeker.Seek(in.start, io.SeekStart); err != nil {
		return false
	}
	in.stream = in.src
	return true
}
