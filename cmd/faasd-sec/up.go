package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/coordinator/openfaas"
	"github.com/faasd-sec/faasd-sec/local"
)

// stopTimeout is how long `up` takes at most to leave nothing behind.
const stopTimeout = 90 * time.Second

// newUpCommand runs a whole cluster in the foreground. configDir is where the
// user's pins are.
func newUpCommand(configDir func() (string, error), stdout, stderr io.Writer) *cobra.Command {
	var cfg local.Config
	var verbose bool
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run a whole cluster on this machine, in the foreground",
		Long: `Runs a private containerd, a key broker, a coordinator and nodes on this machine,
each its own process, and prints "ready" with the gateway's URL once they serve.
Ctrl-C or SIGTERM ends them and leaves no process, mount, cgroup or socket. With
--state, what was deployed is there again the next time.`,
		Example: "  sudo faasd-sec up\n  sudo faasd-sec up --nodes 3 --state /var/lib/faasd-sec --listen 127.0.0.1:9000",
		Args:    usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			level := slog.LevelWarn
			if verbose {
				level = slog.LevelDebug
			}
			cfg.Log = slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
			if cfg.Bin == "" {
				self, err := os.Executable()
				if err != nil {
					return fmt.Errorf("find the binaries beside this one: %w", err)
				}
				cfg.Bin = filepath.Dir(self)
			}
			dir, err := configDir()
			if err != nil {
				return err
			}
			ctx, stop := foreground(cmd.Context())
			defer stop()
			return up(ctx, cfg, dir, stdout)
		},
	}
	f := cmd.Flags()
	f.IntVar(&cfg.Nodes, "nodes", 1, "how many nodes, each with its own state and containerd namespace")
	f.IntVar(&cfg.Coordinators, "coordinators", 1, "how many coordinators share one store: 1, 3, 5 or 7")
	f.StringVar(&cfg.State, "state", "", "directory that keeps everything (default: a temporary one, removed at the end)")
	f.StringVar(&cfg.Listen, "listen", "127.0.0.1:8080", "address of the gateway; port 0 chooses a free one")
	f.StringVar(&cfg.Containerd, "containerd", "", "socket of a containerd to use instead of a private one")
	f.StringVar(&cfg.CPU, "node-cpu", "", "CPU each node lends, such as 2 (default: all together four times the cores)")
	f.StringVar(&cfg.Memory, "node-memory", "", "memory each node lends, such as 2Gi (default: all together three quarters of the machine's)")
	f.DurationVar(&cfg.IdleAfter, "idle-after", 0, "stop sandboxes unused for so long, where the function does not say (default 5m)")
	f.StringVar(&cfg.Bin, "bin", "", "directory of coordinator, keybroker, node and agent (default: that of this binary)")
	f.BoolVarP(&verbose, "verbose", "v", false, "say more on standard error")
	return cmd
}

// up starts the cluster, says so, and stops it when ctx ends.
func up(ctx context.Context, cfg local.Config, configDir string, stdout io.Writer) (err error) {
	c, err := local.Start(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() {
		sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		if serr := c.Stop(sctx); serr != nil && err == nil {
			err = fmt.Errorf("clean up: %w", serr)
		}
	}()
	// The broker was started here, by this user: that is reason enough to
	// trust it with this user's keys.
	for _, gateway := range c.Gateways() {
		if err := client.PinBroker(configDir, gateway, c.Broker()); err != nil {
			return fmt.Errorf("pin the key broker: %w", err)
		}
		if err := client.PinOpener(configDir, gateway, c.ManifestKeys()); err != nil {
			return fmt.Errorf("pin the manifest opener: %w", err)
		}
	}
	var also strings.Builder
	for _, gateway := range c.Gateways()[1:] {
		fmt.Fprintf(&also, "also      %s\n", gateway)
	}
	_, err = fmt.Fprintf(stdout, "%sstate     %s\nnodes     %d (evidence: node-key, dev-untrusted)\npassword  %s (faas-cli login --password-stdin)\nready     %s\n",
		also.String(), c.State(), cfg.Nodes, filepath.Join(c.BasicAuth(), openfaas.PasswordFile), c.Gateway())
	if err != nil {
		return fmt.Errorf("say that the cluster is ready: %w", err)
	}
	return c.Wait(ctx)
}
