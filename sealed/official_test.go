package sealed_test

import (
	"bytes"
	"crypto/cipher"
	"crypto/ecdsa"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/sm3"
	"github.com/emmansun/gmsm/sm4"

	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/internal/der"
)

// The examples of the standards, run against the library this package is built
// on: a library that fails them would seal what nobody else opens.

const (
	sm2ExampleD = "3945208f7b2144b13f36e38ac6d39f95889393692860b51a42fb81ef4df7c5b8"
	sm2ExampleX = "09f9df311e5421a150dd7d161e4bc5c672179fad1833fc076bb08ff356f35020"
	sm2ExampleY = "ccea490ce26775a52dc6ea718cc1aa600aed05fbf35e084a6632f6072da9ad13"
)

func sm2Example(t *testing.T) (*sm2.PrivateKey, sealed.PublicKey) {
	t.Helper()
	k, err := sm2.NewPrivateKey(unhex(t, sm2ExampleD))
	if err != nil {
		t.Fatal(err)
	}
	pub, err := sealed.PublicKeyOf(&k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if pub.String() != "04"+sm2ExampleX+sm2ExampleY {
		t.Fatalf("public key is %s", pub)
	}
	return k, pub
}

// GB/T 32918.5-2017, annex A.2: signature over "message digest".
func TestSM2SignatureExample(t *testing.T) {
	k, pub := sm2Example(t)
	e := unhex(t, "f0b43e94ba45accaace692ed534382eb17e6ab5a19ce7b31f4486fdfc0d28640")
	got, err := sm2.CalculateSM2Hash(&k.PublicKey, []byte("message digest"), nil)
	if err != nil || !bytes.Equal(got, e) {
		t.Fatalf("e is %x, %v", got, err)
	}
	sig := unhex(t, "3046022100f5a03b0648d2c4630eeac513e1bb81a15944da3827d5b74143ac7eaceee720b3"+
		"022100b1b6aa29df212fd8763182bc0d421ca1bb9038fd1f7f42d4840b69c485bbc1aa")
	if !der.IsSignature(sig) || !sm2.VerifyASN1(&k.PublicKey, e, sig) {
		t.Fatal("the standard's signature does not verify")
	}
	// Ours differs in what stands before the message, and in nothing else.
	want, err := sm2.CalculateSM2Hash(&k.PublicKey, []byte("label\x00message digest"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if d := sealed.SignatureDigest(pub, "label", []byte("message "), []byte("digest")); !bytes.Equal(d[:], want) {
		t.Fatalf("digest is %x, want %x", d, want)
	}
}

// GB/T 32918.5-2017, annex A.3: decryption of "encryption standard".
func TestSM2DecryptionExample(t *testing.T) {
	k, _ := sm2Example(t)
	c := unhex(t, "04"+"04ebfc718e8d1798620432268e77feb6415e2ede0e073c0f4f640ecd2e149a73"+
		"e858f9d81e5430a57b36daab8f950a3c64e6ee6a63094d99283aff767e124df0"+
		"59983c18f809e262923c53aec295d30383b54e39d609d160afcb1908d0bd8766"+
		"21886ca989ca9c7d58087307ca93092d651efa")
	text, err := k.Decrypt(nil, c, sm2.NewPlainDecrypterOpts(sm2.C1C3C2))
	if err != nil || string(text) != "encryption standard" {
		t.Fatalf("%q, %v", text, err)
	}
}

// GB/T 32905-2016, annex A.
func TestSM3Examples(t *testing.T) {
	for in, want := range map[string]string{
		"abc":                      "66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0",
		strings.Repeat("abcd", 16): "debe9ff92275b8a138604889c18e5a4d6fdb70e5387e5765293dcba39c0c5732",
	} {
		if d := sm3.Sum([]byte(in)); hex.EncodeToString(d[:]) != want {
			t.Errorf("SM3(%q) is %x", in, d)
		}
	}
}

// GB/T 32907-2016, annex A: one block, and a million times over.
func TestSM4Examples(t *testing.T) {
	b := unhex(t, "0123456789abcdeffedcba9876543210")
	c, err := sm4.NewCipher(b)
	if err != nil {
		t.Fatal(err)
	}
	c.Encrypt(b, b)
	if hex.EncodeToString(b) != "681edf34d206965e86b3e94f536e4246" {
		t.Fatalf("once: %x", b)
	}
	for range 999_999 {
		c.Encrypt(b, b)
	}
	if hex.EncodeToString(b) != "595298c7c6fd271f0402f804c33d3f66" {
		t.Fatalf("a million times: %x", b)
	}
}

// RFC 8998, appendix A.1.
func TestSM4GCMExample(t *testing.T) {
	c, err := sm4.NewCipher(unhex(t, "0123456789abcdeffedcba9876543210"))
	if err != nil {
		t.Fatal(err)
	}
	a, err := cipher.NewGCM(c)
	if err != nil {
		t.Fatal(err)
	}
	text := unhex(t, "aaaaaaaaaaaaaaaabbbbbbbbbbbbbbbbccccccccccccccccdddddddddddddddd"+
		"eeeeeeeeeeeeeeeeffffffffffffffffeeeeeeeeeeeeeeeeaaaaaaaaaaaaaaaa")
	got := a.Seal(nil, unhex(t, "00001234567800000000abcd"), text, unhex(t, "feedfacedeadbeeffeedfacedeadbeefabaddad2"))
	want := "17f399f08c67d5ee19d0dc9969c4bb7d5fd46fd3756489069157b282bb200735" +
		"d82710ca5c22f0ccfa7cbf93d496ac15a56834cbcf98c397b4024a2691233b8d" +
		"83de3541e4c2b58177e065a9bf7b62ec"
	if hex.EncodeToString(got) != want {
		t.Fatalf("%x", got)
	}
}

// A key has one form on the wire and one text; everything else is refused.
func TestPublicKeyForms(t *testing.T) {
	k, pub := sm2Example(t)
	if hex.EncodeToString(pub.SPKI()) != "3059301306072a8648ce3d020106082a811ccf5501822d034200"+"04"+sm2ExampleX+sm2ExampleY {
		t.Fatalf("SPKI is %x", pub.SPKI())
	}
	f := sm3.Sum(pub.SPKI())
	if pub.Fingerprint() != f || pub.KeyID() != sealed.KeyID(f[:16]) {
		t.Fatal("fingerprint or key id is not SM3 of the SPKI")
	}
	var back sealed.PublicKey
	if err := back.UnmarshalText([]byte(pub.String())); err != nil || back != pub {
		t.Fatal(err)
	}
	for name, s := range map[string]string{
		"upper case":  strings.ToUpper(pub.String()),
		"short":       pub.String()[2:],
		"off curve":   pub.String()[:129] + "0",
		"compressed":  "02" + sm2ExampleX,
		"zero":        strings.Repeat("00", 65),
		"not hex":     "zz" + pub.String()[2:],
		"beyond p":    "04" + strings.Repeat("ff", 64),
		"wrong form":  "06" + pub.String()[2:],
		"with spaces": " " + pub.String()[1:],
	} {
		if _, err := sealed.ParsePublicKeyText(s); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	for _, not := range []any{nil, "key", ecdsa.PublicKey{}, (*ecdsa.PublicKey)(nil), sealed.PublicKey{}} {
		if _, err := sealed.PublicKeyOf(not); err == nil {
			t.Errorf("%T was taken for an SM2 key", not)
		}
	}
	if got, err := sealed.PublicKeyOf(k.Public()); err != nil || got != pub {
		t.Fatal(err)
	}
}
