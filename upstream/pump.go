package upstream

import (
	"bytes"
	"fmt"
	"io"
	"sync/atomic"
)

// pump writes a request's body while the reply is read.
type pump struct {
	done      chan struct{}
	abandoned atomic.Bool // Close took over: an error of the body is our own doing
	err       error       // of the body itself; after done
	whole     bool        // the function took all of it; after done
}

func startPump(cn *conn, r *Request) *pump {
	p := &pump{done: make(chan struct{})}
	src := r.Body
	if src == nil {
		src = bytes.NewReader(r.Small)
	}
	go func() {
		defer close(p.done)
		p.run(cn, src, r.Length)
	}()
	return p
}

// run copies until the body ends. When the function takes no more, the rest is
// read all the same: whether the body was whole is known only at its end. When
// the body breaks, the connection is closed, so that the function cannot take
// the part it has for the whole.
func (p *pump) run(cn *conn, src io.Reader, length int64) {
	buf := pumpBuffers.Get().(*[]byte)
	defer func() {
		clear(*buf)
		pumpBuffers.Put(buf)
	}()
	var dst io.Writer = cn
	var chunks *chunkWriter
	if length < 0 {
		chunks = &chunkWriter{w: cn}
		dst = chunks
	}
	taken, refused := int64(0), false
	for {
		n, err := src.Read(*buf)
		taken += int64(n)
		if length >= 0 && taken > length {
			err = fmt.Errorf("it is over its length of %d bytes", length)
			n = 0
		}
		if n > 0 && !refused {
			if _, werr := dst.Write((*buf)[:n]); werr != nil {
				refused = true
			}
		}
		switch {
		case err == io.EOF:
			if length >= 0 && taken < length {
				p.fail(io.ErrUnexpectedEOF)
				_ = cn.Close()
				return
			}
			if chunks != nil && !refused {
				refused = chunks.end() != nil
			}
			p.whole = !refused
			if chunks != nil {
				clear(chunks.buf)
			}
			return
		case err != nil:
			p.fail(err)
			_ = cn.Close()
			return
		}
	}
}

// fail notes the body's error, unless Close has made it.
func (p *pump) fail(err error) {
	if !p.abandoned.Load() {
		p.err = err
	}
}

// bodyError is the error of the body, nil if it was cut short on purpose.
func (p *pump) bodyError() error {
	if p.err == nil {
		return nil
	}
	return &BodyError{p.err}
}
