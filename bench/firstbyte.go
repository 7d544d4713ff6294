package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"
)

// firstByteWait is how long a start may take.
const firstByteWait = 20 * time.Second

// doorbell is a unix socket that a program rings when it runs: the end of what
// the floors of a cold start measure.
type doorbell struct {
	dir string // holds nothing but the socket
	ln  *net.UnixListener
}

const doorbellName = "s"

// newDoorbell listens in a new directory that any user can pass.
func newDoorbell(dir string) (_ *doorbell, err error) {
	if err := os.Mkdir(dir, 0o711); err != nil {
		return nil, fmt.Errorf("first byte: %w", err)
	}
	path := filepath.Join(dir, doorbellName)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("first byte: %w", err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	return &doorbell{dir: dir, ln: ln}, nil
}

func (d *doorbell) path() string { return filepath.Join(d.dir, doorbellName) }

func (d *doorbell) close() error { return errors.Join(d.ln.Close(), os.RemoveAll(d.dir)) }

// rung waits for the program's first byte. The program runs until the
// connection is closed.
func (d *doorbell) rung(ctx context.Context) (net.Conn, error) {
	until := time.Now().Add(firstByteWait)
	if dl, ok := ctx.Deadline(); ok && dl.Before(until) {
		until = dl
	}
	if err := d.ln.SetDeadline(until); err != nil {
		return nil, err
	}
	c, err := d.ln.Accept()
	if err != nil {
		return nil, fmt.Errorf("wait for the program's first byte: %w", err)
	}
	if err := errors.Join(c.SetDeadline(until), first(c)); err != nil {
		c.Close()
		return nil, fmt.Errorf("read the program's first byte: %w", err)
	}
	return c, nil
}

func first(r io.Reader) error {
	var b [1]byte
	_, err := io.ReadFull(r, b[:])
	return err
}
