package anomaly

import (
	"bytes"
	"crypto"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/emmansun/gmsm/pkcs8"
	"github.com/emmansun/gmsm/sm2"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

const keyPEM = "PRIVATE KEY"

// OpenKey loads the SM2 key that signs a log, or makes it where path does not
// exist, for daemons that hold no SM2 key otherwise: PKCS#8 in PEM, mode 0600,
// beside the daemon's other keys and as those in clear. The public key, which
// Verify wants, is written to path + ".pub".
func OpenKey(path string, random io.Reader) (crypto.Signer, error) {
	k, err := loadKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		k, err = makeKey(path, random)
	}
	if err != nil {
		return nil, err
	}
	pub, err := sealed.PublicKeyOf(k.Public())
	if err != nil {
		return nil, fmt.Errorf("anomaly: key %s: %w", path, err)
	}
	text := []byte(pub.String() + "\n")
	if have, err := os.ReadFile(path + ".pub"); err == nil && bytes.Equal(have, text) {
		return k, nil
	}
	if err := replaceFile(path+".pub", text, 0o644); err != nil {
		return nil, fmt.Errorf("anomaly: write the public key: %w", err)
	}
	return k, nil
}

func loadKey(path string) (*sm2.PrivateKey, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("anomaly: key: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, api.Invalid("key", "chmod 600 "+path, fmt.Sprintf("%s has mode %04o: others can read a private key", path, st.Mode().Perm()))
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("anomaly: key: %w", err)
	}
	defer clear(b)
	block, rest := pem.Decode(b)
	if block == nil || block.Type != keyPEM || len(bytes.TrimSpace(rest)) != 0 {
		return nil, fmt.Errorf("anomaly: key %s: it is not one private key in PEM", path)
	}
	defer clear(block.Bytes)
	k, err := pkcs8.ParsePKCS8PrivateKeySM2(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("anomaly: key %s: it is not an SM2 key in PKCS#8", path)
	}
	return k, nil
}

func makeKey(path string, random io.Reader) (*sm2.PrivateKey, error) {
	k, err := sm2.GenerateKey(random)
	if err != nil {
		return nil, fmt.Errorf("anomaly: draw a key: %w", err)
	}
	der, err := pkcs8.MarshalPrivateKey(k, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("anomaly: encode the key: %w", err)
	}
	defer clear(der)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("anomaly: key: %w", err)
	}
	b := pem.EncodeToMemory(&pem.Block{Type: keyPEM, Bytes: der})
	defer clear(b)
	if err := replaceFile(path, b, 0o600); err != nil {
		return nil, fmt.Errorf("anomaly: write the key: %w", err)
	}
	return k, nil
}
