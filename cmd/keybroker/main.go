// Command keybroker keeps function keys for their owners and releases them to
// attested sandboxes. It has flags and wiring only; see package keybroker.
package main

import (
	"bytes"
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
	"syscall"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/daemon/harden"
	"github.com/faasd-sec/faasd-sec/keybroker"
	"github.com/faasd-sec/faasd-sec/keybroker/daemon"
	"github.com/faasd-sec/faasd-sec/pki"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// Where a passphrase may come from, besides --passphrase-file.
const (
	passphraseEnv        = "FAASD_SEC_BROKER_PASSPHRASE"
	passphraseCredential = "keybroker-passphrase" // systemd LoadCredential=
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := harden.Undumpable()
	if err == nil {
		err = run(ctx, os.Args[1:], os.Getenv, os.Stderr)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

type options struct {
	listen, local, metrics, stateDir, tlsIdentity, passphraseFile string
	insecure                                                      bool
	owners                                                        fingerprints
	agents                                                        digests
	level                                                         slog.Level
}

func parse(args []string, out io.Writer) (options, error) {
	var o options
	f := flag.NewFlagSet("keybroker", flag.ContinueOnError)
	f.SetOutput(out)
	f.StringVar(&o.listen, "listen", "127.0.0.1:8084", "`address` of the mutual-TLS API")
	f.StringVar(&o.local, "local-socket", "", "unix `socket` of the same API for nodes on this machine, empty for none")
	f.StringVar(&o.metrics, "metrics-listen", "127.0.0.1:8085", "`address` of /healthz, /readyz and /metrics, empty for none")
	f.StringVar(&o.stateDir, "state-dir", "/var/lib/faasd-sec/keybroker", "`directory` of identity and vault")
	f.StringVar(&o.tlsIdentity, "tls-identity", "", "`file` with this broker's cluster certificate and key (default STATE-DIR/tls.pem)")
	f.StringVar(&o.passphraseFile, "passphrase-file", "", "`file` with the passphrase of the identity; else "+passphraseEnv+" or the systemd credential "+passphraseCredential)
	f.BoolVar(&o.insecure, "insecure-passphrase", false, "development only: keep a drawn passphrase beside the keys")
	f.Var(&o.owners, "allow-owner", "`fingerprint` of an owner who may deposit; repeat; none: everybody")
	f.Var(&o.agents, "allow-agent", "SM3 `digest` of an agent binary that may receive keys; repeat; none: all")
	f.TextVar(&o.level, "log-level", slog.LevelInfo, "DEBUG, INFO, WARN or ERROR")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if o.tlsIdentity == "" {
		o.tlsIdentity = filepath.Join(o.stateDir, "tls.pem")
	}
	return o, nil
}

func run(ctx context.Context, args []string, getenv func(string) string, stderr io.Writer) error {
	o, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	log := slog.New(slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: o.level}))
	id, err := pki.LoadIdentity(o.tlsIdentity, log)
	if err != nil {
		return err
	}
	pass, err := passphrase(o, getenv)
	if err != nil {
		return err
	}
	d, err := daemon.New(daemon.Config{Listen: o.listen, LocalSocket: o.local, MetricsListen: o.metrics, StateDir: o.stateDir, TLS: id,
		Passphrase: pass, Log: log, AllowedOwners: o.owners, AllowedAgents: o.agents})
	clear(pass)
	if err != nil {
		return err
	}
	return d.Run(ctx)
}

// passphrase takes the first source that was named; a named source that fails
// is an error, never a reason to try the next.
func passphrase(o options, getenv func(string) string) ([]byte, error) {
	identity := filepath.Join(o.stateDir, "identity")
	switch dir := getenv("CREDENTIALS_DIRECTORY"); {
	case o.insecure:
		return keybroker.InsecurePassphrase(identity, rand.Reader)
	case o.passphraseFile != "":
		return readPassphrase(o.passphraseFile)
	case getenv(passphraseEnv) != "":
		return []byte(getenv(passphraseEnv)), nil
	case dir != "":
		return readPassphrase(filepath.Join(dir, passphraseCredential))
	}
	return nil, api.Invalid("passphrase", "give --passphrase-file or "+passphraseEnv+", or for development --insecure-passphrase",
		"the broker's keys are encrypted and no passphrase was given")
}

func readPassphrase(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("passphrase: %w", err)
	}
	return bytes.TrimRight(b, "\r\n"), nil
}

type fingerprints []sealed.Fingerprint

func (f *fingerprints) String() string { return fmt.Sprint(*f) }
func (f *fingerprints) Set(s string) error {
	v, err := sealed.ParseFingerprint(s)
	*f = append(*f, v)
	return err
}

type digests []sealed.Digest

func (d *digests) String() string { return fmt.Sprint(*d) }
func (d *digests) Set(s string) error {
	v, err := sealed.ParseDigest(s)
	*d = append(*d, v)
	return err
}
