// Command node is the daemon of one machine: it runs sandboxes for sealed
// functions and tells the cluster what it has free.
package main

import (
	"os"

	"github.com/faasd-sec/faasd-sec/daemon"
)

// version is stamped by the build.
var version = "dev"

func main() {
	os.Exit(daemon.Main("node", version, os.Args[1:], os.Stdout, os.Stderr, parse, run))
}
