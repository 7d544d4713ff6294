package node

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

func TestTheBrokerIsKeptNearUntilTheEnd(t *testing.T) {
	asked := make(chan string, 4)
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked <- r.Method + " " + r.URL.Path }))
	defer srv.Close()
	b := &HTTPBroker{Client: srv.Client(), URL: srv.URL}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); b.KeepNear(ctx) }()
	select {
	case got := <-asked:
		if got != "GET /v1/broker" {
			t.Errorf("asked %s", got)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("nothing was asked")
	}
	cancel()
	<-done
}
