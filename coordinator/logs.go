package coordinator

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// merger joins the log streams of several nodes. With follow it keeps looking
// for nodes that joined later.
type merger struct {
	c      *Coordinator
	path   string
	follow bool
	frames chan []byte
	silent time.Duration // logSilence
}

// logSilence is how long a node may say nothing at all: where nothing is written it
// sends an empty frame every five seconds.
const logSilence = 20 * time.Second

var errSilent = errors.New("the node has sent nothing for a while")

func newMerger(c *Coordinator, name api.FunctionName, query string) *merger {
	return &merger{c: c, path: api.NodePathLogs + string(name) + query, follow: query != "", frames: make(chan []byte, 64), silent: logSilence}
}

// start begins to read until ctx ends or all is read, which done tells. end waits
// for the readers once ctx has ended.
func (m *merger) start(ctx context.Context) (done chan struct{}, end func()) {
	done = make(chan struct{})
	go func() { defer close(done); m.read(ctx) }()
	return done, func() {
		for { // let readers that hold a frame end
			select {
			case <-m.frames:
			case <-done:
				return
			}
		}
	}
}

// write is the body of the reply: it owns the goroutines that read from nodes
// and ends them when the reader leaves.
func (m *merger) write(touch func()) func(*bufio.Writer) {
	return func(w *bufio.Writer) {
		ctx, cancel := context.WithCancel(m.c.life)
		defer cancel()
		done, end := m.start(ctx)
		defer func() { cancel(); end() }()
		alive := time.NewTicker(5 * time.Second)
		defer alive.Stop()
		for {
			var f []byte
			select {
			case f = <-m.frames:
			case <-alive.C: // an empty frame shows whether the reader is still there
			case <-done:
				for len(m.frames) > 0 {
					if api.WriteFrame(w, <-m.frames) != nil {
						return
					}
				}
				_ = w.Flush()
				return
			}
			touch()
			if api.WriteFrame(w, f) != nil {
				return
			}
			if len(m.frames) == 0 && w.Flush() != nil {
				return
			}
		}
	}
}

// read follows every node, until ctx ends or, without follow, all are read.
func (m *merger) read(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	var mu sync.Mutex
	reading := map[string]bool{}
	for {
		view := m.c.dep.Mesh.Snapshot()
		for _, n := range view.Nodes {
			mu.Lock()
			skip := n.Load.Epoch == 0 || reading[n.Meta.ID]
			if !skip {
				reading[n.Meta.ID] = true
			}
			mu.Unlock()
			if skip {
				continue
			}
			p := m.c.peers.get(n)
			wg.Add(1)
			go func() {
				defer wg.Done()
				if err := m.readNode(ctx, p); err != nil && ctx.Err() == nil {
					m.c.log.Warn("logs", "node", p.id, "err", err)
				}
				if m.follow { // a node that restarts is read again
					mu.Lock()
					delete(reading, p.id)
					mu.Unlock()
				}
			}()
		}
		if !m.follow {
			return
		}
		t := time.NewTimer(time.Second)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

// readNode reads until the node has told all, or falls silent.
func (m *merger) readNode(ctx context.Context, p *peer) (retErr error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := time.AfterFunc(m.silent, func() { cancel(errSilent) }) // stopped while it is the reader who takes time
	defer silent.Stop()
	defer func() {
		if retErr != nil && errors.Is(context.Cause(ctx), errSilent) {
			retErr = errSilent
		}
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://node"+m.path, nil)
	if err != nil {
		return err
	}
	resp, err := p.up.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return api.Errorf(api.CodeUnavailable, "status %d", resp.StatusCode)
	}
	r := bufio.NewReader(resp.Body)
	for {
		silent.Reset(m.silent)
		f, err := api.ReadFrame(r)
		silent.Stop()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if len(f) == 0 {
			continue
		}
		select {
		case m.frames <- f:
		case <-ctx.Done():
			return nil
		}
	}
}
