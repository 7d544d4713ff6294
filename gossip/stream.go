package gossip

import (
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// A sealed stream begins with 17 bytes each way, version and salt, the client's
// first; nothing else is sent before both are there. After that each direction is
// a sequence of records:
//
//	header  u32 big-endian: bit 31 = last record, the rest = length of the body
//	body        SM4-GCM ciphertext of at most 64 KiB || 16-byte tag
//
// key = HKDF-SM3(secret = cluster key, salt = client's salt || server's salt,
// info = streamInfoClient or …Server for the two directions), nonce = four zero
// bytes || number of the record from 0, additional data = header || label.
//
// Both salts are in both keys, so a recorded half of a stream opens in no other;
// records that are missing, repeated or in another order do not open, and an end
// without the last record is an error. The server answers under the key that
// opened the client's first record, so that rotation does not need both to agree
// on which is first.
const (
	streamVersion = 0xf2
	helloSize     = 1 + saltSize
	recordHeader  = 4
	maxRecord     = 64 << 10
	lastRecord    = 1 << 31
	maxRecords    = 1 << 32
	// closeTimeout bounds the attempt to send the last record on Close.
	closeTimeout = time.Second
)

// errNotYet means that a server wrote before it knew its client.
var errNotYet = errors.New("gossip: write on a stream before the other side proved to hold a key")

// sealedConn is one side of a sealed stream. Like any net.Conn it takes one
// reader and one writer at a time, and Close at any time.
type sealedConn struct {
	net.Conn
	sealer *sealer
	count  *counters
	done   func() // once, at the first Close

	rmu    sync.Mutex
	salts  []byte // both, in the order of the keys' derivation; nil before the hello
	in     cipher.AEAD
	inSeq  uint64
	plain  []byte // opened and not yet read
	record []byte // buffer
	rerr   error  // sticky

	wmu    sync.Mutex
	out    cipher.AEAD // nil until the keys are known
	outSeq uint64
	werr   error // sticky

	closing sync.Once
	server  bool
}

// clientHandshake exchanges salts on a fresh connection. The connection's
// deadline is the caller's.
func clientHandshake(conn net.Conn, s *sealer, count *counters, done func()) (*sealedConn, error) {
	c := &sealedConn{Conn: conn, sealer: s, count: count, done: done}
	hello := make([]byte, helloSize)
	hello[0] = streamVersion
	if _, err := io.ReadFull(s.rand, hello[1:]); err != nil {
		return nil, fmt.Errorf("gossip: draw a salt: %w", err)
	}
	if _, err := conn.Write(hello); err != nil {
		return nil, fmt.Errorf("gossip: open a stream: %w", err)
	}
	answer := make([]byte, helloSize)
	if _, err := io.ReadFull(conn, answer); err != nil {
		return nil, fmt.Errorf("gossip: open a stream: %w", err)
	}
	if answer[0] != streamVersion {
		return nil, fmt.Errorf("gossip: open a stream: version %#x: %w", answer[0], errForged)
	}
	c.salts = append(hello[1:], answer[1:]...)
	return c, c.setKeys(s.keys()[0])
}

// serverConn wraps an accepted connection; the handshake waits for the first
// Read, so that accepting never blocks.
func serverConn(conn net.Conn, s *sealer, count *counters, done func()) *sealedConn {
	return &sealedConn{Conn: conn, sealer: s, count: count, done: done, server: true}
}

// setKeys derives both directions from one key of the ring.
func (c *sealedConn) setKeys(k Key) error {
	toServer, err := deriveAEAD(k, c.salts, streamInfoClient)
	if err != nil {
		return err
	}
	toClient, err := deriveAEAD(k, c.salts, streamInfoServer)
	if err != nil {
		return err
	}
	in, out := toClient, toServer
	if c.server {
		in, out = toServer, toClient
	}
	c.in = in
	c.wmu.Lock()
	c.out = out
	c.wmu.Unlock()
	return nil
}

// serverHello answers the client's salt.
func (c *sealedConn) serverHello() error {
	hello := make([]byte, helloSize)
	if _, err := io.ReadFull(c.Conn, hello); err != nil {
		return fmt.Errorf("gossip: accept a stream: %w", err)
	}
	if hello[0] != streamVersion {
		return fmt.Errorf("gossip: accept a stream: version %#x: %w", hello[0], errForged)
	}
	answer := make([]byte, helloSize)
	answer[0] = streamVersion
	if _, err := io.ReadFull(c.sealer.rand, answer[1:]); err != nil {
		return fmt.Errorf("gossip: draw a salt: %w", err)
	}
	if _, err := c.Conn.Write(answer); err != nil {
		return fmt.Errorf("gossip: accept a stream: %w", err)
	}
	c.salts = append(hello[1:], answer[1:]...)
	return nil
}

// Read gives what the other side wrote, io.EOF after its last record only.
func (c *sealedConn) Read(b []byte) (int, error) {
	c.rmu.Lock()
	defer c.rmu.Unlock()
	for len(c.plain) == 0 && c.rerr == nil && len(b) > 0 {
		if c.rerr = c.next(); errors.Is(c.rerr, errForged) || errors.Is(c.rerr, io.ErrUnexpectedEOF) {
			c.count.streamsForged.Add(1)
		}
	}
	if len(c.plain) == 0 && len(b) > 0 {
		return 0, c.rerr
	}
	n := copy(b, c.plain)
	c.plain = c.plain[n:]
	return n, nil
}

// next reads one record into plain.
func (c *sealedConn) next() error {
	if c.salts == nil {
		if err := c.serverHello(); err != nil {
			return err
		}
	}
	var header [recordHeader]byte
	if _, err := io.ReadFull(c.Conn, header[:]); err != nil {
		if errors.Is(err, io.EOF) { // without a last record: cut
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("gossip: read a stream: %w", err)
	}
	h := binary.BigEndian.Uint32(header[:])
	n, last := h&^lastRecord, h&lastRecord != 0
	if n < tagSize || n > maxRecord+tagSize || c.inSeq >= maxRecords {
		return fmt.Errorf("gossip: read a stream: record of %d bytes: %w", n, errForged)
	}
	if cap(c.record) < int(n) {
		c.record = make([]byte, n)
	}
	body := c.record[:n]
	if _, err := io.ReadFull(c.Conn, body); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("gossip: read a stream: %w", err)
	}
	c.count.streamBytesReceived.Add(uint64(recordHeader) + uint64(n))
	plain, err := c.openRecord(body, append(header[:], c.sealer.label...))
	if err != nil {
		return fmt.Errorf("gossip: read a stream: record %d: %w", c.inSeq, err)
	}
	c.inSeq++
	c.plain = plain
	if last {
		if len(plain) > 0 {
			return fmt.Errorf("gossip: read a stream: last record with a body: %w", errForged)
		}
		return io.EOF
	}
	if len(plain) == 0 {
		return fmt.Errorf("gossip: read a stream: empty record: %w", errForged)
	}
	return nil
}

// openRecord opens a record in place; a server finds out with its first which key
// the client uses.
func (c *sealedConn) openRecord(body, data []byte) ([]byte, error) {
	nonce := counterNonce(c.inSeq)
	if c.in != nil {
		if plain, err := c.in.Open(body[:0], nonce[:], body, data); err == nil {
			return plain, nil
		}
		return nil, errForged
	}
	for _, k := range c.sealer.keys() {
		aead, err := deriveAEAD(k, c.salts, streamInfoClient)
		if err != nil {
			return nil, err
		}
		plain, err := aead.Open(nil, nonce[:], body, data) // not in place: a failure destroys the output
		if err != nil {
			continue
		}
		return plain, c.setKeys(k)
	}
	return nil, errForged
}

// Write seals b into records.
func (c *sealedConn) Write(b []byte) (int, error) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	written := 0
	for len(b) > 0 {
		n := min(len(b), maxRecord)
		if err := c.writeRecord(b[:n], 0); err != nil {
			return written, err
		}
		written += n
		b = b[n:]
	}
	return written, nil
}

