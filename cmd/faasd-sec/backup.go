package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/emmansun/gmsm/sm3"
	"github.com/spf13/cobra"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/backup"
	"github.com/faasd-sec/faasd-sec/enrol"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// A sealed archive is a message of the bundle role (docs/envelope.md) for this
// name and context, which no function's bundle has.
const archiveName = "backup.faasd-sec"

func archiveContext() sealed.Digest { return sealed.Digest(sm3.Sum([]byte("faasd-sec/v1 backup"))) }

// archiveLife is how long a sealed archive may lie before it is opened.
const archiveLife = 10 * 365 * 24 * time.Hour

// dirFlags adds where an archive's parts are on this machine.
func dirFlags(cmd *cobra.Command) *backup.Dirs {
	d := &backup.Dirs{}
	f := cmd.Flags()
	f.StringVar(&d.Coordinator, "state", "/var/lib/faasd-sec/coordinator", "the coordinator's state directory")
	f.StringVar(&d.KeyBroker, "keybroker", "/var/lib/faasd-sec/keybroker", "the key broker's state directory; empty leaves it out")
	f.StringVar(&d.Opener, "manifest-opener", "", "the manifest opener's state directory; empty leaves it out")
	return d
}

func (a *app) backupCommand() *cobra.Command {
	var to string
	cmd := &cobra.Command{
		Use: "backup FILE", Short: "Archive a running cluster: store, registry, authority, the key broker's vault", Args: usageArgs(cobra.ExactArgs(1)),
		Long: `Writes all that a cluster cannot do without into one file, while it runs; on the
machine of a coordinator, as a user who may read its state. With --to the file is
sealed to that key and signed by your identity. Without, it has mode 0600 and holds
the key of the cluster's certificate authority in clear: keep it as you keep that.`,
		Example: "  sudo faasd-sec backup --to 04c1… /backups/cluster.fsb\n  sudo faasd-sec backup /backups/cluster.tar",
	}
	cmd.Flags().StringVar(&to, "to", "", "public decryption key of whom may restore it, as faasd-sec key list -o json shows it")
	d := dirFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		err := create(args[0], func(w io.Writer) error { return a.archive(cmd.Context(), w, *d, to) })
		if err == nil && to == "" {
			a.notef("%s holds the cluster's authority in clear; seal it with --to, or keep it safe", args[0])
		}
		return err
	}
	return cmd
}

// archive writes an archive, sealed if there is somebody to seal it to.
func (a *app) archive(ctx context.Context, w io.Writer, d backup.Dirs, to string) error {
	for flag, dir := range map[string]string{"--keybroker": d.KeyBroker, "--manifest-opener": d.Opener} {
		if _, err := os.Stat(dir); dir != "" && err != nil {
			return &api.Error{Code: api.CodeInvalid, Field: flag, Err: err, Message: "cannot archive it", Remedy: `name the directory, or give "" to leave it out`}
		}
	}
	snapshot := func(ctx context.Context, w io.Writer) error { return enrol.RequestSnapshot(ctx, d.Coordinator, w) }
	if to == "" {
		return backup.Write(ctx, w, d, snapshot)
	}
	key, err := sealed.ParsePublicKeyText(to)
	if err != nil {
		return api.Invalid("--to", "give the decryption key that faasd-sec key list -o json shows", err.Error())
	}
	id, pass, err := a.loadIdentity()
	if err != nil {
		return err
	}
	clear(pass)
	now := time.Now()
	g, err := sealed.NewGrant(sealed.GrantParams{Role: sealed.RoleBundle, Recipient: key, Sender: id.Signer(),
		Context: archiveContext(), Name: archiveName, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(archiveLife)})
	if err != nil {
		return fmt.Errorf("seal the archive: %w", err)
	}
	defer g.Release()
	out, err := g.Seal(w, sealed.MessageParams{Issued: now})
	if err != nil {
		return fmt.Errorf("seal the archive: %w", err)
	}
	defer out.Abort()
	if err := backup.Write(ctx, out, d, snapshot); err != nil {
		return err
	}
	return out.Close()
}

// create places an archive.
func create(path string, fill func(io.Writer) error) error {
	err := place(path, fill)
	_, at := err.(*fs.PathError) // of the file itself: what fill says is wrapped
	switch {
	case errors.Is(err, fs.ErrExist):
		return &api.Error{Code: api.CodeConflict, Field: "FILE", Message: path + " is there already", Remedy: "choose another name, or remove it"}
	case at:
		return &api.Error{Code: api.CodeInvalid, Field: "FILE", Err: err, Message: "cannot write the archive", Remedy: "choose a directory that is there, may be written and has room"}
	}
	return err
}
