package relay

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/faasd-sec/faasd-sec/nbio"
)

// maxAhead bounds the answer to the request that opens a connection, in bytes.
const maxAhead = 64 << 10

// OpenAhead opens a connection to a peer before there is anything to send, for
// Options.First. It asks for path once, and takes whatever answer comes: the
// peer has then done all that it does once for a connection, and waits for the
// next request as long as it waits on any kept one.
func OpenAhead(ctx context.Context, dial Dialer, path string) (_ net.Conn, retErr error) {
	c, err := dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("open ahead: %w", err)
	}
	conn := nbio.Wrap(c)
	defer func() {
		if retErr != nil {
			_ = conn.Close()
		}
	}()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: peer\r\n\r\n"); err != nil {
		return nil, fmt.Errorf("open ahead: %w", err)
	}
	br := bufio.NewReader(io.LimitReader(conn, maxAhead))
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		return nil, fmt.Errorf("open ahead: %w", err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return nil, fmt.Errorf("open ahead: %w", err)
	}
	if resp.Close || br.Buffered() > 0 || !stop() {
		return nil, errors.New("open ahead: the peer does not keep the connection")
	}
	return conn, nil
}

// first is the connection that was opened ahead, where it is still good.
func (o *Options) first() net.Conn {
	if o.First == nil {
		return nil
	}
	c := o.First()
	if c == nil {
		return nil
	}
	c = nbio.Wrap(c)
	if !nbio.Silent(c) {
		_ = c.Close()
		return nil
	}
	return c
}
