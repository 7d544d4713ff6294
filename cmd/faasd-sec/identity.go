package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/term"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

func (a *app) keystore() (*unseal.Keystore, error) {
	return unseal.OpenKeystore(filepath.Join(a.configDir, "identities"))
}

// loosePath is where the passphrase of an identity made with --no-passphrase
// lies, beside the keys.
func (a *app) loosePath(name string) string {
	return filepath.Join(a.configDir, "identities", name+".passphrase")
}

// loadIdentity opens the chosen identity and returns its passphrase too, under
// which the keys of its functions are kept.
func (a *app) loadIdentity() (*unseal.Identity, []byte, error) {
	store, err := a.keystore()
	if err != nil {
		return nil, nil, err
	}
	// Before anybody is asked for a passphrase.
	if _, _, err := store.Public(a.identity); err != nil {
		return nil, nil, a.identityError(err)
	}
	pass, err := a.passphrase("Passphrase of identity "+a.identity, false)
	if err != nil {
		return nil, nil, err
	}
	id, err := store.Load(a.identity, pass)
	if err != nil {
		return nil, nil, a.identityError(err)
	}
	return id, pass, nil
}

func (a *app) identityError(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		remedy := "make it with: faasd-sec key new"
		if a.identity != defaultIdentity {
			remedy += " " + a.identity
		}
		return &api.Error{Code: api.CodeNotFound, Field: "identity", Message: fmt.Sprintf("there is no identity %q in %s", a.identity, a.configDir), Remedy: remedy}
	case errors.Is(err, unseal.ErrPassphrase):
		return &api.Error{Code: api.CodeUnauthorized, Field: "passphrase", Message: fmt.Sprintf("wrong passphrase for identity %q", a.identity),
			Remedy: "try again, or check --passphrase-file and " + envPassphrase, Err: err}
	}
	return &api.Error{Code: api.CodeInvalid, Field: "identity", Err: err, Message: fmt.Sprintf("cannot use identity %q", a.identity),
		Remedy: "give a name that faasd-sec key list shows, and check that its files are as they were"}
}

// passphrase takes the first source there is: the file of --passphrase-file, the
// environment, what --no-passphrase left beside the keys, a person at a terminal.
// A source that was named and fails is an error, never a reason to try the next.
func (a *app) passphrase(prompt string, fresh bool) ([]byte, error) {
	if a.passphraseFile != "" {
		return readSecretFile("--passphrase-file", a.passphraseFile)
	}
	if p, ok := a.lookupEnv(envPassphrase); ok {
		if p == "" {
			return nil, api.Invalid(envPassphrase, "unset it or give a passphrase", "it is empty")
		}
		return []byte(p), nil
	}
	if !fresh {
		b, err := readSecretFile("identity", a.loosePath(a.identity))
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return b, err
		}
	}
	return a.ask(prompt, fresh)
}

// ask reads a passphrase without echo, twice for a new one.
func (a *app) ask(prompt string, twice bool) ([]byte, error) {
	in, ok := terminal(a.stdin)
	if !ok {
		if _, screen := terminal(a.stderr); screen { // data is piped in, but there is a person
			tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
			if err == nil {
				defer tty.Close()
				in, ok = tty, true
			}
		}
	}
	if !ok {
		remedy := "set " + envPassphrase + " or give --passphrase-file"
		if twice {
			remedy += ", or choose --no-passphrase"
		}
		return nil, api.Invalid("passphrase", remedy, "a passphrase is needed and there is no terminal to ask on")
	}
	read := func(label string) ([]byte, error) { return a.readHidden(in, label) }
	first, err := read(prompt)
	if err != nil || !twice {
		return first, err
	}
	again, err := read("The same again")
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(first, again) {
		return nil, api.Invalid("passphrase", "type it again", "the two do not match")
	}
	return first, nil
}

