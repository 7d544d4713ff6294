package shim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/api/events"
	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/emptypb"
)

// taker is containerd's side: it refuses a few events, then takes them.
type taker struct {
	mu     sync.Mutex
	refuse int
	ids    []string
}

func (f *taker) Forward(_ context.Context, r *eventsapi.ForwardRequest) (*emptypb.Empty, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refuse > 0 {
		f.refuse--
		return nil, errors.New("not now")
	}
	body, err := typeurl.UnmarshalAny(r.Envelope.Event)
	if err != nil {
		return nil, err
	}
	f.ids = append(f.ids, body.(*events.TaskExit).ContainerID)
	return &emptypb.Empty{}, nil
}

func (f *taker) taken() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.ids)
}

// serve makes containerd's event service on a socket; stop ends it.
func (f *taker) serve(t *testing.T, path string) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	eventsapi.RegisterTTRPCEventsService(srv, f)
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(t.Context(), l) }()
	return func() { _ = srv.Close(); <-done }
}

func await(t *testing.T, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it never came")
		}
	}
}

func exitOf(id int) *events.TaskExit { return &events.TaskExit{ContainerID: fmt.Sprint(id)} }

func TestEventsArriveOnceInOrderAcrossRestarts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	p := newPublisher(t.Context(), "ns", func() (net.Conn, error) { return net.Dial("unix", path) }, slog.New(slog.DiscardHandler))
	p.publish("/tasks/exit", exitOf(1)) // nobody listens yet
	f := &taker{refuse: 2}
	stop := f.serve(t, path)
	p.publish("/tasks/exit", exitOf(2))
	await(t, func() bool { return len(f.taken()) == 2 })
	stop()
	p.publish("/tasks/exit", exitOf(3)) // on a connection that has died
	stop = f.serve(t, path)
	defer stop()
	p.publish("/tasks/exit", exitOf(4))
	await(t, func() bool { return len(f.taken()) == 4 })
	if got := f.taken(); !slices.Equal(got, []string{"1", "2", "3", "4"}) {
		t.Errorf("taken: %v", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	p.publish("/tasks/exit", exitOf(5))
	p.close(ctx)
	if got := f.taken(); len(got) != 5 {
		t.Errorf("closed with %v taken", got)
	}
}

func TestAPublisherEndsWithoutContainerd(t *testing.T) {
	p := newPublisher(t.Context(), "ns", func() (net.Conn, error) { return nil, errors.New("down") }, slog.New(slog.DiscardHandler))
	p.publish("/tasks/exit", exitOf(1))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	p.close(ctx)
}
