package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/runtime"
)

// box is one sandbox of the runtime with its control channel, from its creation
// to its removal. It belongs to a sandbox of a function once it has an owner,
// and to the pool before.
type box struct {
	id    string
	dir   string    // of its sockets
	agent agentFile // what runs as its PID 1; zero for one of an earlier life
	made  time.Time

	greeted chan struct{} // closed once its launcher is admitted and evidence is there, or fault says why not
	outcome chan error    // how the start of its function ended; the first word counts

	owner atomic.Pointer[sandbox] // set once; the node's mutex guards the change

	mu        sync.Mutex // held while a frame is written: never take it under the node's mutex
	rt        runtime.Sandbox
	removed   bool // rt is
	ln        *net.UnixListener
	conn      *net.UnixConn
	hung      bool // hangUp was here
	admitted  bool // the launcher is in its cgroup
	fault     error
	proof     *proof
	renewed   chan struct{} // closed and replaced when there is a new proof
	unlocking bool          // keys are being asked for
	renewing  bool          // the pool has asked for a new statement
	near      net.Conn      // to its agent, opened ahead of the first invocation
	nearAt    time.Time     // when it was last used
	bind      []byte        // frames that were said, for an agent that dials anew
	mounted   *api.Control
	keys      *api.Control
	fitted    []Fitting // whose Attach was called, until their Detach has succeeded
}

func newBox(id, dir string) *box {
	return &box{id: id, dir: dir, made: time.Now(), greeted: make(chan struct{}), outcome: make(chan error, 1),
		renewed: make(chan struct{})}
}

// listen makes the box's directory and control socket.
func (b *box) listen() error {
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return err
	}
	path := filepath.Join(b.dir, filepath.Base(api.AgentNodeSocket))
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	// The directory is 0700 and the agent's; the socket need not guard itself.
	if err := os.Chmod(path, 0o666); err != nil {
		return errors.Join(err, ln.Close())
	}
	b.mu.Lock()
	b.ln = ln
	b.mu.Unlock()
	return nil
}

// create has the runtime make the box, by the call given, and begins to listen
// to its agent. On an error nothing of it is left but what dropBox removes.
func (n *Node) create(b *box, how func() (runtime.Sandbox, error)) error {
	var err error
	if b.agent, err = n.agent.current(); err != nil {
		return err
	}
	if err := b.listen(); err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	// Events find it before it is made: it may end at once.
	n.mu.Lock()
	n.boxes[b.id] = b
	n.mu.Unlock()
	rt, err := how()
	if err != nil {
		return err
	}
	n.watch(b, rt)
	// The binary was mounted somewhere between the two looks.
	if now, err := n.agent.current(); err != nil || now != b.agent {
		return errors.Join(err, errors.New("the agent's binary was replaced meanwhile"))
	}
	return nil
}

// watch takes charge of a box that the runtime has: its agent is listened to.
func (n *Node) watch(b *box, rt runtime.Sandbox) {
	b.mu.Lock()
	b.rt = rt
	b.mu.Unlock()
	n.spawn(func() { n.serveControl(b) })
}

// greeting waits until the box can be used.
func (b *box) greeting(ctx context.Context) error {
	select {
	case <-b.greeted:
	case <-ctx.Done():
		return api.Errorf(api.CodeFunctionNotReady, "the agent did not report in time")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.fault
}

// ready says that the box can be used; spoil says that it cannot, or no longer.
func (b *box) ready() { b.greet(nil) }

func (b *box) spoil(err error) {
	b.greet(err)
	b.settle(err)
}

func (b *box) greet(fault error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fault == nil {
		b.fault = fault
	}
	select {
	case <-b.greeted:
	default:
		close(b.greeted)
	}
}

// settle tells how the start ended: nil for ready.
func (b *box) settle(err error) {
	select {
	case b.outcome <- err:
	default:
	}
}

func (b *box) runtime() runtime.Sandbox {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rt
}

// tell sends a frame to the agent if it is connected; a broken connection shows
// at its reader.
func (b *box) tell(c api.Control) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.write(&c)
}

// say is tell for what the agent must hear: it is said again if it dials anew.
func (b *box) say(c *api.Control) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if c.Mounted != nil {
		b.mounted = c
	} else {
		b.keys = c
	}
	b.write(c)
}

