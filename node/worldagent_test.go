package node

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/runtime/runtimetest"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// agent is PID 1 of a sandbox: it says hello, is bound, asks for keys, serves,
// and dials again when the node's daemon is another.
func (w *world) agent(ctx context.Context, task runtimetest.Task) uint32 {
	if w.stillborn != nil && w.stillborn() {
		return 3
	}
	ln, err := net.Listen("unix", filepath.Join(task.Spec.SocketDir, "agent.sock"))
	if err != nil {
		return 1
	}
	s := &http.Server{ConnState: func(_ net.Conn, st http.ConnState) {
		if st == http.StateNew {
			w.connected.Add(1)
		}
	}, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == api.AgentPathPlain && w.openly != nil {
			w.openly(rw, r)
			return
		}
		if r.URL.Path != api.AgentPathInvoke {
			http.NotFound(rw, r)
			return
		}
		w.delivered.Add(1)
		if w.fake.Frozen(task.Spec.ID) {
			w.t.Errorf("an invocation reached %s, which is frozen", task.Spec.ID)
		}
		rw.Header().Set("Content-Type", api.ContentTypeSealed)
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		if w.work != nil {
			w.work(rw, r)
			return
		}
		rw.Write(body)
	})}
	var wg sync.WaitGroup
	wg.Go(func() { s.Serve(ln) })
	ended := make(chan struct{})
	wg.Go(func() {
		var rev bound
		for {
			w.control(task, &rev, ended)
			select {
			case <-ended:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	select {
	case <-task.Term:
	case <-ctx.Done():
	}
	close(ended)
	s.Close()
	wg.Wait()
	return 0
}

// bound is what an agent was told to be.
type bound struct {
	function api.FunctionName
	revision string
	mounted  bool
	keys     bool
	ready    bool
}

// is reads a Bind.
func (w *world) is(b *api.Bind) (bound, error) {
	if b.Plain != nil {
		return bound{function: b.Plain.Function.Name, revision: b.Plain.Revision}, nil
	}
	signed, err := sealed.ParseDescriptor(b.Descriptor)
	if err != nil {
		return bound{}, err
	}
	d, err := signed.Verify(signed.ClaimedOwner().Fingerprint())
	if err != nil {
		return bound{}, err
	}
	rev, err := d.Revision()
	return bound{function: api.FunctionName(d.FullName()), revision: rev.String()}, err
}

// control is one connection to the node.
func (w *world) control(task runtimetest.Task, rev *bound, ended <-chan struct{}) {
	conn, err := net.Dial("unix", filepath.Join(task.Spec.SocketDir, "node.sock"))
	if err != nil {
		return
	}
	c := conn.(*net.UnixConn)
	defer c.Close()
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-ended:
			c.Close()
		case <-done:
		}
	}()
	statements := 0
	statement := func() []byte { statements++; return fmt.Appendf(nil, "%s %d", task.Spec.ID, statements) }
	hello := api.Control{Hello: &api.Hello{Protocol: api.ControlProtocol, Bound: rev.revision != "", Revision: rev.revision, Ready: rev.ready}}
	if !rev.keys {
		hello.Hello.Statement = statement()
	}
	var frame bytes.Buffer
	if api.WriteControl(&frame, hello) != nil {
		return
	}
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return
	}
	_, _, err = c.WriteMsgUnix(frame.Bytes(), unix.UnixRights(fd), nil)
	unix.Close(fd)
	if err != nil {
		return
	}
	for {
		f, err := api.ReadControl(c)
		if err != nil {
			return
		}
		if w.cut != nil && w.cut(f) {
			return
		}
		switch {
		case f.Attest != nil:
			if api.WriteControl(c, api.Control{Statement: &api.Attested{Statement: statement()}}) != nil {
				return
			}
		case f.Bind != nil:
			was := *rev
			if *rev, err = w.is(f.Bind); err != nil {
				w.t.Errorf("descriptor: %v", err)
				return
			}
			rev.keys, rev.mounted = was.keys || f.Bind.Plain != nil, was.mounted
		case f.Waiting != nil:
			if rev.revision == "" {
				w.t.Error("a sandbox was told who waits before it was bound")
			}
			w.grants.Store(string(f.Waiting.Grant), true)
		case f.Mounted != nil:
			if rev.revision == "" {
				w.t.Error("a sandbox was said to be mounted before it was bound")
			}
			rev.mounted = true
		case f.Keys != nil:
			rev.keys = true
		}
		if rev.revision == "" || !rev.mounted || !rev.keys || rev.ready {
			continue
		}
		if err := w.hello(rev.function); err != nil {
			p := api.ProblemOf(err, "")
			_ = api.WriteControl(c, api.Control{Failed: &p})
			continue
		}
		rev.ready = true
		_ = api.WriteControl(c, api.Control{Ready: &api.Empty{}})
	}
}
