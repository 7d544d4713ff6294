// Command manifest-opener opens sealed manifests for a coordinator of the same
// machine. It has flags and wiring only; see package manifest/opener.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/daemon/harden"
	"github.com/faasd-sec/faasd-sec/manifest/opener"
)

// credential is where a passphrase comes from, besides -passphrase-file: systemd's
// LoadCredential=. Not the environment, which stays in memory.
const credential = "manifest-opener-passphrase"

// version is set by the linker.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := harden.Undumpable()
	if err == nil {
		err = run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

type options struct {
	socket, state, passphraseFile string
	insecure, swappable, version  bool
	keyLife                       time.Duration
	uids                          uids
	level                         slog.Level
	conns, opening                int
}

func parse(args []string, out io.Writer) (options, error) {
	var o options
	f := flag.NewFlagSet("manifest-opener", flag.ContinueOnError)
	f.SetOutput(out)
	f.StringVar(&o.socket, "socket", "/run/faasd-sec/manifest-opener/socket", "unix socket `path`; its directory is made with mode 0700")
	f.StringVar(&o.state, "state-dir", "/var/lib/faasd-sec/manifest-opener", "`directory` of the keys")
	f.StringVar(&o.passphraseFile, "passphrase-file", "", "`file` with the passphrase of the keys; else the systemd credential "+credential)
	f.BoolVar(&o.insecure, "insecure-passphrase", false, "development only: keep a drawn passphrase beside the keys")
	f.BoolVar(&o.swappable, "allow-swap", false, "development only: go on where memory cannot be locked")
	f.DurationVar(&o.keyLife, "key-life", opener.DefaultKeyLife, "`duration` that a manifest key lives; the next is drawn after half of it")
	f.Var(&o.uids, "allow-uid", "user `id` whose processes may ask; repeat; none: this process's own")
	f.IntVar(&o.conns, "max-conns", 64, "connections at once")
	f.IntVar(&o.opening, "max-opening", runtime.GOMAXPROCS(0), "calls worked on at once")
	f.TextVar(&o.level, "log-level", slog.LevelInfo, "DEBUG, INFO, WARN or ERROR")
	f.BoolVar(&o.version, "version", false, "print the version and exit")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	for _, n := range []struct {
		flag  string
		value int
	}{{"max-conns", o.conns}, {"max-opening", o.opening}} {
		if n.value < 1 {
			return o, api.Invalid(n.flag, "give 1 or more", fmt.Sprintf("with %d nobody could ask", n.value))
		}
	}
	return o, nil
}

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	o, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return nil
	case err != nil:
		return err
	case o.version:
		fmt.Fprintln(stdout, "manifest-opener", version)
		return nil
	}
	log := slog.New(slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: o.level}))
	if err := harden.Unswappable(); err != nil {
		if !o.swappable {
			return err
		}
		log.Warn("memory may be swapped out", "error", err)
	}
	pass, err := passphrase(o, getenv)
	if err != nil {
		return err
	}
	op, err := opener.New(opener.Config{StateDir: o.state, Passphrase: pass, KeyLife: o.keyLife, Random: rand.Reader, Clock: time.Now, Log: log})
	clear(pass)
	if err != nil {
		return err
	}
	ln, err := opener.Listen(o.socket)
	if err != nil {
		return errors.Join(err, op.Close())
	}
	cfg := opener.DefaultServerConfig(o.opening)
	cfg.Conns = o.conns
	if len(o.uids) > 0 {
		cfg.AllowedUIDs = o.uids
	}
	log.Info("manifest opener listens", "socket", o.socket, "erases", opener.Erases, "secret_memory", op.SecretMemory())
	return errors.Join(op.Serve(ctx, ln, cfg), op.Close())
}

// passphrase takes the first source that was named; one that fails is an error,
// never a reason to try the next.
func passphrase(o options, getenv func(string) string) ([]byte, error) {
	switch dir := getenv("CREDENTIALS_DIRECTORY"); {
	case o.insecure:
		return opener.InsecurePassphrase(o.state, rand.Reader)
	case o.passphraseFile != "":
		return opener.ReadPassphrase(o.passphraseFile)
	case dir != "":
		return opener.ReadPassphrase(filepath.Join(dir, credential))
	}
	return nil, api.Invalid("passphrase", "give -passphrase-file, or for development -insecure-passphrase",
		"the keys are encrypted and no passphrase was given")
}

type uids []int

func (u *uids) String() string { return fmt.Sprint(*u) }
func (u *uids) Set(s string) error {
	v, err := strconv.ParseUint(s, 10, 31)
	*u = append(*u, int(v))
	return err
}
