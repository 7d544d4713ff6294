package openfaas

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/faasd-sec/faasd-sec/api"
)

// Files of the credentials, as OpenFaaS names them.
const (
	UserFile     = "basic-auth-user"
	PasswordFile = "basic-auth-password"
)

// maxCredential bounds a file of credentials in bytes.
const maxCredential = 4 << 10

// Credentials are the operator's, as digests.
type Credentials struct {
	user, password [sha256.Size]byte
}

// LoadCredentials reads user and password from files of a directory. White space
// around them is not part of them.
func LoadCredentials(dir string) (*Credentials, error) {
	c := &Credentials{}
	for _, f := range []struct {
		name string
		to   *[sha256.Size]byte
	}{{UserFile, &c.user}, {PasswordFile, &c.password}} {
		path := filepath.Join(dir, f.name)
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, &api.Error{Code: api.CodeInvalid, Field: f.name, Err: err, Message: "cannot read " + path,
				Remedy: "put user and password into " + UserFile + " and " + PasswordFile + " of that directory"}
		}
		text := strings.TrimSpace(string(b))
		clear(b)
		if text == "" || len(text) > maxCredential {
			return nil, api.Invalid(f.name, "write one line of at most 4096 bytes", path+" is empty or too long")
		}
		*f.to = sha256.Sum256([]byte(text))
	}
	return c, nil
}

// match compares without telling by its time how much was right.
func (c *Credentials) match(user, password string) bool {
	u, p := sha256.Sum256([]byte(user)), sha256.Sum256([]byte(password))
	return subtle.ConstantTimeCompare(u[:], c.user[:])&subtle.ConstantTimeCompare(p[:], c.password[:]) == 1
}

// EnsureCredentials makes the files in a directory where they are missing: the
// user "admin" with a password of 256 random bits. Only this user can read them.
func EnsureCredentials(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("credentials: %w", err)
	}
	var raw [32]byte
	_, _ = rand.Read(raw[:]) // never fails
	for name, text := range map[string]string{UserFile: "admin", PasswordFile: hex.EncodeToString(raw[:])} {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil {
			continue
		} else if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("credentials: %w", err)
		}
		if err := writeNew(path, text); err != nil {
			return fmt.Errorf("credentials: %w", err)
		}
	}
	return nil
}

// writeNew makes a file whole or not at all.
func writeNew(path, text string) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		err = errors.Join(err, os.Remove(f.Name()))
	}
	return err
}
