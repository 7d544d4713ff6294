package gossip

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

// simNet is a network in memory: packets may be lost when a receiver is slow,
// streams are buffered, and it can be cut in two.
type simNet struct {
	mu    sync.RWMutex
	nodes map[string]*simTransport
	cut   func(from, to string) bool // nil: whole
	tap   func(from, to string, packet []byte)
	next  uint32

	packets, packetBytes, streamBytes, lost atomic.Int64
}

func newSimNet() *simNet { return &simNet{nodes: make(map[string]*simTransport)} }

// transport makes an endpoint at a fresh address.
func (n *simNet) transport() *simTransport {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.next++
	a := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(n.next >> 16), byte(n.next >> 8), byte(n.next)}), 7946)
	return n.at(a)
}

// reopen makes an endpoint at the address of one that was shut down.
func (n *simNet) reopen(a netip.AddrPort) *simTransport {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.at(a)
}

func (n *simNet) at(a netip.AddrPort) *simTransport {
	t := &simTransport{
		net: n, addr: a, name: a.String(), done: make(chan struct{}),
		in: make(chan *memberlist.Packet, 1024), conns: make(chan net.Conn, 256),
	}
	n.nodes[t.name] = t
	return t
}

// split cuts the network between the given addresses and all others; nil heals.
func (n *simNet) split(side map[string]bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = nil
	if side != nil {
		n.cut = func(from, to string) bool { return side[from] != side[to] }
	}
}

// listen has f called with every packet, from several goroutines at a time.
func (n *simNet) listen(f func(from, to string, packet []byte)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tap = f
}

func (n *simNet) find(from, to string) *simTransport {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.cut != nil && n.cut(from, to) {
		return nil
	}
	return n.nodes[to]
}

type simTransport struct {
	net   *simNet
	addr  netip.AddrPort
	name  string
	in    chan *memberlist.Packet
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

var _ memberlist.NodeAwareTransport = (*simTransport)(nil)

func (t *simTransport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.addr.Addr().AsSlice(), int(t.addr.Port()), nil
}

func (t *simTransport) WriteTo(b []byte, to string) (time.Time, error) {
	select {
	case <-t.done:
		return time.Time{}, net.ErrClosed
	default:
	}
	t.net.mu.RLock()
	tap := t.net.tap
	t.net.mu.RUnlock()
	if tap != nil {
		tap(t.name, to, b)
	}
	t.net.packets.Add(1)
	t.net.packetBytes.Add(int64(len(b)))
	if peer := t.net.find(t.name, to); peer != nil {
		select {
		case peer.in <- &memberlist.Packet{Buf: b, From: net.UDPAddrFromAddrPort(t.addr), Timestamp: time.Now()}:
		default:
			t.net.lost.Add(1)
		}
	}
	return time.Now(), nil
}

func (t *simTransport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	return t.WriteTo(b, a.Addr)
}

func (t *simTransport) PacketCh() <-chan *memberlist.Packet { return t.in }
func (t *simTransport) StreamCh() <-chan net.Conn           { return t.conns }

func (t *simTransport) DialTimeout(to string, _ time.Duration) (net.Conn, error) {
	peer := t.net.find(t.name, to)
	if peer == nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("no route")}
	}
	near, far := pipe(&t.net.streamBytes)
	select {
	case <-peer.done:
	case peer.conns <- far:
		return near, nil
	default:
	}
	return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("refused")}
}

func (t *simTransport) DialAddressTimeout(a memberlist.Address, d time.Duration) (net.Conn, error) {
	return t.DialTimeout(a.Addr, d)
}

func (t *simTransport) Shutdown() error {
	t.once.Do(func() {
		close(t.done)
		t.net.mu.Lock()
		defer t.net.mu.Unlock()
		if t.net.nodes[t.name] == t {
			delete(t.net.nodes, t.name)
		}
	})
	return nil
}

// pipe is a buffered duplex connection that counts what passes.
func pipe(count *atomic.Int64) (*pipeConn, *pipeConn) {
	a, b := newHalf(count), newHalf(count)
	return &pipeConn{in: a, out: b}, &pipeConn{in: b, out: a}
}

type half struct {
	mu     sync.Mutex
	buf    []byte
	closed bool
	news   chan struct{}
	count  *atomic.Int64
}

func newHalf(count *atomic.Int64) *half { return &half{news: make(chan struct{}, 1), count: count} }

func (h *half) wake() {
	select {
	case h.news <- struct{}{}:
	default:
	}
}

type pipeConn struct {
	in, out  *half
	mu       sync.Mutex
	deadline time.Time
}

func (c *pipeConn) Read(b []byte) (int, error) {
	for {
		c.in.mu.Lock()
		n := copy(b, c.in.buf)
		c.in.buf = c.in.buf[n:]
		closed := c.in.closed
		c.in.mu.Unlock()
		if n > 0 {
			return n, nil
		}
		if closed {
			return 0, io.EOF
		}
		c.mu.Lock()
		deadline := c.deadline
		c.mu.Unlock()
		var late <-chan time.Time
		if !deadline.IsZero() {
			late = time.After(time.Until(deadline))
		}
		select {
		case <-c.in.news:
		case <-late:
			return 0, os.ErrDeadlineExceeded
		}
	}
}

func (c *pipeConn) Write(b []byte) (int, error) {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	if c.out.closed {
		return 0, net.ErrClosed
	}
	c.out.buf = append(c.out.buf, b...)
	c.out.count.Add(int64(len(b)))
	c.out.wake()
	return len(b), nil
}

func (c *pipeConn) Close() error {
	for _, h := range []*half{c.in, c.out} {
		h.mu.Lock()
		h.closed = true
		h.wake()
		h.mu.Unlock()
	}
	return nil
}

func (c *pipeConn) SetDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	return nil
}

func (c *pipeConn) SetReadDeadline(t time.Time) error { return c.SetDeadline(t) }
func (c *pipeConn) SetWriteDeadline(time.Time) error  { return nil }
func (c *pipeConn) LocalAddr() net.Addr               { return simAddr{} }
func (c *pipeConn) RemoteAddr() net.Addr              { return simAddr{} }

type simAddr struct{}

func (simAddr) Network() string { return "sim" }
func (simAddr) String() string  { return "10.0.0.0:0" }

func nodeName(i int) string { return fmt.Sprintf("n%05d", i) }
