package shim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// publisher sends events to containerd in the order in which they happened,
// each until containerd has taken it. While containerd is down no task is
// created, so that what waits is bounded by the tasks there are.
type publisher struct {
	namespace string
	dial      func() (net.Conn, error)
	log       *slog.Logger
	wake      chan struct{}
	end       context.CancelFunc
	ended     chan struct{}

	mu      sync.Mutex
	pending []*types.Envelope
	empty   chan struct{} // closed whenever nothing is pending
}

// Bounds of the pause between two attempts, and of one attempt.
const (
	firstPause  = 50 * time.Millisecond
	longestWait = 5 * time.Second
)

// dialTimeout is how long a connection to containerd may take.
const dialTimeout = 5 * time.Second

// newPublisher begins to send. Its goroutine ends with close.
func newPublisher(ctx context.Context, namespace string, dial func() (net.Conn, error), log *slog.Logger) *publisher {
	p := &publisher{namespace: namespace, dial: dial, log: log, wake: make(chan struct{}, 1), ended: make(chan struct{}), empty: make(chan struct{})}
	close(p.empty)
	ctx, p.end = context.WithCancel(ctx)
	go p.run(ctx)
	return p
}

// publish queues an event and returns at once.
func (p *publisher) publish(topic string, event any) {
	body, err := typeurl.MarshalAnyToProto(event)
	if err != nil {
		p.log.Error("an event cannot be encoded", "topic", topic, "error", err)
		return
	}
	p.mu.Lock()
	if len(p.pending) == 0 {
		p.empty = make(chan struct{})
	}
	p.pending = append(p.pending, &types.Envelope{Timestamp: timestamppb.Now(), Namespace: p.namespace, Topic: topic, Event: body})
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *publisher) first() *types.Envelope {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.pending) == 0 {
		return nil
	}
	return p.pending[0]
}

func (p *publisher) taken() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pending[0] = nil
	p.pending = p.pending[1:]
	if len(p.pending) == 0 {
		p.pending = nil // its array may have grown large
		close(p.empty)
	}
}

func (p *publisher) run(ctx context.Context) {
	defer close(p.ended)
	var client *ttrpc.Client
	defer func() {
		if client != nil {
			_ = client.Close()
		}
	}()
	pause := firstPause
	for {
		e := p.first()
		if e == nil {
			select {
			case <-ctx.Done():
				return
			case <-p.wake:
			}
			continue
		}
		err := p.forward(ctx, &client, e)
		if err == nil {
			p.taken()
			pause = firstPause
			continue
		}
		p.log.Warn("containerd does not take an event yet", "topic", e.Topic, "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, longestWait)
	}
}

// forward sends one event, on a new connection where there is none that works.
func (p *publisher) forward(ctx context.Context, client **ttrpc.Client, e *types.Envelope) error {
	ctx, cancel := context.WithTimeout(ctx, longestWait)
	defer cancel()
	for {
		fresh := *client == nil
		if fresh {
			conn, err := p.dial()
			if err != nil {
				return fmt.Errorf("connect to containerd: %w", err)
			}
			*client = ttrpc.NewClient(conn)
		}
		_, err := eventsapi.NewTTRPCEventsClient(*client).Forward(ctx, &eventsapi.ForwardRequest{Envelope: e})
		if err == nil {
			return nil
		}
		// One that was made before containerd was restarted is of no use.
		_ = (*client).Close()
		*client = nil
		if fresh || !errors.Is(err, ttrpc.ErrClosed) {
			return fmt.Errorf("send event: %w", err)
		}
	}
}

// close sends what is left, for at most as long as ctx lasts, and ends.
func (p *publisher) close(ctx context.Context) {
	p.mu.Lock()
	empty := p.empty
	p.mu.Unlock()
	select {
	case <-empty:
	case <-ctx.Done():
	}
	p.end()
	<-p.ended
}
