package unseal_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

func TestKeyBodiesHaveTheDocumentedForm(t *testing.T) {
	w := newWorld(t)
	mode, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		t.Fatal(err)
	}
	sign, dec, owner := w.fn.Signer().Scalar(), w.fn.Decrypter().Scalar(), w.fn.SigningKey()
	deposit, err := unseal.EncodeDeposit(&unseal.Deposit{Descriptor: []byte("signed"), Signing: sign, Decryption: [][]byte{dec, sign}})
	if err != nil {
		t.Fatal(err)
	}
	want, err := mode.Marshal(map[int]any{1: 1, 2: []byte("signed"), 3: sign, 4: [][]byte{dec, sign}})
	if err != nil || !bytes.Equal(deposit, want) {
		t.Fatalf("deposit is %x, want %x", deposit, want)
	}
	d, err := unseal.DecodeDeposit(deposit)
	if err != nil || string(d.Descriptor) != "signed" || !bytes.Equal(d.Decryption[1], sign) {
		t.Fatal(err)
	}
	d.Wipe()
	if !bytes.Equal(d.Signing, make([]byte, 32)) || !bytes.Contains(deposit, sign) {
		t.Fatal("wiping a deposit wiped its encoding, or nothing")
	}
	release, err := unseal.EncodeRelease(&unseal.Release{Owner: owner, Signing: sign, Decryption: [][]byte{dec}})
	if err != nil {
		t.Fatal(err)
	}
	if want, err = mode.Marshal(map[int]any{1: 1, 2: owner[:], 3: sign, 4: [][]byte{dec}}); err != nil || !bytes.Equal(release, want) {
		t.Fatalf("release is %x, want %x", release, want)
	}
	if r, err := unseal.DecodeRelease(release); err != nil || !bytes.Equal(r.Signing, sign) || r.Owner != owner {
		t.Fatal(err)
	}
	for name, v := range map[string]any{
		"version 2":           map[int]any{1: 2, 2: owner[:], 3: sign, 4: [][]byte{dec}},
		"no scalars":          map[int]any{1: 1, 2: owner[:], 3: sign, 4: [][]byte{}},
		"four scalars":        map[int]any{1: 1, 2: owner[:], 3: sign, 4: [][]byte{dec, dec, dec, dec}},
		"short scalar":        map[int]any{1: 1, 2: owner[:], 3: sign[:31], 4: [][]byte{dec}},
		"no owner":            map[int]any{1: 1, 3: sign, 4: [][]byte{dec}},
		"owner off the curve": map[int]any{1: 1, 2: append([]byte{4}, make([]byte, 64)...), 3: sign, 4: [][]byte{dec}},
		"short scalars":       map[int]any{1: 1, 2: owner[:], 3: sign, 4: [][]byte{dec[:31]}},
		"unknown key":         map[int]any{1: 1, 2: owner[:], 3: sign, 4: [][]byte{dec}, 5: 1},
		"a deposit":           map[int]any{1: 1, 2: []byte("signed"), 3: sign, 4: [][]byte{dec}},
	} {
		b, err := mode.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unseal.DecodeRelease(b); err == nil {
			t.Errorf("release with %s was taken", name)
		}
	}
	if _, err := unseal.DecodeRelease(append(release, 0)); err == nil {
		t.Error("a byte after a release was taken")
	}
	desc := &sealed.Descriptor{SigningKey: w.fn.SigningKey(), Decryption: []sealed.DecryptionKey{{Key: w.fn.DecryptionKey()}}}
	if err := unseal.MatchDescriptor(desc, sign, [][]byte{dec}); err != nil {
		t.Error(err)
	}
	for name, c := range map[string][2][]byte{"signing": {dec, dec}, "decryption": {sign, sign}} {
		if unseal.MatchDescriptor(desc, c[0], [][]byte{c[1]}) == nil {
			t.Errorf("another %s key was taken", name)
		}
	}
	if unseal.MatchDescriptor(desc, sign, nil) == nil {
		t.Error("a missing key was taken")
	}
}

func TestDepositsReleasesAndLogsTravel(t *testing.T) {
	w := newWorld(t)
	for _, role := range []sealed.Role{sealed.RoleManifest, sealed.RoleDeposit, sealed.RoleRelease, sealed.RoleLog} {
		g := w.grant(t, role, nil)
		b, err := g.Append(nil, sealed.MessageParams{Issued: w.now()}, []byte("body"))
		if err != nil {
			t.Fatal(role, err)
		}
		if int64(len(b)) != g.SealedLen(4) {
			t.Errorf("%s: %d bytes, SealedLen says %d", role, len(b), g.SealedLen(4))
		}
		key := w.fn.Decrypter()
		if role == sealed.RoleLog {
			key = w.owner.Decrypter()
		}
		o := w.opener(t, key, true)
		want := w.want(role)
		if role == sealed.RoleDeposit {
			want.Name, want.AnyName = "", true
		}
		if role.Timed() {
			w.move(3 * time.Minute)
			_, err := readAll(o, b, want)
			wantCode(t, err, sealed.CodeWindow)
			w.move(-3 * time.Minute)
			o = w.opener(t, key, true)
		} else {
			w.move(1000 * time.Hour)
		}
		if got, err := readAll(o, b, want); err != nil || string(got) != "body" {
			t.Errorf("%s: %q, %v", role, got, err)
		}
		_, err = readAll(o, b, want)
		if role.Once() != errors.Is(err, sealed.CodeReplay) {
			t.Errorf("%s again: %v", role, err)
		}
	}
}

