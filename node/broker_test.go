package node

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// brokerAt is a client of srv that counts its connections.
func brokerAt(srv *httptest.Server) (*HTTPBroker, *atomic.Int32) {
	dials := new(atomic.Int32)
	return &HTTPBroker{Dial: func(ctx context.Context) (net.Conn, error) {
		dials.Add(1)
		return new(net.Dialer).DialContext(ctx, "tcp", srv.Listener.Addr().String())
	}}, dials
}

func (b *HTTPBroker) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.drop()
}

func TestTheBrokerIsKeptNearUntilTheEnd(t *testing.T) {
	asked := make(chan string, 4)
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked <- r.Method + " " + r.URL.Path }))
	defer srv.Close()
	b, _ := brokerAt(srv)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); b.KeepNear(ctx) }()
	select {
	case got := <-asked:
		if got != "GET /v1/broker" {
			t.Errorf("asked %s", got)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("nothing was asked")
	}
	cancel()
	<-done
	if len(b.idle) > 0 {
		t.Error("a connection is left")
	}
}

func TestReleaseTravelsOverOneKeptConnection(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var req api.ReleaseRequest
		if r.Method != "POST" || r.Header.Get("Content-Type") != api.ContentTypeJSON || json.NewDecoder(r.Body).Decode(&req) != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		switch {
		case r.URL.Path == api.BrokerPathAttest:
			w.WriteHeader(http.StatusNoContent)
		case req.Function == "refused.ns":
			w.Header().Set("Content-Type", api.ContentTypeProblem)
			p := api.ProblemOf(&api.Error{Code: api.CodeKeyRefused, Message: "no"}, "")
			w.WriteHeader(p.Status)
			_ = json.NewEncoder(w).Encode(p)
		default:
			_ = json.NewEncoder(w).Encode(api.ReleaseReply{Sealed: append([]byte(req.Function), req.Statement...), Type: req.Evidence[0].Type})
		}
	}))
	defer srv.Close()
	b, dials := brokerAt(srv)
	defer b.end()
	ev := []api.Evidence{{Type: "node-key", Data: []byte{1}}}
	for range 3 {
		if err := b.Attest(t.Context(), api.AttestRequest{Statement: []byte("s"), Evidence: ev}); err != nil {
			t.Fatal(err)
		}
		got, err := b.Release(t.Context(), api.ReleaseRequest{Function: "f.ns", Statement: []byte("s"), Evidence: ev})
		if err != nil || string(got.Sealed) != "f.nss" || got.Type != "node-key" {
			t.Fatalf("%+v, %v", got, err)
		}
		if _, err := b.Release(t.Context(), api.ReleaseRequest{Function: "refused.ns"}); api.CodeOf(err) != api.CodeKeyRefused {
			t.Fatalf("refused: %v", err)
		}
	}
	if n := dials.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
	srv.CloseClientConnections() // the kept one has ended by the time it is used
	if _, err := b.Release(t.Context(), api.ReleaseRequest{Function: "f.ns", Evidence: ev}); err != nil || dials.Load() != 2 {
		t.Errorf("after the connection had ended: %v, %d connections", err, dials.Load())
	}
}

func TestASilentBrokerIsLeftWhenTheAskerLeaves(t *testing.T) {
	in, leave := make(chan struct{}), make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { close(in); <-leave }))
	defer srv.Close()
	defer close(leave)
	b, dials := brokerAt(srv)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { _, err := b.Release(ctx, api.ReleaseRequest{}); done <- err }()
	<-in
	cancel()
	select {
	case err := <-done:
		if api.CodeOf(err) != api.CodeUnavailable {
			t.Errorf("error %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it is waited for")
	}
	if len(b.idle) > 0 || dials.Load() != 1 {
		t.Errorf("%d connections kept, %d made", len(b.idle), dials.Load())
	}
}

func TestABrokerThatIsAwayIsUnavailable(t *testing.T) {
	away := errors.New("no route")
	b := &HTTPBroker{Dial: func(context.Context) (net.Conn, error) { return nil, away }}
	_, err := b.Release(t.Context(), api.ReleaseRequest{})
	if api.CodeOf(err) != api.CodeUnavailable || !errors.Is(err, away) {
		t.Errorf("error %v", err)
	}
}
