// Command containerd-shim-faasdsec-v1 is what containerd runs for a task of
// this project's own runtime, with the commands start and delete. Name its
// absolute path as the runtime. containerd-shim-faasdsec-server, which makes
// the sandboxes, must lie beside it.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/faasd-sec/faasd-sec/shim/boot"
)

var version = "dev"

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "containerd-shim-faasdsec-v1:", err)
		os.Exit(1)
	}
}

const serverName = "containerd-shim-faasdsec-server"

func run(args []string, stdin io.Reader, stdout io.Writer) error {
	f := flag.NewFlagSet("containerd-shim-faasdsec-v1", flag.ContinueOnError)
	namespace := f.String("namespace", "", "containerd namespace of the tasks")
	address := f.String("address", "", "unix socket of containerd")
	id := f.String("id", "", "task that the command is for")
	bundle := f.String("bundle", "", "bundle of the task; the working directory if empty")
	debug := f.Bool("debug", false, "log more")
	_ = f.String("publish-binary", "", "not used: events go to TTRPC_ADDRESS")
	showVersion := f.Bool("v", false, "print the version")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *showVersion {
		_, err := fmt.Fprintln(stdout, "containerd-shim-faasdsec-v1", version)
		return err
	}
	if *namespace == "" || *address == "" || *id == "" {
		return errors.New("-namespace, -address and -id are needed: this program is run by containerd")
	}
	if *bundle == "" {
		dir, err := os.Getwd()
		if err != nil {
			return fmt.Errorf("find the bundle: %w", err)
		}
		*bundle = dir
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	g := boot.Group{Address: *address, Namespace: *namespace, Dir: boot.DefaultDir}
	server := boot.Server{
		Program: filepath.Join(filepath.Dir(self), serverName),
		Env:     environment(os.Environ()),
		// The command line names no task: the process is none's in particular.
		Args: []string{self, "-namespace", g.Namespace, "-address", g.Address, fmt.Sprintf("-debug=%v", *debug), "serve"},
	}
	switch command := f.Arg(0); command {
	case "start":
		if _, err := io.Copy(io.Discard, stdin); err != nil { // options, which come with the task again
			return fmt.Errorf("read options: %w", err)
		}
		url, err := boot.Start(g, *id, *bundle, server)
		if err != nil {
			return err
		}
		_, err = io.WriteString(stdout, url)
		return err
	case "delete":
		exit, err := boot.Delete(g, *id, *bundle)
		if errors.Is(err, boot.ErrNotDone) {
			if err := g.Bury(); err != nil { // containerd has it in its log
				fmt.Fprintln(os.Stderr, "containerd-shim-faasdsec-v1:", err)
			}
			server.Args = []string{self, "-bundle", *bundle, "cleanup"}
			return server.Execute()
		}
		if err != nil {
			return err
		}
		return boot.WriteExit(stdout, exit)
	default:
		return fmt.Errorf("unknown command %q: want start or delete", command)
	}
}

// environment is what the server needs of ours.
func environment(env []string) []string {
	var out []string
	for _, kv := range env {
		if strings.HasPrefix(kv, "TTRPC_ADDRESS=") || strings.HasPrefix(kv, "PATH=") {
			out = append(out, kv)
		}
	}
	return out
}
