package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/faasd-sec/faasd-sec/api"
)

// Environment variables that flags default to.
const (
	envGateway    = "FAASD_SEC_GATEWAY"
	envOpenFaaS   = "OPENFAAS_URL" // what OpenFaaS users have set already
	envConfig     = "FAASD_SEC_CONFIG"
	envIdentity   = "FAASD_SEC_IDENTITY"
	envPassphrase = "FAASD_SEC_PASSPHRASE"
)

const (
	defaultGateway  = "http://127.0.0.1:8080"
	defaultIdentity = "default"
)

// app is one run of the command line: its streams, its environment and the flags
// that every command has.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	lookupEnv      func(string) (string, bool)
	interrupted    <-chan struct{} // closed when the run is to end

	gateway        string
	via            string // of invoke: a node's gateway
	resend         bool   // of invoke: at another coordinator too
	configDir      string
	identity       string
	output         string
	passphraseFile string
	trustFirstUse  bool
}

// run executes one command line and returns the process' exit code. It touches
// nothing of the process but what it is given, so that tests can call it.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, lookupEnv func(string) (string, bool)) int {
	out := &output{to: stdout}
	a := &app{stdin: stdin, stdout: out, stderr: stderr, lookupEnv: lookupEnv, interrupted: ctx.Done()}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(out)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		err = out.failed()
	}
	if err != nil {
		a.printError(err)
	}
	return exitCode(err)
}

// root lists every command; a new one is added here.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "faasd-sec",
		Short: "Functions whose operators never see what runs",
		Long: "faasd-sec deploys and invokes functions that are sealed to their owner and callers:\n" +
			"code, secrets, payloads, results and logs are opened only inside the function's own sandbox.",
		SuggestionsMinimumDistance: 2,
		SilenceErrors:              true,
		SilenceUsage:               true,
		Args:                       unknownCommand,
		RunE:                       func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usage(cmd, err) })
	f := root.PersistentFlags()
	f.StringVar(&a.gateway, "gateway", "", "URL of the cluster's gateway; of several coordinators all, the same one first, with commas (env "+envGateway+", "+envOpenFaaS+"; default "+defaultGateway+")")
	f.StringVar(&a.configDir, "config-dir", "", "directory of keys and pins (env "+envConfig+"; default the user's configuration directory)")
	f.StringVar(&a.identity, "identity", "", "name of the identity to act as (env "+envIdentity+"; default "+defaultIdentity+")")
	f.StringVarP(&a.output, "output", "o", "text", "how to print: text or json")
	f.StringVar(&a.passphraseFile, "passphrase-file", "", "file with the identity's passphrase (else env "+envPassphrase+", else it is asked for)")
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error { return a.settle() }
	if err := root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // the flag is defined above
	}
	root.AddCommand(a.asyncCommand(), a.scheduleCommand())
	root.AddCommand(a.scaleCommand(), a.rollbackCommand(), a.trafficCommand())
	root.AddCommand(a.keyCommand(), a.newCommand(), a.runCommand(), a.buildCommand(), a.deployCommand(), a.invokeCommand(), a.proxyCommand(), a.sbomCommand(), a.listCommand(), a.describeCommand(),
		a.logsCommand(), a.removeCommand(), a.tasksCommand(), a.nodesCommand(), a.topCommand(), a.auditCommand(), a.versionCommand(),
		newUpCommand(func() (string, error) { return a.configDir, nil }, a.stdout, a.stderr), newInitCommand(a.stdout), a.nodeCommand(),
		a.coordinatorCommand(), a.backupCommand(), a.restoreCommand(), a.manCommand())
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() == "completion" { // cobra's own prints its help for a shell that it does not know, as if that were the script
			cmd.Args, cmd.RunE = unknownCommand, func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
			for _, shell := range cmd.Commands() {
				shell.Args = usageArgs(cobra.NoArgs)
			}
		}
	}
	return root
}

// nodeCommand groups what makes this machine part of a cluster.
func (a *app) nodeCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "node", Short: "Make this machine part of a cluster", Args: unknownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	addEnrolment(cmd, a.stdout)
	return cmd
}

// unknownCommand tells what was perhaps meant.
func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	err := fmt.Errorf("unknown command %q", args[0])
	if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
		err = fmt.Errorf("%w: did you mean %q?", err, like[0])
	}
	return usage(cmd, err)
}

// settle fills what flags left open from the environment, and checks it.
func (a *app) settle() error {
	if a.output != "text" && a.output != "json" {
		return api.Invalid("--output", "write text or json", fmt.Sprintf("%q is not known", a.output))
	}
	a.identity = first(a.identity, a.env(envIdentity), defaultIdentity)
	if a.configDir = first(a.configDir, a.env(envConfig)); a.configDir == "" {
		base := a.env("XDG_CONFIG_HOME")
		if base == "" {
			home := a.env("HOME")
			if home == "" {
				return api.Invalid("--config-dir", "set "+envConfig+" or HOME", "there is no place for keys")
			}
			base = filepath.Join(home, ".config")
		}
		a.configDir = filepath.Join(base, "faasd-sec")
	}
	return nil
}

// gatewayURL resolves the gateway; file is what a function.yml says, if any. Of
// several it is the first, under which pins are kept.
func (a *app) gatewayURL(file string) string {
	gateway, _, _ := strings.Cut(a.gatewayURLs(file), ",")
	return gateway
}

// otherGateways are those of the cluster's other coordinators.
func (a *app) otherGateways(file string) []string {
	_, others, several := strings.Cut(a.gatewayURLs(file), ",")
	if !several {
		return nil
	}
	return strings.Split(others, ",")
}

func (a *app) gatewayURLs(file string) string {
	return first(a.gateway, a.env(envGateway), a.env(envOpenFaaS), file, defaultGateway)
}

func (a *app) env(name string) string { v, _ := a.lookupEnv(name); return v }

func (a *app) json() bool { return a.output == "json" }

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// terminal returns the file behind a stream if it is a terminal.
func terminal(stream any) (*os.File, bool) {
	if o, ok := stream.(*output); ok {
		stream = o.to
	}
	f, ok := stream.(*os.File)
	return f, ok && term.IsTerminal(int(f.Fd()))
}

// notef tells a person something on standard error.
func (a *app) notef(format string, args ...any) { fmt.Fprintf(a.stderr, format+"\n", args...) }

// trustFlag adds --trust-first-use.
func (a *app) trustFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&a.trustFirstUse, "trust-first-use", false,
		"pin an unknown owner or key broker instead of refusing; not for scripts")
}

// within bounds what a command does by its --timeout.
func within(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc, error) {
	if timeout <= 0 {
		return nil, nil, api.Invalid("--timeout", "give a time such as 30s", timeout.String()+" is no time to come")
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	return ctx, cancel, nil
}

// timeoutFlag adds --timeout and returns where its value will be.
func timeoutFlag(cmd *cobra.Command, def time.Duration) *time.Duration {
	return cmd.Flags().Duration("timeout", def, "give up after this long")
}
