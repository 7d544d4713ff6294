package main

import (
	"bytes"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

func (a *app) keyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "key", Short: "Make, show and exchange keys, and pin those of others", Args: unknownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(a.keyNew(), a.keyList(), a.keyShow(), a.keyExport(), a.keyImport(), a.keyTrust())
	return cmd
}

// keyView is how an identity is shown; everything in it is public.
type keyView struct {
	Name        string             `json:"name"`
	Fingerprint sealed.Fingerprint `json:"fingerprint"` // of the signing key: how policies name its holder
	Signing     sealed.PublicKey   `json:"signing"`
	Decryption  sealed.PublicKey   `json:"decryption"`
}

func (a *app) printKey(v keyView) error {
	if a.json() {
		return a.printJSON(v)
	}
	fmt.Fprintf(a.stdout, "name:        %s\nfingerprint: %s\nsigning:     %s\ndecryption:  %s\n", v.Name, v.Fingerprint, v.Signing, v.Decryption)
	return nil
}

func viewOf(name string, id *unseal.Identity) keyView {
	return keyView{Name: name, Fingerprint: id.SigningKey().Fingerprint(), Signing: id.SigningKey(), Decryption: id.DecryptionKey()}
}

// named takes the identity's name from an argument, else from --identity.
func (a *app) named(args []string) string {
	if len(args) > 0 {
		a.identity = args[0]
	}
	return a.identity
}

func (a *app) keyNew() *cobra.Command {
	var loose bool
	cmd := &cobra.Command{Use: "new [NAME]", Short: "Make an identity: a signing and a decryption key", Args: usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			id, err := unseal.NewIdentity(rand.Reader)
			if err != nil {
				return err
			}
			return a.saveIdentity(a.named(args), id, loose)
		}}
	cmd.Flags().BoolVar(&loose, "no-passphrase", false, "keep a drawn passphrase beside the keys: whoever reads your files has them")
	return cmd
}

func (a *app) saveIdentity(name string, id *unseal.Identity, loose bool) error {
	store, err := a.keystore()
	if err != nil {
		return err
	}
	if _, _, err := store.Public(name); err == nil {
		return exists(name)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return &api.Error{Code: api.CodeInvalid, Field: "NAME", Err: err, Message: "the identity cannot be kept under this name",
			Remedy: "use 1 to 64 letters, digits, and - _ . @ inside"}
	}
	pass, err := a.newPassphrase(name, loose)
	if err != nil {
		return err
	}
	defer clear(pass)
	if err := store.Save(name, id, pass, unseal.KeyFileOptions{}); errors.Is(err, fs.ErrExist) {
		return exists(name)
	} else if err != nil {
		return err
	}
	return a.printKey(viewOf(name, id))
}

func exists(name string) error {
	return &api.Error{Code: api.CodeConflict, Field: "identity", Message: fmt.Sprintf("an identity %q is there already", name),
		Remedy: "choose another name; keys are never overwritten"}
}

func (a *app) newPassphrase(name string, loose bool) ([]byte, error) {
	if loose {
		return a.loosePassphrase(name)
	}
	pass, err := a.passphrase("Passphrase for the new identity "+name, true)
	if err == nil && len(pass) < 8 {
		return nil, api.Invalid("passphrase", "choose a longer one, or --no-passphrase", fmt.Sprintf("%d characters, at least 8 are wanted", len(pass)))
	}
	return pass, err
}

func (a *app) keyList() *cobra.Command {
	return &cobra.Command{Use: "list", Short: "List the identities", Args: usageArgs(cobra.NoArgs), RunE: func(*cobra.Command, []string) error {
		store, err := a.keystore()
		if err != nil {
			return err
		}
		names, err := store.List()
		if err != nil {
			return err
		}
		views := make([]keyView, 0, len(names))
		for _, n := range names {
			sign, dec, err := store.Public(n)
			if err != nil {
				return err
			}
			views = append(views, keyView{Name: n, Fingerprint: sign.Fingerprint(), Signing: sign, Decryption: dec})
		}
		if a.json() {
			return a.printJSON(views)
		}
		t := newTable("NAME", "FINGERPRINT")
		for _, v := range views {
			t.row(v.Name, v.Fingerprint.String())
		}
		return t.print(a.stdout)
	}}
}

func (a *app) keyShow() *cobra.Command {
	return &cobra.Command{Use: "show [NAME]", Short: "Show an identity's fingerprint and public keys", Args: usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			name := a.named(args)
			store, err := a.keystore()
			if err != nil {
				return err
			}
			sign, dec, err := store.Public(name)
			if err != nil {
				return a.identityError(err)
			}
			return a.printKey(keyView{Name: name, Fingerprint: sign.Fingerprint(), Signing: sign, Decryption: dec})
		}}
}

