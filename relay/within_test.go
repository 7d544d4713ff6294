package relay

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"testing"
	"time"
)

// An exchange ends with the context that it is within, long before its time, whether
// the peer has begun to answer or not.
func TestExchangeEndsWithWhatItIsWithin(t *testing.T) {
	for _, answers := range []bool{false, true} {
		began, ended := make(chan struct{}, 1), make(chan struct{}, 1)
		w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			if answers {
				_, _ = rw.Write([]byte("begin"))
				_ = http.NewResponseController(rw).Flush()
			}
			began <- struct{}{}
			<-r.Context().Done()
			ended <- struct{}{}
		})
		for _, size := range []int{10, SmallBody + 1} {
			body := NewBody(make([]byte, min(size, SmallBody)), nil, int64(size))
			if size > SmallBody {
				body = NewBody(make([]byte, SmallBody), io.NopCloser(bytes.NewReader(make([]byte, size-SmallBody))), int64(size))
			}
			ctx, cancel := context.WithCancel(t.Context())
			go func() { <-began; cancel() }()
			reply, err := w.up.Do(time.Now().Add(time.Minute), Request{Method: "POST", Path: "/x", Within: ctx}, body)
			if err == nil {
				_, err = reply.SaveTo(io.Discard)
			}
			if err == nil || errors.Is(err, ErrNotSent) || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("answers %v, %d bytes: %v", answers, size, err)
			}
			select {
			case <-ended:
			case <-time.After(20 * time.Second):
				t.Errorf("answers %v, %d bytes: the peer still has it", answers, size)
			}
			cancel()
		}
		over, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := w.up.Do(time.Now().Add(time.Minute), Request{Method: "POST", Path: "/x", Within: over}, NewBody([]byte("x"), nil, 1)); err == nil {
			t.Error("it began after its end")
		}
	}
}
