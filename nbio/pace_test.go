package nbio

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"
)

// told is a connection that notes its deadlines.
type told struct {
	net.Conn
	read, write time.Time
}

func (c *told) SetReadDeadline(t time.Time) error  { c.read = t; return nil }
func (c *told) SetWriteDeadline(t time.Time) error { c.write = t; return nil }

func TestMuchHasMoreTimeThanLittle(t *testing.T) {
	const size = 100 * slowest
	c := new(told)
	r := Upload(c, bytes.NewReader(make([]byte, size)))
	piece := make([]byte, slowest)
	before := time.Now()
	if _, err := r.Read(piece); err != nil {
		t.Fatal(err)
	}
	first := c.read
	if early, late := before.Add(patience), time.Now().Add(patience); first.Before(early) || first.After(late) || !c.write.IsZero() {
		t.Errorf("the first piece has until %s, want within %s and %s", first, early, late)
	}
	time.Sleep(time.Millisecond)
	if n, err := io.Copy(io.Discard, r); err != nil || n != size-slowest {
		t.Fatal(n, err)
	}
	if !c.read.After(first) || c.read.After(time.Now().Add(patience)) {
		t.Errorf("the last piece has until %s, the first had until %s", c.read, first)
	}
}

func TestWhoTricklesHasAnEnd(t *testing.T) {
	c := new(told)
	p := &paced{pace{set: c.SetWriteDeadline}, bytes.NewReader([]byte("trickle"))}
	p.began = time.Now().Add(-time.Hour) // and a byte now and then since
	if _, err := p.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if c.write.After(time.Now()) {
		t.Errorf("who had an hour for no byte has until %s", c.write)
	}
	p.moved = 2 * 3600 * slowest
	if _, err := p.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if !c.write.After(time.Now()) || c.write.After(time.Now().Add(patience)) {
		t.Errorf("who was fast and stalls has until %s", c.write)
	}
}

func TestDownloadsCloseWhatTheyGive(t *testing.T) {
	r, w := io.Pipe()
	defer w.Close()
	if err := Download(new(told), r).Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 1)); err != io.ErrClosedPipe {
		t.Error(err)
	}
}