func (a *app) keyExport() *cobra.Command {
	var prf, passFile string
	cmd := &cobra.Command{Use: "export [NAME]", Short: "Print an identity's two private keys as encrypted PKCS#8 PEM",
		Long: "Print an identity's two private keys, signing key first, as PKCS#8 in PEM, encrypted with\n" +
			"SM4-CBC under PBKDF2. They are encrypted under the identity's own passphrase, or under the one in\n" +
			"--export-passphrase-file. Readers without HMAC-SM3, such as OpenSSL, take --prf sha256.",
		Args: usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			a.named(args)
			if prf != string(unseal.PRFSM3) && prf != string(unseal.PRFSHA256) {
				return api.Invalid("--prf", "write sm3 or sha256", fmt.Sprintf("%q is not known", prf))
			}
			id, pass, err := a.loadIdentity()
			if err != nil {
				return err
			}
			if passFile != "" {
				if pass, err = readSecretFile("--export-passphrase-file", passFile); err != nil {
					return err
				}
			} else if _, err := os.Stat(a.loosePath(a.identity)); err == nil {
				return api.Invalid("--export-passphrase-file", "give a file with a passphrase for the export", "the identity has no passphrase of its own")
			}
			defer clear(pass)
			for _, k := range []*unseal.PrivateKey{id.Signer(), id.Decrypter()} {
				b, err := unseal.EncodeKey(k, pass, unseal.KeyFileOptions{PRF: unseal.PRF(prf)})
				if err != nil {
					return err
				}
				if _, err := a.stdout.Write(b); err != nil {
					return fmt.Errorf("write the keys: %w", err)
				}
			}
			return nil
		}}
	cmd.Flags().StringVar(&prf, "prf", string(unseal.PRFSM3), "hash under PBKDF2: sm3 or sha256")
	cmd.Flags().StringVar(&passFile, "export-passphrase-file", "", "file with another passphrase for the export")
	return cmd
}

func (a *app) keyImport() *cobra.Command {
	var loose bool
	var passFile string
	cmd := &cobra.Command{Use: "import NAME [FILE]", Short: "Take in what key export printed, from a file or standard input", Args: usageArgs(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := a.input(cmd.Context())
			if len(args) == 2 && args[1] != "-" {
				f, err := os.Open(args[1])
				if err != nil {
					return &api.Error{Code: api.CodeInvalid, Field: "FILE", Err: err, Message: "cannot read the keys", Remedy: "give what key export printed"}
				}
				defer f.Close()
				in = f
			}
			b, err := io.ReadAll(io.LimitReader(in, 64<<10))
			if err != nil {
				return fmt.Errorf("read the keys: %w", err)
			}
			a.identity = args[0]
			pass, err := a.importPassphrase(passFile)
			if err != nil {
				return err
			}
			id, err := a.decodeIdentity(b, pass)
			clear(pass)
			if err != nil {
				return err
			}
			return a.saveIdentity(args[0], id, loose)
		}}
	cmd.Flags().BoolVar(&loose, "no-passphrase", false, "keep a drawn passphrase beside the keys")
	cmd.Flags().StringVar(&passFile, "import-passphrase-file", "", "file with the passphrase of the import, if it is not the identity's own")
	return cmd
}

func (a *app) importPassphrase(file string) ([]byte, error) {
	if file != "" {
		return readSecretFile("--import-passphrase-file", file)
	}
	return a.passphrase("Passphrase of the import", false)
}

func (a *app) decodeIdentity(b, pass []byte) (*unseal.Identity, error) {
	var keys []*unseal.PrivateKey
	for {
		block, rest := pem.Decode(b)
		if block == nil {
			break
		}
		k, err := unseal.DecodeKey(pem.EncodeToMemory(block), pass)
		if errors.Is(err, unseal.ErrPassphrase) {
			return nil, a.identityError(err)
		} else if err != nil {
			return nil, &api.Error{Code: api.CodeInvalid, Field: "FILE", Err: err, Message: "cannot read the keys", Remedy: "give what key export printed"}
		}
		keys, b = append(keys, k), rest
	}
	if len(keys) != 2 || len(bytes.TrimSpace(b)) != 0 {
		return nil, api.Invalid("FILE", "give the signing key and then the decryption key, as key export prints them",
			fmt.Sprintf("%d encrypted private keys in PEM, want two and nothing else", len(keys)))
	}
	id, err := unseal.IdentityOf(keys[0], keys[1])
	if err != nil {
		return nil, api.Wrap(api.CodeInvalid, err, "the two keys do not make an identity")
	}
	return id, nil
}
