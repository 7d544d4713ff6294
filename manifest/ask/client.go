package ask

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/manifest"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// Config says how to reach an opener; see DefaultConfig.
type Config struct {
	Socket    string        // path
	ServerUID int           // whose process must listen there
	Conns     int           // kept and used at once, at most
	Timeout   time.Duration // of one call, the wait for a connection included
}

// DefaultConfig is eight connections to a process of this user, five seconds.
func DefaultConfig(socket string) Config {
	return Config{Socket: socket, ServerUID: os.Geteuid(), Conns: 8, Timeout: 5 * time.Second}
}

// Client asks an opener. It is safe for concurrent use; end it with Close.
type Client struct {
	cfg   Config
	slots chan *net.UnixConn // nil: a connection not made yet
}

// New makes a client; it connects when it is first used.
func New(cfg Config) (*Client, error) {
	if cfg.Socket == "" || cfg.Conns < 1 || cfg.Timeout <= 0 {
		return nil, errors.New("manifest opener: client: socket, connections and timeout are required")
	}
	c := &Client{cfg: cfg, slots: make(chan *net.UnixConn, cfg.Conns)}
	for range cfg.Conns {
		c.slots <- nil
	}
	return c, nil
}

// Close ends the connections once the calls under way have ended. No call may
// follow.
func (c *Client) Close() error {
	var err error
	for range c.cfg.Conns {
		if conn := <-c.slots; conn != nil {
			err = errors.Join(err, conn.Close())
		}
	}
	return err
}

// Subject is what bounds and manifests are about.
type Subject struct {
	Function api.FunctionName
	Revision sealed.Digest
	Owner    sealed.Fingerprint
}

// Opened is a manifest after merging. It is the caller's to Wipe.
type Opened struct {
	Manifest manifest.Manifest
	Sender   sealed.Fingerprint // the initiator; zero where no manifest was given
}

// Info returns the live manifest keys, the one to publish and seal to first.
func (c *Client) Info(ctx context.Context) ([]Key, error) {
	r, err := c.do(ctx, &Request{Call: CallInfo})
	if err != nil {
		return nil, err
	}
	if len(r.Keys) == 0 {
		return nil, api.Errorf(api.CodeUnavailable, "the manifest opener has no live key")
	}
	return r.Keys, nil
}

// Deposit hands the owner's sealed bounds over and returns the blob to store.
func (c *Client) Deposit(ctx context.Context, s Subject, bounds []byte) ([]byte, error) {
	r, err := c.do(ctx, request(CallDeposit, s, nil, bounds))
	if err != nil {
		return nil, err
	}
	return r.Body, nil
}

// Open merges the stored blob and an initiator's sealed manifest; one of them
// may be empty.
func (c *Client) Open(ctx context.Context, s Subject, blob, sealedManifest []byte) (Opened, error) {
	r, err := c.do(ctx, request(CallOpen, s, blob, sealedManifest))
	if err != nil {
		return Opened{}, err
	}
	defer clear(r.Body)
	m, err := manifest.Decode(r.Body)
	if err != nil {
		return Opened{}, api.Wrap(api.CodeUnavailable, err, "the manifest opener's reply does not decode")
	}
	opened := Opened{Manifest: *m, Sender: r.Sender}
	*m = manifest.Manifest{} // the one copy is the caller's
	return opened, nil
}

func request(call Call, s Subject, blob, message []byte) *Request {
	return &Request{Call: call, Function: string(s.Function), Revision: s.Revision, Owner: s.Owner, Blob: blob, Sealed: message}
}

func (c *Client) do(ctx context.Context, q *Request) (*Reply, error) {
	q.Version = Version
	switch {
	case len(q.Sealed) > MaxSealed:
		return nil, tooLarge("manifest", len(q.Sealed), MaxSealed)
	case len(q.Blob) > MaxBlob:
		return nil, tooLarge("blob", len(q.Blob), MaxBlob)
	}
	frame, err := EncodeRequest(q)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	var conn *net.UnixConn
	select {
	case conn = <-c.slots:
	case <-ctx.Done():
		return nil, unavailable(ctx.Err())
	}
	old := conn != nil
	r, conn, err := c.exchange(ctx, conn, frame)
	// All calls are idempotent, and a kept connection breaks when the opener is
	// started again.
	if err != nil && old && ctx.Err() == nil {
		r, conn, err = c.exchange(ctx, nil, frame)
	}
	c.slots <- conn
	if err != nil {
		return nil, unavailable(err)
	}
	if err := r.Err(); err != nil {
		return nil, err
	}
	return r, nil
}

func tooLarge(field string, n, most int) error {
	return &api.Error{Code: api.CodeTooLarge, Field: field, Message: fmt.Sprintf("%d bytes, at most %d", n, most)}
}

func unavailable(err error) error {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		return api.Wrap(api.CodeDeadline, err, "the manifest opener did not answer in time")
	}
	return api.Wrap(api.CodeUnavailable, err, "the manifest opener cannot be reached")
}

// exchange asks once. It returns the connection to keep, nil where it broke.
func (c *Client) exchange(ctx context.Context, conn *net.UnixConn, frame []byte) (_ *Reply, keep *net.UnixConn, err error) {
	if conn == nil {
		if conn, err = c.dial(ctx); err != nil {
			return nil, nil, err
		}
	}
	// A context that is cancelled ends the waiting at once.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() && err == nil {
			err = ctx.Err() // the deadline may be set any moment: do not keep it
		}
		if err != nil {
			_ = conn.Close()
			keep = nil
		}
	}()
	if _, err := conn.Write(frame); err != nil {
		return nil, nil, fmt.Errorf("ask: %w", err)
	}
	buf := make([]byte, MaxFrame)
	defer clear(buf)
	body, err := ReadFrame(conn, buf)
	if err != nil {
		return nil, nil, fmt.Errorf("wait for the reply: %w", err)
	}
	r, err := DecodeReply(body)
	return r, conn, err
}

func (c *Client) dial(ctx context.Context) (*net.UnixConn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.cfg.Socket)
	if err != nil {
		return nil, err
	}
	u := conn.(*net.UnixConn) // what the network "unix" is
	uid, err := PeerUID(u)
	if err == nil && uid != c.cfg.ServerUID {
		err = fmt.Errorf("user %d listens on %s, want %d", uid, c.cfg.Socket, c.cfg.ServerUID)
	}
	if err != nil {
		return nil, errors.Join(err, u.Close())
	}
	return u, nil
}
