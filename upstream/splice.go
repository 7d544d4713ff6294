package upstream

import (
	"io"
	"sync"
)

// Switched is the connection after a reply with status 101: what the server sends
// is read from it, and what is written to it goes to the server. It is valid until
// Close, and ends at the request's Deadline.
func (p *Response) Switched() io.ReadWriter {
	return struct {
		io.Reader
		io.Writer
	}{p.cn.br, p.cn}
}

// Splice passes bytes on between two connections, both ways at once, as they
// come, until one of them ends or fails. end must make reads and writes of both
// return; Splice calls it once, and returns when nothing uses them any more.
func Splice(a, b io.ReadWriter, end func()) {
	var once sync.Once
	var all sync.WaitGroup
	for _, way := range [][2]io.ReadWriter{{a, b}, {b, a}} {
		all.Go(func() {
			defer once.Do(end)
			// Not io.Copy: a file's or connection's own way of copying may hold back.
			buf := pumpBuffers.Get().(*[]byte)
			defer func() {
				clear(*buf)
				pumpBuffers.Put(buf)
			}()
			for {
				n, err := way[0].Read(*buf)
				if n > 0 {
					if _, werr := way[1].Write((*buf)[:n]); werr != nil {
						return
					}
				}
				if err != nil {
					return
				}
			}
		})
	}
	all.Wait()
}
