package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/backup"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

func (a *app) restoreCommand() *cobra.Command {
	var from string
	cmd := &cobra.Command{
		Use: "restore FILE", Short: "Make a coordinator of an archive of faasd-sec backup", Args: usageArgs(cobra.ExactArgs(1)),
		Long: `Writes the state directories of a coordinator, and of a key broker if the archive
has one, each of which must be empty. The store is a new one with this coordinator
as its only member; others join it anew. Nodes find it where the old one was.
A sealed archive is opened with your identity.`,
		Example: "  sudo faasd-sec restore /backups/cluster.fsb",
	}
	cmd.Flags().StringVar(&from, "from", "", "fingerprint of the identity that made a sealed archive (default: yours)")
	d := dirFlags(cmd)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		f, err := os.Open(args[0])
		if err != nil {
			return api.Invalid("FILE", "name an archive of faasd-sec backup", err.Error())
		}
		defer f.Close()
		r, done, err := a.unsealed(bufio.NewReader(f), from)
		if err != nil {
			return err
		}
		defer done()
		cluster, err := backup.Read(r, *d, slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
		if err != nil {
			return archiveError(err)
		}
		fmt.Fprintf(a.stdout, "restored     cluster %s\nstart with   coordinator -state %s   (addresses as before)\n", cluster, d.Coordinator)
		return nil
	}
	return cmd
}

// archiveError names the archive where nothing else is at fault.
func archiveError(err error) error {
	code := api.Code(sealed.CodeOf(err)) // of one that was sealed and does not open to its end
	if code == "" && api.CodeOf(err) != api.CodeInternal {
		return err
	}
	if code == "" {
		code = api.CodeInvalid
	}
	return &api.Error{Code: code, Field: "FILE", Err: err, Message: "the archive was not restored", Remedy: "if it is damaged, cut, or no archive, use another one"}
}

// tarMagic is at offset 257 of an archive that is not sealed.
const tarMagicAt, tarMagic = 257, "ustar"

// unsealed opens an archive that was sealed, and passes on one that was not, unless
// its maker is named: that nobody signed could be anybody's.
func (a *app) unsealed(f *bufio.Reader, from string) (_ io.Reader, done func(), err error) {
	var maker sealed.Fingerprint
	if from != "" {
		if maker, err = sealed.ParseFingerprint(from); err != nil {
			return nil, nil, api.Invalid("--from", "give 64 hex digits as faasd-sec key list shows them", err.Error())
		}
	}
	if head, err := f.Peek(tarMagicAt + len(tarMagic)); err == nil && bytes.Equal(head[tarMagicAt:], []byte(tarMagic)) {
		if from != "" {
			return nil, nil, &api.Error{Code: api.CodeForbidden, Field: "FILE", Message: "the archive is not sealed: nothing says who made it",
				Remedy: "look for the one that was sealed; without --from it is restored as it is"}
		}
		return f, func() {}, nil
	}
	id, pass, err := a.loadIdentity()
	if err != nil {
		return nil, nil, err
	}
	clear(pass)
	senders := unseal.Only(id.SigningKey())
	if from != "" {
		senders = unseal.OnlyFingerprint(maker)
	}
	keys, err := unseal.NewKeySet(unseal.Key{Decrypter: id.Decrypter()})
	if err != nil {
		return nil, nil, fmt.Errorf("open the archive: %w", err)
	}
	opener, err := unseal.NewOpener(unseal.Config{Keys: keys})
	if err != nil {
		return nil, nil, fmt.Errorf("open the archive: %w", err)
	}
	msg, err := opener.Open(f, unseal.Expect{Role: sealed.RoleBundle, Name: archiveName, Context: archiveContext(), Senders: senders})
	if err != nil {
		return nil, nil, &api.Error{Code: api.CodeInvalid, Field: "FILE", Err: err, Message: "the archive is not for this identity, not by that maker, or damaged",
			Remedy: "choose with --identity, and name its maker with --from"}
	}
	r, err := msg.Stream()
	if err != nil {
		return nil, nil, fmt.Errorf("open the archive: %w", err)
	}
	return r, func() { msg.Close() }, nil
}
