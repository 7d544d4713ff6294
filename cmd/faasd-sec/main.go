// Command faasd-sec is the command line of faasd-sec: keys, build, deploy,
// invoke, logs, nodes, and a whole cluster on one machine. It has flags, files
// and output only; what it does is in package client.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.LookupEnv)
	stop()
	os.Exit(code)
}
