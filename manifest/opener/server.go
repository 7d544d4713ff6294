package opener

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/faasd-sec/faasd-sec/manifest/ask"
)

// ServerConfig bounds what peers may do.
type ServerConfig struct {
	AllowedUIDs []int         // whose processes may ask
	Conns       int           // at once; more wait to be accepted
	Opening     int           // calls worked on at once
	Idle        time.Duration // between two calls on a connection
	Deadline    time.Duration // of reading a call once it began, and of writing its reply
}

// DefaultServerConfig admits this process's own user.
func DefaultServerConfig(parallel int) ServerConfig {
	return ServerConfig{AllowedUIDs: []int{os.Geteuid()}, Conns: 64, Opening: parallel, Idle: 2 * time.Minute, Deadline: 5 * time.Second}
}

// Listen makes a socket that only this user reaches (mode 0600, in a directory of
// mode 0700), or its group as well where the directory is there with mode 0750, in
// place of one that a former life left. Who calls is asked of the kernel in any case.
func Listen(path string) (*net.UnixListener, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("manifest opener: listen: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return nil, fmt.Errorf("manifest opener: listen: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	perm := info.Mode().Perm()
	if !ok || !info.IsDir() || perm != 0o700 && perm != 0o750 || int(st.Uid) != os.Geteuid() {
		return nil, fmt.Errorf("manifest opener: listen: %s must be a directory of user %d with mode 0700, or 0750 for a coordinator of its group", dir, os.Geteuid())
	}
	// Nobody else writes into the directory, so nothing happens between these.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("manifest opener: listen: %w", err)
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		return nil, fmt.Errorf("manifest opener: listen: %w", err)
	}
	mode := os.FileMode(0o600)
	if perm == 0o750 {
		mode = 0o660
	}
	if err := os.Chmod(path, mode); err != nil {
		return nil, errors.Join(fmt.Errorf("manifest opener: listen: %w", err), ln.Close())
	}
	return ln, nil
}

// Serve answers on ln until ctx ends, and returns when nothing it started is
// left.
func (o *Opener) Serve(ctx context.Context, ln *net.UnixListener, cfg ServerConfig) error {
	ctx, cancel := context.WithCancel(ctx)
	s := &server{o: o, cfg: cfg, log: o.cfg.Log, conns: make(chan struct{}, cfg.Conns), opening: make(chan struct{}, cfg.Opening)}
	s.wg.Go(func() { o.Run(ctx) })
	defer s.wg.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	for {
		select {
		case s.conns <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		c, err := ln.AcceptUnix()
		if err != nil {
			<-s.conns
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ECONNABORTED) {
				s.log.Warn("a connection could not be accepted", "error", err)
				select {
				case <-time.After(10 * time.Millisecond):
				case <-ctx.Done():
				}
				continue
			}
			return fmt.Errorf("manifest opener: accept: %w", err)
		}
		s.wg.Go(func() {
			defer func() { <-s.conns }()
			s.serve(ctx, c)
		})
	}
}

type server struct {
	o       *Opener
	cfg     ServerConfig
	log     *slog.Logger
	wg      sync.WaitGroup
	conns   chan struct{}
	opening chan struct{}
}

func (s *server) serve(ctx context.Context, c *net.UnixConn) {
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	defer c.Close()
	uid, err := ask.PeerUID(c)
	if err != nil || !slices.Contains(s.cfg.AllowedUIDs, uid) {
		s.log.Warn("a stranger asked", "uid", uid, "error", err)
		return
	}
	in, out := make([]byte, ask.MaxFrame), make([]byte, ask.MaxFrame+4)
	for {
		n, ok := s.exchange(ctx, c, in, out)
		clear(in)
		clear(out[:n])
		if !ok {
			return
		}
	}
}

// exchange answers one call; n bytes of out were used.
func (s *server) exchange(ctx context.Context, c *net.UnixConn, in, out []byte) (n int, ok bool) {
	if c.SetDeadline(time.Now().Add(s.cfg.Idle)) != nil || ctx.Err() != nil {
		return 0, false
	}
	size, err := ask.ReadLength(c)
	if err != nil || c.SetDeadline(time.Now().Add(s.cfg.Deadline)) != nil || ctx.Err() != nil {
		return 0, false
	}
	for got := 0; got < size; {
		m, err := c.Read(in[got:size])
		if got += m; err != nil && got < size {
			return 0, false
		}
	}
	select {
	case s.opening <- struct{}{}:
	case <-ctx.Done():
		return 0, false
	}
	n = s.o.handle(in[:size], out)
	<-s.opening
	if n == 0 || c.SetDeadline(time.Now().Add(s.cfg.Deadline)) != nil {
		return n, false
	}
	_, err = c.Write(out[:n])
	return n, err == nil && ctx.Err() == nil
}
