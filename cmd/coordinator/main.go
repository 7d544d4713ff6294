// Command coordinator is a cluster's gateway: callers invoke functions and
// owners deploy them here. It opens nothing.
package main

import (
	"os"

	"github.com/faasd-sec/faasd-sec/daemon"
)

// version is stamped by the build.
var version = "dev"

func main() {
	os.Exit(daemon.Main("coordinator", version, os.Args[1:], os.Stdout, os.Stderr, parse, run))
}
