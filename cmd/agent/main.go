// Command agent is PID 1 of every sandbox; see package agent. The same binary
// is the launcher (agent/launcher) when it is started as "agent launcher".
//
// It takes no configuration but the environment that agent.RequiredEnv lists:
// everything else comes from the function's signed descriptor.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"

	"github.com/faasd-sec/faasd-sec/agent"
	"github.com/faasd-sec/faasd-sec/agent/launcher"
	"github.com/faasd-sec/faasd-sec/api"
)

// version is set by the linker.
var version = "dev"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	switch {
	case len(args) == 0:
		return serve(self)
	case args[0] == "launcher":
		return launcher.Main(false)
	case args[0] == "blank-launcher":
		return launcher.Main(true, api.AgentRunDir)
	case args[0] == "version":
		fmt.Println(version)
		return nil
	}
	return fmt.Errorf("unknown argument %q: the agent is started by a node", args[0])
}

func serve(self string) error {
	// gmsm has chosen its code paths before main began, so the variable must be
	// there when the binary starts.
	if os.Getenv(agent.EnvSM4) != "1" {
		return syscall.Exec(self, os.Args, append(os.Environ(), agent.EnvSM4+"=1"))
	}
	command, err := launch(self)
	if err != nil {
		return err
	}
	var keep []uintptr
	if command.Blank {
		keep = launcher.BlankCapabilities()
	}
	// The sandbox's processors are the function's: the agent takes half of them
	// at most once it serves. One that is alone wakes no others, which saves a
	// third of the CPU time of a small call. Until then there are two: one opens
	// keys, the other starts the function.
	runtime.GOMAXPROCS(min(2, runtime.NumCPU()))
	if err := agent.Harden(keep...); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	forward := make(chan os.Signal, 4)
	signal.Notify(forward, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(forward)

	cfg := agent.DefaultConfig()
	cfg.Version, cfg.Signals = version, forward
	cfg.ReapAll = os.Getpid() == 1
	cfg.Confine = agent.Confine
	cfg.Rest = debug.FreeOSMemory
	cfg.Processors = func(cpu uint64) {
		runtime.GOMAXPROCS(max(1, min(runtime.NumCPU(), int(min(cpu, 1<<20))/2000)))
	}
	cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	cfg.Launcher = command
	return agent.Run(ctx, cfg)
}

// launch is the launcher that the environment asks for: a function's, or one
// that waits for its function.
func launch(self string) (launcher.Command, error) {
	c := launcher.Command{Path: self, Args: []string{"launcher"}, Env: []string{"GOMAXPROCS=1", "GOGC=50"}}
	if os.Getenv(api.EnvBlank) == "1" {
		c.Blank, c.Args = true, []string{"blank-launcher"}
		return c, nil
	}
	var err error
	if c.UID, err = id(agent.EnvUID); err != nil {
		return c, err
	}
	c.GID, err = id(agent.EnvGID)
	return c, err
}

// id reads a user or group id, which must not be root's.
func id(name string) (int, error) {
	v, ok := os.LookupEnv(name)
	if !ok {
		return 0, fmt.Errorf("%s is not set", name)
	}
	n, err := strconv.ParseUint(v, 10, 31)
	if err != nil {
		return 0, fmt.Errorf("%s=%q is not an id", name, v)
	}
	if n == 0 {
		return 0, errors.New(name + " is 0: a function never runs as root")
	}
	return int(n), nil
}
