package coordinator

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/queue"
	"github.com/faasd-sec/faasd-sec/relay"
)

// openBody is a call's body, for one attempt.
func (c *Coordinator) openBody(ctx context.Context, call *queue.Call) (*relay.Body, error) {
	if call.Body.Blob == "" {
		b, err := c.async.Queue.Body(ctx, call.ID)
		return relay.NewBody(b, nil, int64(len(b))), err
	}
	f, err := c.blob(ctx, call.Body.Blob)
	if err != nil {
		return nil, err
	}
	if call.Body.Size <= relay.SmallBody {
		defer f.Close()
		b, err := io.ReadAll(f)
		return relay.NewBody(b, nil, int64(len(b))), err
	}
	head := make([]byte, 8<<10) // more than any clear part
	if _, err := io.ReadFull(f, head); err != nil {
		_ = f.Close()
		return nil, err
	}
	return relay.NewBody(head, f, call.Body.Size), nil
}

// blob opens a stored body.
func (c *Coordinator) blob(_ context.Context, digest string) (io.ReadCloser, error) {
	f, err := c.async.Blobs.Get(digest)
	if api.CodeOf(err) == api.CodeNotFound {
		return nil, api.Wrap(api.CodeUnavailable, err, "the body is not stored at this coordinator")
	}
	return f, err
}

// collectBlobs removes what no record names.
func (c *Coordinator) collectBlobs() {
	tick := time.NewTicker(collectEvery)
	defer tick.Stop()
	for {
		if n, err := c.async.Blobs.Collect(c.life, collectAfter, c.async.Queue.BlobUsed); err != nil && c.life.Err() == nil {
			c.log.Warn("stored bodies not looked through", "err", err)
		} else if n > 0 {
			c.log.Debug("stored bodies removed", "number", n)
		}
		select {
		case <-c.life.Done():
			return
		case <-tick.C:
		}
	}
}

const (
	collectEvery = 30 * time.Second
	collectAfter = 30 * time.Second // since it was stored; held ones stay in any case
)

// spill takes a reply's body: a small one in memory, a larger one into the blobs.
type spill struct {
	blobs   Bodies
	buf     bytes.Buffer
	pipe    *io.PipeWriter
	done    chan struct{}
	digest  string
	size    int64
	release func()
	err     error
	failed  bool // err is of the store
	once    sync.Once
}

// Write implements io.Writer.
func (s *spill) Write(p []byte) (int, error) {
	if s.pipe == nil {
		if s.buf.Len()+len(p) <= queue.MaxInline {
			return s.buf.Write(p)
		}
		r, w := io.Pipe()
		s.pipe, s.done = w, make(chan struct{})
		first := s.buf.Bytes()
		go func() { // ends with the pipe, which end closes
			defer close(s.done)
			s.digest, s.size, s.release, s.err = s.blobs.Put(io.MultiReader(bytes.NewReader(first), r))
			_ = r.CloseWithError(io.ErrClosedPipe)
		}()
	}
	return s.pipe.Write(p)
}

// end finishes the body with what broke it off, and must be called once. Without
// an error the body is where the record says, and held until s.release.
func (s *spill) end(broken error) (queue.Body, []byte, error) {
	if s.pipe == nil {
		return queue.Body{Size: int64(s.buf.Len())}, s.buf.Bytes(), broken
	}
	_ = s.pipe.CloseWithError(broken) // nil is the end
	<-s.done
	if s.err != nil {
		// Where the reply did not break off by itself, it is the store that failed.
		s.failed = broken == nil || errors.Is(broken, io.ErrClosedPipe)
		return queue.Body{}, nil, s.err
	}
	return queue.Body{Size: s.size, Blob: s.digest}, nil, nil
}

// why gives the error of end a code. None of them says that the call did not run.
func (s *spill) why(err error) error {
	switch {
	case api.CodeOf(err) == api.CodeTooLarge:
		return err
	case s.failed:
		return api.Wrap(api.CodeUnavailable, err, "the result could not be stored")
	}
	return api.Wrap(api.CodeNodeLost, err, "the connection broke within the reply")
}

// drop ends the hold on the body, if there is one.
func (s *spill) drop() {
	s.once.Do(func() {
		if s.release != nil {
			s.release()
		}
	})
}