func TestBundleIsHandedOnOnlyIfItsDigestMatches(t *testing.T) {
	w := newWorld(t)
	g := w.grant(t, sealed.RoleBundle, func(p *sealed.GrantParams) { p.NotAfter = p.NotAfter.Add(1000 * time.Hour) })
	var nonce [sealed.BundleNonce]byte
	rand.Read(nonce[:])
	tar := bytes.Repeat([]byte("tar "), 600_000)
	digest, n, err := sealed.BundleDigest(&nonce, bytes.NewReader(tar))
	if err != nil || n != int64(len(tar)) {
		t.Fatal(n, err)
	}
	body := append(nonce[:], tar...)
	b, err := g.Append(nil, sealed.MessageParams{Issued: w.now()}, body)
	if err != nil {
		t.Fatal(err)
	}
	o := w.opener(t, w.fn.Decrypter(), true)
	limit := int64(len(body))
	for range 2 { // a bundle opens as often as sandboxes start
		bundle, err := o.OpenBundle(bytes.NewReader(b), w.want(sealed.RoleBundle), digest, memSpools, limit)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(bundle); err != nil || !bytes.Equal(got, tar) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		if err := bundle.Close(); err != nil {
			t.Fatal(err)
		}
	}
	_, err = o.OpenBundle(bytes.NewReader(b), w.want(sealed.RoleBundle), sealed.Digest{1}, memSpools, limit)
	wantCode(t, err, sealed.CodeStaleRevision)
	if _, err = o.OpenBundle(bytes.NewReader(b), w.want(sealed.RoleBundle), digest, memSpools, limit-1); !errors.Is(err, unseal.ErrTooLong) {
		t.Errorf("beyond its limit: %v", err)
	}
	if _, err = o.OpenBundle(bytes.NewReader(b), w.want(sealed.RoleBundle), digest, nil, limit); !errors.Is(err, unseal.ErrTooLong) {
		t.Errorf("without a spool: %v", err)
	}
	_, err = o.OpenBundle(bytes.NewReader(b[:len(b)-1]), w.want(sealed.RoleBundle), digest, memSpools, limit)
	wantCode(t, err, sealed.CodeTruncated)
	short, err := g.Append(nil, sealed.MessageParams{Issued: w.now()}, nonce[:31])
	if err != nil {
		t.Fatal(err)
	}
	shortDigest, _, err := sealed.BundleDigest(&nonce, bytes.NewReader(nil))
	if err != nil {
		t.Fatal(err)
	}
	if _, err = o.OpenBundle(bytes.NewReader(short), w.want(sealed.RoleBundle), shortDigest, nil, limit); err == nil {
		t.Error("a bundle shorter than its random bytes was taken")
	}
	if _, err := o.OpenBundle(bytes.NewReader(b), w.want(sealed.RoleManifest), digest, nil, limit); err == nil {
		t.Error("a manifest was taken for a bundle")
	}
}

func FuzzKeyBodies(f *testing.F) {
	f.Add([]byte("\xa3\x01\x01\x03\x58\x20"))
	keys := unseal.Deposit{Descriptor: []byte("d"), Signing: make([]byte, 32), Decryption: [][]byte{make([]byte, 32)}}
	split := keys
	split.Traffic, split.Beside = []byte("t"), []unseal.Deposit{keys}
	for _, d := range []*unseal.Deposit{&keys, &split} {
		b, err := unseal.EncodeDeposit(d)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, err := unseal.DecodeDeposit(b); err == nil {
			if again, err := unseal.EncodeDeposit(d); err != nil || !bytes.Equal(again, b) {
				t.Fatalf("%x encodes as %x, %v", b, again, err)
			}
		}
		if r, err := unseal.DecodeRelease(b); err == nil {
			if again, err := unseal.EncodeRelease(r); err != nil || !bytes.Equal(again, b) {
				t.Fatalf("%x encodes as %x, %v", b, again, err)
			}
		}
	})
}

// FuzzOpen puts any bytes before an opener: nothing but a refusal or the known
// message may come of it.
func FuzzOpen(f *testing.F) {
	w := newWorld(f)
	g := w.requestGrant(f)
	good := must(w.request(f, g, 0, []byte("body")))
	warm := w.opener(f, w.fn.Decrypter(), true)
	f.Add(good)
	f.Add(good[:300])
	f.Fuzz(func(t *testing.T, b []byte) {
		text, err := readAll(warm, b, w.wantRequest())
		if err == nil && string(text) != "body" {
			t.Fatalf("opened as %q", text)
		}
		if err != nil && sealed.CodeOf(err) == "" {
			t.Fatalf("no refusal: %v", err)
		}
	})
}
