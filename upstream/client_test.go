package upstream

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"testing"
	"time"
)

func echoes(_ int, br *bufio.Reader, c net.Conn) {
	for readRequest(br) != "" {
		if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"); err != nil {
			return
		}
	}
}

func (c *Client) kept() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.idle)
}

func TestIdleConnectionsAreClosedInTime(t *testing.T) {
	c, dialled := scripted(t, echoes)
	c.cfg.Sweep, c.cfg.IdleTimeout = true, 20*time.Millisecond
	if _, got, err := do(t, c, &Request{Method: "POST"}); got != "hi" || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	for end := time.Now().Add(20 * time.Second); c.kept() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it is kept for ever")
		}
	}
	if _, got, err := do(t, c, &Request{Method: "POST"}); got != "hi" || err != nil || dialled() != 2 {
		t.Fatalf("%q, %v, %d connections", got, err, dialled())
	}
}

func TestCloseIdleLeavesTheClientUsable(t *testing.T) {
	c, dialled := scripted(t, echoes)
	c.cfg.Sweep = true
	for range 2 {
		if _, got, err := do(t, c, &Request{Method: "POST"}); got != "hi" || err != nil {
			t.Fatalf("%q, %v", got, err)
		}
		c.CloseIdle()
	}
	if dialled() != 2 || c.kept() != 0 {
		t.Errorf("%d connections, %d kept", dialled(), c.kept())
	}
}

func TestSentIsCalledBeforeTheReply(t *testing.T) {
	sent := make(chan struct{})
	c, _ := scripted(t, func(_ int, br *bufio.Reader, c net.Conn) {
		readRequest(br)
		<-sent
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
	})
	c.cfg.Inline = 1 << 20
	body := bytes.Repeat([]byte("x"), 100<<10) // more than one write
	if _, got, err := do(t, c, &Request{Method: "POST", Small: body, Sent: func() { close(sent) }}); got != "hi" || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
}
