// Command containerd-shim-faasdsec-server makes the sandboxes of one
// containerd namespace, without an OCI runtime. containerd-shim-faasdsec-v1
// starts it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/faasd-sec/faasd-sec/shim"
	"github.com/faasd-sec/faasd-sec/shim/boot"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "containerd-shim-faasdsec-server:", err)
		os.Exit(1)
	}
}

// cleanupTimeout bounds the cleaning up after a shim that died. containerd
// does not wait longer.
const cleanupTimeout = 5 * time.Second

// The descriptors by which the sockets are passed.
const (
	taskFD    = 3
	controlFD = 4
)

func run(args []string) error {
	f := flag.NewFlagSet("containerd-shim-faasdsec-server", flag.ContinueOnError)
	namespace := f.String("namespace", "", "containerd namespace of the tasks")
	address := f.String("address", "", "unix socket of containerd")
	bundle := f.String("bundle", "", "bundle of the task to clean up after")
	debugLog := f.Bool("debug", false, "log more")
	if err := f.Parse(args); err != nil {
		return err
	}
	switch command := f.Arg(0); command {
	case "cleanup":
		ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
		defer cancel()
		if err := shim.CleanUp(ctx, *bundle); err != nil {
			return err
		}
		return boot.WriteExit(os.Stdout, boot.Exit{Code: boot.Killed, At: time.Now()})
	case "serve":
		if *namespace == "" || *address == "" {
			return errors.New("-namespace and -address are needed: this program is started by containerd-shim-faasdsec-v1")
		}
		return serve(boot.Group{Address: *address, Namespace: *namespace, Dir: boot.DefaultDir}, *debugLog)
	default:
		return fmt.Errorf("unknown command %q: want serve or cleanup", command)
	}
}

func serve(g boot.Group, debugLog bool) error {
	// One process for many sandboxes, idle nearly always: memory matters more
	// than the speed of its collector.
	debug.SetGCPercent(50)
	tasks, err := listener(taskFD)
	if err != nil {
		return err
	}
	control, err := listener(controlFD)
	if err != nil {
		return err
	}
	// A signal to end is no reason to leave sandboxes alone. They are caught
	// rather than ignored, since what is ignored stays so in every sandbox.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	cfg := shim.Server{Group: g, Tasks: tasks, Control: control, Events: os.Getenv("TTRPC_ADDRESS"), LogLevel: slog.LevelWarn}
	if cfg.Events == "" {
		cfg.Events = g.Address + ".ttrpc"
	}
	if debugLog {
		cfg.LogLevel = slog.LevelDebug
	}
	return shim.Serve(context.Background(), cfg)
}

func listener(fd uintptr) (net.Listener, error) {
	f := os.NewFile(fd, "listener")
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("serve on descriptor %d: %w", fd, err)
	}
	return l, f.Close()
}