// readHidden reads a line without echo. An interrupt ends it and gives the
// terminal its echo back; the read itself then lasts until the process ends.
func (a *app) readHidden(in *os.File, label string) ([]byte, error) {
	fd := int(in.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return nil, fmt.Errorf("read the passphrase: %w", err)
	}
	fmt.Fprintf(a.stderr, "%s: ", label)
	defer fmt.Fprintln(a.stderr)
	type answer struct {
		line []byte
		err  error
	}
	got := make(chan answer, 1)
	go func() {
		b, err := term.ReadPassword(fd)
		got <- answer{b, err}
	}()
	select {
	case r := <-got:
		if r.err != nil {
			return nil, fmt.Errorf("read the passphrase: %w", r.err)
		}
		return r.line, nil
	case <-a.interrupted:
		return nil, errors.Join(context.Canceled, term.Restore(fd, before))
	}
}

// maxSecretFile bounds a passphrase or token, in bytes.
const maxSecretFile = 64 << 10

// readSecretFile reads one line that nobody else may read.
func readSecretFile(field, path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, &api.Error{Code: api.CodeInvalid, Field: field, Err: err, Message: "cannot read the passphrase", Remedy: "check the path and its permissions"}
	}
	if info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0 {
		return nil, api.Invalid(field, "chmod 600 "+path, fmt.Sprintf("%s has mode %04o: others can read it", path, info.Mode().Perm()))
	}
	b, err := readAtMost(path, maxSecretFile)
	if err != nil {
		return nil, &api.Error{Code: api.CodeInvalid, Field: field, Err: err, Message: "cannot read it", Remedy: "name a file with one line"}
	}
	b = bytes.TrimRight(b, "\r\n")
	if len(b) == 0 {
		return nil, api.Invalid(field, "write the passphrase into it", path+" is empty")
	}
	return b, nil
}

// loosePassphrase draws a passphrase and leaves it beside the keys, mode 0600. One
// that lies there, left by who was interrupted before the keys were kept, is taken.
func (a *app) loosePassphrase(name string) ([]byte, error) {
	var raw [24]byte
	if _, err := rand.Read(raw[:]); err != nil {
		return nil, fmt.Errorf("draw a passphrase: %w", err)
	}
	pass := []byte(hex.EncodeToString(raw[:]))
	path := a.loosePath(name)
	err := place(path, func(w io.Writer) error { _, err := w.Write(append(pass, '\n')); return err })
	if errors.Is(err, fs.ErrExist) {
		return readSecretFile("identity", path)
	} else if err != nil {
		return nil, fmt.Errorf("keep the passphrase: %w", err)
	}
	return pass, nil
}

// keysDir holds the keys of the functions that the chosen identity deployed.
func (a *app) keysDir() string { return filepath.Join(a.configDir, "functions", a.identity) }

// connect makes a client for a gateway; anonymous ones need no identity.
func (a *app) connect(gateway string, id *unseal.Identity) (*client.Client, error) {
	pins, err := client.OpenPins(a.configDir)
	if err != nil {
		return nil, err
	}
	return a.connectBy(pins, gateway, id)
}

// connectBy is connect with pins that several clients share.
func (a *app) connectBy(pins *client.Pins, gateway string, id *unseal.Identity) (*client.Client, error) {
	var others []string
	if gateway == a.gatewayURL("") {
		others = a.otherGateways("")
	}
	return client.New(client.Config{Gateway: gateway, Others: others, Resend: a.resend, Identity: id, Pins: pins, TrustOnFirstUse: a.trustFirstUse, Via: a.via})
}

// anonymous is a client for what the gateway tells everybody.
func (a *app) anonymous() (*client.Client, error) { return a.connect(a.gatewayURL(""), nil) }

// personal is a client that acts as the chosen identity.
func (a *app) personal() (*client.Client, error) {
	c, pass, err := a.unlocked()
	clear(pass)
	return c, err
}

// owning is personal with the keys of the identity's functions.
func (a *app) owning() (*client.Client, *client.Keyring, error) {
	c, pass, err := a.unlocked()
	if err != nil {
		return nil, nil, err
	}
	return c, client.NewKeyring(a.keysDir(), pass, rand.Reader), nil
}

func (a *app) unlocked() (*client.Client, []byte, error) {
	id, pass, err := a.loadIdentity()
	if err != nil {
		return nil, nil, err
	}
	c, err := a.connect(a.gatewayURL(""), id)
	return c, pass, err
}
