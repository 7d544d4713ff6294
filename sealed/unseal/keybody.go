package unseal

import (
	"errors"
	"fmt"

	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/internal/dcbor"
)

const (
	maxBodyKeys = 3                    // decryption keys of a descriptor
	maxBeside   = sealed.MaxShares - 1 // descriptors beside the latest
)

// Deposit is the body of role 5: a function's private keys, for the key broker.
type Deposit struct {
	Descriptor []byte   // signed
	Signing    []byte   // the function's signing scalar, 32 bytes
	Decryption [][]byte // scalars, in the descriptor's order

	Traffic []byte    // a signed traffic statement, or nil
	Beside  []Deposit // of the older descriptors that it names; they have neither Traffic nor Beside
}

// Release is the body of role 6: a function's private keys, for a sandbox.
type Release struct {
	Owner      sealed.PublicKey // as the broker has it bound to the function's name: the agent takes no descriptor signed by another
	Signing    []byte           // the function's signing scalar, 32 bytes
	Decryption [][]byte         // scalars, in the descriptor's order
}

// Wipe zeroes the scalars.
func (d *Deposit) Wipe() {
	wipeScalars(d.Signing, d.Decryption)
	for i := range d.Beside {
		d.Beside[i].Wipe()
	}
}

// Wipe zeroes the scalars.
func (r *Release) Wipe() { wipeScalars(r.Signing, r.Decryption) }

func wipeScalars(signing []byte, decryption [][]byte) {
	clear(signing)
	for _, s := range decryption {
		clear(s)
	}
}

// The versions of a deposit: keys alone, and keys with a traffic statement.
const (
	depositAlone = 1
	depositSplit = 2
)

// EncodeDeposit returns the CBOR body: wipe it once it is sealed.
func EncodeDeposit(d *Deposit) ([]byte, error) {
	if err := d.check(); err != nil {
		return nil, fmt.Errorf("unseal: deposit: %w", err)
	}
	size := len(d.Descriptor) + len(d.Traffic) + 256
	for i := range d.Beside {
		size += len(d.Beside[i].Descriptor) + 256
	}
	b := make([]byte, 0, size) // never grows: no copy of a scalar is left behind
	version, fields := uint64(depositAlone), 4
	if d.Traffic != nil {
		version, fields = depositSplit, 6
	}
	b = dcbor.AppendMap(b, fields)
	b = dcbor.AppendUint(dcbor.AppendUint(b, 1), version)
	b = d.appendKeys(b)
	if d.Traffic == nil {
		return b, nil
	}
	b = dcbor.AppendBytes(dcbor.AppendUint(b, 5), d.Traffic)
	b = dcbor.AppendArray(dcbor.AppendUint(b, 6), len(d.Beside))
	for i := range d.Beside {
		b = d.Beside[i].appendKeys(dcbor.AppendMap(b, 3))
	}
	return b, nil
}

func (d *Deposit) check() error {
	if len(d.Descriptor) < 1 || len(d.Descriptor) > sealed.MaxSignedDescriptor {
		return fmt.Errorf("descriptor: %d bytes, want 1..%d", len(d.Descriptor), sealed.MaxSignedDescriptor)
	}
	if len(d.Traffic) > sealed.MaxSignedTraffic || d.Traffic != nil && len(d.Traffic) == 0 {
		return fmt.Errorf("traffic statement: %d bytes, want none or 1..%d", len(d.Traffic), sealed.MaxSignedTraffic)
	}
	if len(d.Beside) > maxBeside || len(d.Beside) > 0 && d.Traffic == nil {
		return fmt.Errorf("other descriptors: %d of them, want at most %d, and none without a traffic statement", len(d.Beside), maxBeside)
	}
	for i := range d.Beside {
		if o := &d.Beside[i]; o.Traffic != nil || o.Beside != nil {
			return fmt.Errorf("other descriptor %d: has a traffic statement of its own", i)
		} else if err := o.check(); err != nil {
			return fmt.Errorf("other descriptor %d: %w", i, err)
		}
	}
	return checkScalars(d.Signing, d.Decryption)
}

func (d *Deposit) appendKeys(b []byte) []byte {
	b = dcbor.AppendBytes(dcbor.AppendUint(b, 2), d.Descriptor)
	return appendScalars(b, d.Signing, d.Decryption)
}

func (d *Deposit) readKeys(r *dcbor.Decoder) {
	d.Descriptor = append(d.Descriptor, r.Key(2, "descriptor").Bytes(sealed.MaxSignedDescriptor)...)
	d.Signing, d.Decryption = readScalars(r)
}