// writeRecord is called with wmu held. A failed write leaves the stream at an
// unknown place, so that nothing may follow.
func (c *sealedConn) writeRecord(plain []byte, flag uint32) error {
	switch {
	case c.werr != nil:
		return c.werr
	case c.out == nil:
		return errNotYet
	case c.outSeq >= maxRecords:
		return fmt.Errorf("gossip: write a stream: more than %d records", uint64(maxRecords))
	}
	b := make([]byte, recordHeader, recordHeader+len(plain)+tagSize)
	binary.BigEndian.PutUint32(b, uint32(len(plain)+tagSize)|flag)
	nonce := counterNonce(c.outSeq)
	b = c.out.Seal(b, nonce[:], plain, append(b[:recordHeader:recordHeader], c.sealer.label...))
	c.outSeq++
	n, err := c.Conn.Write(b)
	c.count.streamBytesSent.Add(uint64(n))
	if err != nil {
		c.werr = fmt.Errorf("gossip: write a stream: %w", err)
	}
	return c.werr
}

// Close sends the last record if it can and closes the connection.
func (c *sealedConn) Close() error {
	var err error
	c.closing.Do(func() {
		// A writer that is stuck holds the lock; the connection is then closed
		// under it, and the other side sees a cut.
		if c.wmu.TryLock() {
			if c.out != nil && c.werr == nil && c.Conn.SetWriteDeadline(time.Now().Add(closeTimeout)) == nil {
				_ = c.writeRecord(nil, lastRecord) // the other side may be gone already
			}
			c.werr = net.ErrClosed
			c.wmu.Unlock()
		}
		err = c.Conn.Close()
		c.done()
	})
	return err
}
