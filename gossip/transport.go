package gossip

import (
	"errors"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// maxAccepted bounds the streams that are open at a time because others dialed;
// each costs a goroutine and up to StreamTimeout before its first record proves
// that a member sent it.
const maxAccepted = 256

// sealedTransport seals everything that passes through another transport.
type sealedTransport struct {
	inner   memberlist.NodeAwareTransport
	sealer  *sealer
	count   *counters
	packets chan *memberlist.Packet
	streams chan net.Conn

	stop     chan struct{}
	stopping sync.Once
	stopErr  error
	pumps    sync.WaitGroup

	mu       sync.Mutex
	open     map[net.Conn]struct{} // of the inner transport; nil after Shutdown
	accepted int
}

var _ memberlist.NodeAwareTransport = (*sealedTransport)(nil)

// newSealedTransport starts two goroutines, which Shutdown ends. It owns inner.
func newSealedTransport(inner memberlist.NodeAwareTransport, s *sealer, count *counters) *sealedTransport {
	t := &sealedTransport{
		inner: inner, sealer: s, count: count,
		packets: make(chan *memberlist.Packet), streams: make(chan net.Conn),
		stop: make(chan struct{}), open: make(map[net.Conn]struct{}),
	}
	t.pumps.Add(2)
	go t.pumpPackets()
	go t.pumpStreams()
	return t
}

// pumpPackets opens what arrives and drops what does not open.
func (t *sealedTransport) pumpPackets() {
	defer t.pumps.Done()
	for {
		select {
		case p := <-t.inner.PacketCh():
			plain, err := t.sealer.open(p.Buf)
			if err != nil {
				if errors.Is(err, errReplayed) {
					t.count.packetsReplayed.Add(1)
				} else {
					t.count.packetsForged.Add(1)
				}
				continue
			}
			t.count.packetsReceived.Add(1)
			t.count.packetBytesReceived.Add(uint64(len(p.Buf)))
			select {
			case t.packets <- &memberlist.Packet{Buf: plain, From: p.From, Timestamp: p.Timestamp}:
			case <-t.stop:
				return
			}
		case <-t.stop:
			return
		}
	}
}

// pumpStreams wraps what is dialed to us.
func (t *sealedTransport) pumpStreams() {
	defer t.pumps.Done()
	for {
		select {
		case conn := <-t.inner.StreamCh():
			c := t.accept(conn)
			if c == nil {
				_ = conn.Close()
				t.count.streamsRefused.Add(1)
				continue
			}
			select {
			case t.streams <- c:
			case <-t.stop:
				_ = c.Close()
				return
			}
		case <-t.stop:
			return
		}
	}
}

// accept takes a dialed connection into the books, nil if there are too many.
func (t *sealedTransport) accept(conn net.Conn) *sealedConn {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open == nil || t.accepted >= maxAccepted {
		return nil
	}
	t.accepted++
	t.open[conn] = struct{}{}
	t.count.streamsAccepted.Add(1)
	return serverConn(conn, t.sealer, t.count, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.accepted--
		delete(t.open, conn)
	})
}

// FinalAdvertiseAddr is the inner transport's.
func (t *sealedTransport) FinalAdvertiseAddr(ip string, port int) (net.IP, int, error) {
	return t.inner.FinalAdvertiseAddr(ip, port)
}

// WriteTo seals and sends one packet.
func (t *sealedTransport) WriteTo(b []byte, addr string) (time.Time, error) {
	return t.WriteToAddress(b, memberlist.Address{Addr: addr})
}

// WriteToAddress seals and sends one packet.
func (t *sealedTransport) WriteToAddress(b []byte, addr memberlist.Address) (time.Time, error) {
	sealed, err := t.sealer.seal(b)
	if err != nil {
		return time.Time{}, err
	}
	at, err := t.inner.WriteToAddress(sealed, addr)
	if err == nil {
		t.count.packetsSent.Add(1)
		t.count.packetBytesSent.Add(uint64(len(sealed)))
	}
	return at, err
}

// PacketCh delivers opened packets.
func (t *sealedTransport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh delivers streams whose handshake happens at the first Read.
func (t *sealedTransport) StreamCh() <-chan net.Conn { return t.streams }

// DialTimeout dials and exchanges salts within timeout.
func (t *sealedTransport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// DialAddressTimeout dials and exchanges salts within timeout.
func (t *sealedTransport) DialAddressTimeout(addr memberlist.Address, timeout time.Duration) (net.Conn, error) {
	deadline := time.Now().Add(timeout)
	conn, err := t.inner.DialAddressTimeout(addr, timeout)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	if t.open == nil {
		t.mu.Unlock()
		_ = conn.Close()
		return nil, net.ErrClosed
	}
	t.open[conn] = struct{}{} // from here on Shutdown cuts it, handshake or not
	t.mu.Unlock()
	forget := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.open, conn)
	}
	c, err := t.handshake(conn, deadline, forget)
	if err != nil {
		forget()
		_ = conn.Close()
		return nil, err
	}
	t.count.streamsDialed.Add(1)
	return c, nil
}

// handshake bounds clientHandshake by deadline and lifts it again.
func (t *sealedTransport) handshake(conn net.Conn, deadline time.Time, done func()) (*sealedConn, error) {
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	c, err := clientHandshake(conn, t.sealer, t.count, done)
	if err != nil {
		return nil, err
	}
	return c, conn.SetDeadline(time.Time{})
}

// Shutdown ends the inner transport, then the pumps, which drain it until then,
// and cuts the streams that are still open.
func (t *sealedTransport) Shutdown() error {
	t.stopping.Do(func() {
		t.stopErr = t.inner.Shutdown()
		close(t.stop)
		t.pumps.Wait()
		t.mu.Lock()
		open := t.open
		t.open = nil
		t.mu.Unlock()
		for c := range open {
			_ = c.Close()
		}
	})
	return t.stopErr
}
