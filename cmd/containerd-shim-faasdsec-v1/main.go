// Command containerd-shim-faasdsec-v1 is a shim for containerd that makes
// sandboxes itself, without an OCI runtime, and serves all of a namespace from
// one process. containerd runs it with the commands start and delete; start
// runs it with serve. Name its absolute path as the runtime.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/faasd-sec/faasd-sec/shim"
)

var version = "dev"

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "containerd-shim-faasdsec-v1:", err)
		os.Exit(1)
	}
}

// commandTimeout bounds start and delete; containerd waits 5 s for the latter.
const commandTimeout = 10 * time.Second

func run(args []string, stdin io.Reader, stdout io.Writer) error {
	f := flag.NewFlagSet("containerd-shim-faasdsec-v1", flag.ContinueOnError)
	namespace := f.String("namespace", "", "containerd namespace of the tasks")
	address := f.String("address", "", "unix socket of containerd")
	id := f.String("id", "", "task that the command is for")
	bundle := f.String("bundle", "", "bundle of the task; the working directory if empty")
	debugLog := f.Bool("debug", false, "log more")
	_ = f.String("publish-binary", "", "not used: events go to TTRPC_ADDRESS")
	showVersion := f.Bool("v", false, "print the version")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *showVersion {
		_, err := fmt.Fprintln(stdout, "containerd-shim-faasdsec-v1", version)
		return err
	}
	if *namespace == "" || *address == "" {
		return errors.New("-namespace and -address are needed: this program is run by containerd")
	}
	g := shim.Group{Address: *address, Namespace: *namespace, Dir: shim.DefaultDir}
	if *bundle == "" {
		dir, err := os.Getwd()
		if err != nil {
			return fmt.Errorf("find the bundle: %w", err)
		}
		*bundle = dir
	}
	command := f.Arg(0)
	if command == "serve" {
		return serve(g, *debugLog)
	}
	if *id == "" {
		return errors.New("-id is needed")
	}
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	switch command {
	case "start":
		if _, err := io.Copy(io.Discard, stdin); err != nil { // options, which come with the task again
			return fmt.Errorf("read options: %w", err)
		}
		l, err := launch(g, *debugLog)
		if err != nil {
			return err
		}
		url, err := shim.Start(ctx, g, *id, *bundle, l)
		if err != nil {
			return err
		}
		_, err = io.WriteString(stdout, url)
		return err
	case "delete":
		resp, err := shim.Delete(ctx, g, *id, *bundle)
		if err != nil {
			return err
		}
		b, err := proto.Marshal(resp)
		if err != nil {
			return fmt.Errorf("encode the answer: %w", err)
		}
		_, err = stdout.Write(b)
		return err
	}
	return fmt.Errorf("unknown command %q: want start, delete or serve", command)
}

// launch is how this program serves. Its command line names no task: it is
// none's in particular.
func launch(g shim.Group, debugLog bool) (shim.Launch, error) {
	self, err := os.Executable()
	if err != nil {
		return shim.Launch{}, fmt.Errorf("find this program: %w", err)
	}
	args := []string{"-namespace", g.Namespace, "-address", g.Address}
	if debugLog {
		args = append(args, "-debug")
	}
	var env []string
	for _, kv := range os.Environ() {
		if strings.HasPrefix(kv, eventsVariable+"=") || strings.HasPrefix(kv, "PATH=") {
			env = append(env, kv)
		}
	}
	return shim.Launch{Program: self, Args: append(args, "serve"), Env: env}, nil
}

// eventsVariable is where containerd says on which socket it takes events.
const eventsVariable = "TTRPC_ADDRESS"

// listenerFD is the descriptor that the start command passes the socket by.
const listenerFD = 3

func serve(g shim.Group, debugLog bool) error {
	// One process for many sandboxes, idle nearly always: memory matters more
	// than the speed of its collector.
	debug.SetGCPercent(50)
	runtime.GOMAXPROCS(min(runtime.GOMAXPROCS(0), 4))
	f := os.NewFile(listenerFD, "listener")
	l, err := net.FileListener(f)
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	// A signal to end is no reason to leave sandboxes alone. They are caught
	// rather than ignored, since what is ignored stays so in every sandbox.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	cfg := shim.Server{Group: g, Listener: l, Events: os.Getenv(eventsVariable), LogLevel: slog.LevelWarn}
	if cfg.Events == "" {
		cfg.Events = g.Address + ".ttrpc"
	}
	if debugLog {
		cfg.LogLevel = slog.LevelDebug
	}
	return shim.Serve(context.Background(), cfg)
}
