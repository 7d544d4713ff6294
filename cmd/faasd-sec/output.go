package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// output is standard output. It keeps the first error of writing to it, so that a
// result which did not arrive is no success. It is safe for concurrent use.
type output struct {
	to io.Writer

	mu  sync.Mutex
	err error
}

// Write implements io.Writer.
func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n, err := o.to.Write(b)
	if err != nil && o.err == nil {
		o.err = fmt.Errorf("write to standard output: %w", err)
	}
	return n, err
}

// failed is the first error of writing.
func (o *output) failed() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

// foreground is for commands that have something to take down at their end: a
// terminal that is closed ends ctx as Ctrl-C does, unless the command was started to
// outlive it (nohup), and a pipe that nobody reads is an error of who writes to it,
// and not the end of the process.
func foreground(ctx context.Context) (context.Context, context.CancelFunc) {
	pipes := make(chan os.Signal, 1) // nobody reads it
	signal.Notify(pipes, unix.SIGPIPE)
	stop := func() {}
	if !signal.Ignored(unix.SIGHUP) {
		ctx, stop = signal.NotifyContext(ctx, unix.SIGHUP)
	}
	return ctx, func() { stop(); signal.Stop(pipes) }
}