// DecodeDeposit reads a CBOR body strictly, into memory of its own: wipe b, and
// the deposit when it was used.
func DecodeDeposit(b []byte) (*Deposit, error) {
	r := dcbor.NewDecoder(b)
	fields := r.Field("deposit").Map(6)
	version := r.Key(1, "version").Uint()
	d := new(Deposit)
	switch {
	case r.Err() != nil:
	case version != depositAlone && version != depositSplit:
		r.Fail("%d is unknown, want %d or %d", version, depositAlone, depositSplit)
	case version == depositAlone && fields != 4, version == depositSplit && fields != 6:
		r.Fail("%d does not have %d fields", version, fields)
	}
	d.readKeys(r)
	if version == depositSplit && r.Err() == nil {
		d.Traffic = append([]byte{}, r.Key(5, "traffic statement").Bytes(sealed.MaxSignedTraffic)...)
		for range r.Key(6, "other descriptors").Array(maxBeside) {
			r.Field("other descriptors").MapOf(3)
			var o Deposit
			o.readKeys(r)
			d.Beside = append(d.Beside, o)
		}
	}
	err := r.End()
	if err == nil {
		err = d.check()
	}
	if err != nil {
		d.Wipe()
		return nil, fmt.Errorf("unseal: deposit: %w", err)
	}
	return d, nil
}

// EncodeRelease returns the CBOR body: wipe it once it is sealed.
func EncodeRelease(r *Release) ([]byte, error) {
	if err := checkScalars(r.Signing, r.Decryption); err != nil {
		return nil, fmt.Errorf("unseal: release: %w", err)
	}
	if _, err := sealed.ParsePublicKey(r.Owner[:]); err != nil {
		return nil, fmt.Errorf("unseal: release: owner: %w", err)
	}
	b := make([]byte, 0, 384)
	b = dcbor.AppendMap(b, 4)
	b = dcbor.AppendUint(dcbor.AppendUint(b, 1), 1)
	b = dcbor.AppendBytes(dcbor.AppendUint(b, 2), r.Owner[:])
	return appendScalars(b, r.Signing, r.Decryption), nil
}

// DecodeRelease reads a CBOR body strictly, into memory of its own: wipe b, and
// the release when it was used.
func DecodeRelease(b []byte) (*Release, error) {
	r := dcbor.NewDecoder(b)
	r.Field("release").MapOf(4)
	readVersion(r)
	out := new(Release)
	owner := r.Key(2, "owner").Bytes(len(out.Owner))
	out.Signing, out.Decryption = readScalars(r)
	if r.Err() == nil {
		var err error
		if out.Owner, err = sealed.ParsePublicKey(owner); err != nil {
			out.Wipe()
			return nil, fmt.Errorf("unseal: release: owner: %w", err)
		}
	}
	if err := finish(r, out.Signing, out.Decryption); err != nil {
		out.Wipe()
		return nil, fmt.Errorf("unseal: release: %w", err)
	}
	return out, nil
}

// MatchDescriptor says whether the scalars are the private keys of d, in its
// order: a broker checks a deposit and an agent a release by it.
func MatchDescriptor(d *sealed.Descriptor, signing []byte, decryption [][]byte) error {
	sign, err := publicOf(signing)
	if err != nil {
		return fmt.Errorf("signing key: %w", err)
	}
	if sign != d.SigningKey {
		return errors.New("unseal: signing key: is not the descriptor's")
	}
	if len(decryption) != len(d.Decryption) {
		return fmt.Errorf("unseal: decryption keys: %d of them, the descriptor has %d", len(decryption), len(d.Decryption))
	}
	for i := range decryption {
		pub, err := publicOf(decryption[i])
		if err != nil {
			return fmt.Errorf("decryption key %d: %w", i, err)
		}
		if pub != d.Decryption[i].Key {
			return fmt.Errorf("unseal: decryption key %d: is not the descriptor's", i)
		}
	}
	return nil
}

func checkScalars(signing []byte, decryption [][]byte) error {
	if len(signing) != ScalarSize {
		return fmt.Errorf("signing scalar: %d bytes, want %d", len(signing), ScalarSize)
	}
	if len(decryption) < 1 || len(decryption) > maxBodyKeys {
		return fmt.Errorf("decryption scalars: %d of them, want 1..%d", len(decryption), maxBodyKeys)
	}
	for i, s := range decryption {
		if len(s) != ScalarSize {
			return fmt.Errorf("decryption scalar %d: %d bytes, want %d", i, len(s), ScalarSize)
		}
	}
	return nil
}

func appendScalars(b, signing []byte, decryption [][]byte) []byte {
	b = dcbor.AppendBytes(dcbor.AppendUint(b, 3), signing)
	b = dcbor.AppendArray(dcbor.AppendUint(b, 4), len(decryption))
	for _, s := range decryption {
		b = dcbor.AppendBytes(b, s)
	}
	return b
}

func readVersion(r *dcbor.Decoder) {
	if v := r.Key(1, "version").Uint(); r.Err() == nil && v != 1 {
		r.Fail("%d is unknown, want 1", v)
	}
}

func readScalars(r *dcbor.Decoder) (signing []byte, decryption [][]byte) {
	signing = append(signing, r.Key(3, "signing scalar").Bytes(ScalarSize)...)
	for range r.Key(4, "decryption scalars").Array(maxBodyKeys) {
		decryption = append(decryption, append([]byte(nil), r.Bytes(ScalarSize)...))
	}
	return signing, decryption
}

func finish(r *dcbor.Decoder, signing []byte, decryption [][]byte) error {
	if err := r.End(); err != nil {
		return err
	}
	return checkScalars(signing, decryption)
}
