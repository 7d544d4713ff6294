package unseal_test

import (
	"bytes"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

func TestADepositWithATrafficStatementHasTheDocumentedForm(t *testing.T) {
	w := newWorld(t)
	mode, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		t.Fatal(err)
	}
	sign, dec := w.fn.Signer().Scalar(), w.fn.Decrypter().Scalar()
	keys := func(desc string) unseal.Deposit {
		return unseal.Deposit{Descriptor: []byte(desc), Signing: bytes.Clone(sign), Decryption: [][]byte{bytes.Clone(dec)}}
	}
	d := keys("latest")
	d.Traffic, d.Beside = []byte("statement"), []unseal.Deposit{keys("old"), keys("older")}
	b, err := unseal.EncodeDeposit(&d)
	if err != nil {
		t.Fatal(err)
	}
	other := func(desc string) map[int]any {
		return map[int]any{2: []byte(desc), 3: sign, 4: [][]byte{dec}}
	}
	with := func(edit func(m map[int]any)) []byte {
		t.Helper()
		m := map[int]any{1: 2, 2: []byte("latest"), 3: sign, 4: [][]byte{dec}, 5: []byte("statement"), 6: []any{other("old"), other("older")}}
		edit(m)
		b, err := mode.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if want := with(func(map[int]any) {}); !bytes.Equal(b, want) {
		t.Fatalf("%x, want %x", b, want)
	}
	got, err := unseal.DecodeDeposit(b)
	if err != nil || string(got.Traffic) != "statement" || len(got.Beside) != 2 || string(got.Beside[1].Descriptor) != "older" || !bytes.Equal(got.Beside[1].Signing, sign) {
		t.Fatalf("%+v, %v", got, err)
	}
	got.Wipe()
	if !bytes.Equal(got.Beside[1].Signing, make([]byte, 32)) || !bytes.Equal(got.Beside[0].Decryption[0], make([]byte, 32)) {
		t.Error("wiping it left keys")
	}
	if one, err := unseal.DecodeDeposit(with(func(m map[int]any) { m[6] = []any{} })); err != nil || one.Beside != nil {
		t.Errorf("of the latest alone: %+v, %v", one, err)
	}
	for name, edit := range map[string]func(m map[int]any){
		"form 1":                 func(m map[int]any) { m[1] = 1 },
		"form 3":                 func(m map[int]any) { m[1] = 3 },
		"no others":              func(m map[int]any) { delete(m, 6) },
		"no statement":           func(m map[int]any) { delete(m, 5) },
		"an empty statement":     func(m map[int]any) { m[5] = []byte{} },
		"a long statement":       func(m map[int]any) { m[5] = make([]byte, sealed.MaxSignedTraffic+1) },
		"neither, as form 2":     func(m map[int]any) { delete(m, 5); delete(m, 6) },
		"four others":            func(m map[int]any) { m[6] = []any{other("a"), other("b"), other("c"), other("d")} },
		"another without keys":   func(m map[int]any) { m[6] = []any{map[int]any{2: []byte("a"), 3: sign, 4: [][]byte{}}} },
		"another with a version": func(m map[int]any) { o := other("a"); o[1] = 1; m[6] = []any{o} },
		"an empty descriptor":    func(m map[int]any) { m[6] = []any{other("")} },
		"a key more":             func(m map[int]any) { m[7] = 1 },
	} {
		if _, err := unseal.DecodeDeposit(with(edit)); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	for i := range b {
		if _, err := unseal.DecodeDeposit(b[:i]); err == nil {
			t.Errorf("cut to %d bytes it was taken", i)
		}
	}
	nested := keys("a")
	nested.Traffic = []byte("another")
	d.Beside[0] = nested
	if _, err := unseal.EncodeDeposit(&d); err == nil {
		t.Error("a statement within another was encoded")
	}
	d = keys("latest")
	d.Beside = []unseal.Deposit{keys("old")}
	if _, err := unseal.EncodeDeposit(&d); err == nil {
		t.Error("others without a statement were encoded")
	}
}
