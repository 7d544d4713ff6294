// Command node is the daemon of one machine: it runs sandboxes for sealed
// functions and tells the cluster what it has free.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"

	"github.com/faasd-sec/faasd-sec/daemon"
)

// version is stamped by the build.
var version = "dev"

func main() {
	ctx, stop := daemon.Signals(context.Background())
	defer stop()
	o, err := parse(os.Args[1:])
	if err == nil && o.version {
		fmt.Println("node", version)
		return
	}
	if err == nil {
		err = run(ctx, o)
	}
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}
