package daemon

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
)

// Options are a daemon's parsed flags.
type Options interface {
	Version() bool // only the version was asked for
}

// Main is the frame of a daemon's main function: it parses args, runs until a
// signal, writes what went wrong to stderr, and returns the exit status.
func Main[O Options](name, version string, args []string, stdout, stderr io.Writer,
	parse func([]string) (O, error), run func(context.Context, O) error) int {
	o, err := parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err == nil && o.Version():
		fmt.Fprintln(stdout, name, version)
		return 0
	case err == nil:
		ctx, stop := Signals(context.Background())
		defer stop()
		err = run(ctx, o)
	}
	if err != nil {
		fmt.Fprintln(stderr, "error:", err)
		return 1
	}
	return 0
}