// sayBind is say for encoded frames that make the agent a function's.
func (b *box) sayBind(frames []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bind = frames
	b.send(frames)
}

// write sends one frame; nil is none. mu is held.
func (b *box) write(c *api.Control) {
	if b.conn == nil || c == nil {
		return
	}
	frame, err := api.AppendControl(nil, *c)
	if err != nil {
		b.conn.Close()
		return
	}
	b.send(frame)
}

// send is write for encoded frames.
func (b *box) send(frames []byte) {
	if b.conn == nil || len(frames) == 0 {
		return
	}
	_ = b.conn.SetWriteDeadline(time.Now().Add(5 * time.Second))
	if _, err := b.conn.Write(frames); err != nil {
		b.conn.Close()
	}
}

// hangUp ends the control connection and its listener.
func (b *box) hangUp() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ln != nil {
		b.ln.Close()
	}
	if b.conn != nil {
		b.conn.Close()
	}
	if b.near != nil {
		b.near.Close()
		b.near = nil
	}
	b.hung = true
}

// The pauses between two tries to remove what the runtime could not: containerd
// may be about to start again, which takes seconds.
const (
	removePause = 250 * time.Millisecond // doubled each time
	removeTries = 7                      // some 16 s in all
)

// removePatiently is rt.Remove, tried again where it fails.
func removePatiently(ctx context.Context, rt runtime.Sandbox, grace time.Duration) error {
	pause := removePause
	for try := 1; ; try++ {
		err := rt.Remove(ctx, grace)
		if err == nil || try == removeTries {
			return err
		}
		again := time.NewTimer(pause)
		select {
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			return err
		}
		grace, pause = 0, 2*pause // it has heard that it is to end
	}
}

// dropBox removes a box, and reports whether it is gone. Without grace nothing
// in it is asked to end by itself.
func (n *Node) dropBox(b *box, grace time.Duration) bool {
	ctx, cancel := cleanupContext(grace + 30*time.Second)
	defer cancel()
	err := b.takeDown(ctx, grace)
	if err != nil {
		n.log.Error("a sandbox could not be removed; its reservation is kept until it is", "sandbox", b.id, "err", err)
	}
	b.hangUp()
	if err := os.RemoveAll(b.dir); err != nil {
		n.log.Warn("socket directory stays behind", "sandbox", b.id, "err", err)
	}
	n.mu.Lock()
	delete(n.boxes, b.id)
	n.mu.Unlock()
	return err == nil
}

// takeDown removes what the runtime has of a box, then what it was fitted with. It
// may be called again for what it could not remove.
func (b *box) takeDown(ctx context.Context, grace time.Duration) error {
	b.mu.Lock()
	rt, removed := b.rt, b.removed
	b.mu.Unlock()
	if rt != nil && !removed {
		if err := removePatiently(ctx, rt, grace); err != nil {
			return err
		}
		b.mu.Lock()
		b.removed = true
		b.mu.Unlock()
	}
	if err := b.detach(ctx); err != nil {
		return fmt.Errorf("take back what it was fitted with: %w", err)
	}
	return nil
}

// outlive removes a box that dropBox could not remove, as soon as that can be done.
// Then it calls free, with mu held, which gives back what was kept for the box. The
// node's next life does it where this one ends before.
func (n *Node) outlive(b *box, free func()) {
	n.spawn(func() {
		timer := time.NewTimer(n.cfg.RemoveAgain)
		defer timer.Stop()
		for {
			select {
			case <-timer.C:
			case <-n.life.Done():
				return
			}
			ctx, cancel := context.WithTimeout(n.life, 30*time.Second)
			err := b.takeDown(ctx, 0)
			cancel()
			if err == nil {
				break
			}
			n.log.Warn("a sandbox can still not be removed", "sandbox", b.id, "err", err)
			timer.Reset(n.cfg.RemoveAgain)
		}
		n.log.Info("a sandbox that could not be removed is gone", "sandbox", b.id)
		n.mu.Lock()
		free()
		n.wake()
		n.mu.Unlock()
		n.touch()
		n.kickPool()
	})
}
