package agent

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// errSourceClosed is what a reader of a closed source gets.
var errSourceClosed = errors.New("agent: the exchange is over")

// source reads a request's body from the node's connection. The server takes
// the connection back when the handler's reply is out, so close must not return
// while a Read is under way: it lets the connection's deadline pass and waits.
type source struct {
	conn net.Conn
	r    io.Reader
	gap  time.Duration // at most between two reads; 0: the deadline set before stays

	mu     sync.Mutex
	closed bool
	ending sync.Once
}

// Read implements io.Reader.
func (s *source) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, errSourceClosed
	}
	if s.gap > 0 {
		if err := s.conn.SetReadDeadline(time.Now().Add(s.gap)); err != nil {
			return 0, err
		}
	}
	return s.r.Read(p)
}

// stream makes the read timeout one between reads: a body that is handed on as
// it comes may take as long as the exchange.
func (s *source) stream(gap time.Duration) {
	s.mu.Lock()
	s.gap = gap
	s.mu.Unlock()
}

// close ends a Read under way and refuses all that follow.
func (s *source) close() {
	s.ending.Do(func() {
		for !s.mu.TryLock() {
			// Best effort: a connection that takes no deadline is broken, and
			// then Read returns by itself. Again and again, because the reader
			// may be about to set a deadline of its own.
			_ = s.conn.SetReadDeadline(time.Unix(1, 0))
			time.Sleep(100 * time.Microsecond)
		}
		s.closed = true
		s.mu.Unlock()
	})
}
