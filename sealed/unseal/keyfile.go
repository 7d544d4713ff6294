package unseal

import (
	"bytes"
	"crypto/rand"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/emmansun/gmsm/pkcs"
	"github.com/emmansun/gmsm/pkcs8"
)

// ErrPassphrase means that a key file did not open with the passphrase given.
var ErrPassphrase = errors.New("unseal: wrong passphrase")

// PRF is the hash under PBKDF2 in a key file.
type PRF string

// The PRFs.
const (
	PRFSM3    PRF = "sm3"
	PRFSHA256 PRF = "sha256" // for readers that know no HMAC-SM3, such as OpenSSL
)

// Bounds of PBKDF2 iterations. A file that asks for fewer protects too little; a
// file that asks for more would keep its reader busy for minutes.
const (
	MinIterations = 100_000
	MaxIterations = 10_000_000
)

const (
	pemType    = "ENCRYPTED PRIVATE KEY"
	maxKeyFile = 4096 // bytes
	saltSize   = 16
)

// KeyFileOptions say how a key file is encrypted. The zero value is SM3 and
// MinIterations.
type KeyFileOptions struct {
	PRF        PRF
	Iterations int
}

// EncodeKey returns a key file: PKCS#8 under PBES2 with PBKDF2 and SM4-CBC, in
// PEM. An empty passphrase is refused.
func EncodeKey(k *PrivateKey, passphrase []byte, opts KeyFileOptions) ([]byte, error) {
	if len(passphrase) == 0 {
		return nil, errors.New("unseal: key file: the passphrase is empty")
	}
	if opts.Iterations == 0 {
		opts.Iterations = MinIterations
	}
	if opts.Iterations < MinIterations || opts.Iterations > MaxIterations {
		return nil, fmt.Errorf("unseal: key file: iterations: %d, want %d..%d", opts.Iterations, MinIterations, MaxIterations)
	}
	hash := pkcs.SM3
	switch opts.PRF {
	case PRFSM3, "":
	case PRFSHA256:
		hash = pkcs.SHA256
	default:
		return nil, fmt.Errorf("unseal: key file: PRF %q is neither sm3 nor sha256", opts.PRF)
	}
	plain, err := pkcs8.MarshalPrivateKey(k.key, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("unseal: key file: %w", err)
	}
	defer clear(plain)
	enc := pkcs.NewPBESEncrypter(pkcs.SM4CBC, pkcs.NewPBKDF2Opts(hash, saltSize, opts.Iterations))
	alg, ct, err := enc.Encrypt(rand.Reader, passphrase, plain)
	if err != nil {
		return nil, fmt.Errorf("unseal: key file: encrypt: %w", err)
	}
	der, err := asn1.Marshal(encryptedKey{Algorithm: *alg, Data: ct})
	if err != nil {
		return nil, fmt.Errorf("unseal: key file: encode: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der}), nil
}

// encryptedKey is EncryptedPrivateKeyInfo of RFC 5958.
type encryptedKey struct {
	Algorithm pkix.AlgorithmIdentifier
	Data      []byte
}

type pbkdf2Params struct {
	Salt       []byte
	Iterations int
	KeyLength  int                      `asn1:"optional"`
	PRF        pkix.AlgorithmIdentifier `asn1:"optional"`
}

// DecodeKey opens a key file. ErrPassphrase in the chain: wrong passphrase. Only
// what EncodeKey writes is accepted; the parameters are judged before any work
// is done by them.
func DecodeKey(file, passphrase []byte) (*PrivateKey, error) {
	if len(file) > maxKeyFile {
		return nil, fmt.Errorf("unseal: key file: %d bytes, at most %d", len(file), maxKeyFile)
	}
	block, rest := pem.Decode(file)
	switch {
	case block == nil:
		return nil, errors.New("unseal: key file: not PEM")
	case block.Type != pemType:
		return nil, fmt.Errorf("unseal: key file: PEM block is %q, want %q", block.Type, pemType)
	case len(bytes.TrimSpace(rest)) != 0:
		return nil, errors.New("unseal: key file: something follows its PEM block")
	}
	var outer encryptedKey
	if err := unmarshalAll(block.Bytes, &outer); err != nil {
		return nil, fmt.Errorf("unseal: key file: %w", err)
	}
	params, err := checkPBES2(outer.Algorithm)
	if err != nil {
		return nil, fmt.Errorf("unseal: key file: %w", err)
	}
	plain, _, err := params.Decrypt(passphrase, outer.Data)
	defer clear(plain)
	if errors.Is(err, pkcs.ErrPBEDecryption) {
		return nil, ErrPassphrase
	}
	if err != nil {
		return nil, fmt.Errorf("unseal: key file: %w", err)
	}
	// One wrong passphrase in about 256 leaves valid padding around garbage.
	k, err := pkcs8.ParsePKCS8PrivateKeySM2(plain)
	if err != nil {
		return nil, ErrPassphrase
	}
	return wrapKey(k)
}

func checkPBES2(alg pkix.AlgorithmIdentifier) (*pkcs.PBES2Params, error) {
	if !pkcs.IsPBES2(alg) {
		return nil, errors.New("not encrypted by PBES2")
	}
	var p pkcs.PBES2Params
	if err := unmarshalAll(alg.Parameters.FullBytes, &p); err != nil {
		return nil, fmt.Errorf("PBES2 parameters: %w", err)
	}
	if !p.EncryptionScheme.Algorithm.Equal(asn1.ObjectIdentifier{1, 2, 156, 10197, 1, 104, 2}) {
		return nil, errors.New("encryption is not SM4-CBC")
	}
	if !p.KeyDerivationFunc.Algorithm.Equal(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 12}) {
		return nil, errors.New("key derivation is not PBKDF2")
	}
	var iv []byte
	if err := unmarshalAll(p.EncryptionScheme.Parameters.FullBytes, &iv); err != nil || len(iv) != 16 {
		return nil, errors.New("the IV is not 16 bytes")
	}
	var kdf pbkdf2Params
	if err := unmarshalAll(p.KeyDerivationFunc.Parameters.FullBytes, &kdf); err != nil {
		return nil, fmt.Errorf("PBKDF2 parameters: %w", err)
	}
	sm3, sha256 := asn1.ObjectIdentifier{1, 2, 156, 10197, 1, 401, 2}, asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 9}
	switch {
	case kdf.Iterations < MinIterations || kdf.Iterations > MaxIterations:
		return nil, fmt.Errorf("%d iterations, want %d..%d", kdf.Iterations, MinIterations, MaxIterations)
	case len(kdf.Salt) < 8 || len(kdf.Salt) > 64:
		return nil, errors.New("the salt is not 8..64 bytes")
	case kdf.KeyLength != 0 && kdf.KeyLength != 16:
		return nil, errors.New("the derived key is not 16 bytes")
	case !kdf.PRF.Algorithm.Equal(sm3) && !kdf.PRF.Algorithm.Equal(sha256):
		return nil, errors.New("the PRF is neither HMAC-SM3 nor HMAC-SHA256")
	}
	return &p, nil
}

func unmarshalAll(b []byte, v any) error {
	rest, err := asn1.Unmarshal(b, v)
	if err != nil {
		return errors.New("malformed DER")
	}
	if len(rest) != 0 {
		return errors.New("bytes after the DER value")
	}
	return nil
}
