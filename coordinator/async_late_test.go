package coordinator

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/queue"
)

func TestFunctionsAreInvokedBeforeTheStoreAnswers(t *testing.T) {
	w := asyncWorld(t, 1, func(w *world) {
		silent, err := clientv3.New(clientv3.Config{Endpoints: []string{"http://127.0.0.1:1"}, Logger: zap.NewNop()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = silent.Close() })
		cfg := queue.DefaultConfig("co-1", "/late/", slog.New(slog.DiscardHandler))
		cfg.Timeout = 100 * time.Millisecond
		if w.async.Queue, err = queue.Open(t.Context(), silent, cfg); err != nil {
			t.Fatal(err)
		}
	})
	msg := w.message(10, time.Minute)
	if a := w.do("POST", "/function/f.ns", api.ContentTypeSealed, msg); a.status != 200 || string(a.body) != string(msg) {
		t.Errorf("%d %s %v", a.status, a.body, a.err)
	}
	if a := w.later(msg); a.status != 503 || a.code != api.CodeUnavailable || a.header.Get("Retry-After") == "" {
		t.Errorf("%d %s %v", a.status, a.body, a.header)
	}
	if a := w.do("GET", "/readyz", "", nil); a.status != 503 || !strings.Contains(string(a.body), "asynchronous calls") {
		t.Errorf("%d %s", a.status, a.body)
	}
}
