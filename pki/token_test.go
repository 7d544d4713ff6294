package pki

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
)

func TestTokenTextRoundTrips(t *testing.T) {
	tok, err := NewToken([32]byte{1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseToken(tok.Text() + "\n")
	if err != nil || got != tok {
		t.Fatal(got, err)
	}
	if !got.Matches(HashToken(tok)) || got.Matches(HashToken(Token{CAHash: tok.CAHash})) || got.Matches("") {
		t.Fatal("match is wrong")
	}
	other := tok
	other.CAHash[0] ^= 1
	if other.Matches(HashToken(tok)) {
		t.Fatal("a token with another authority matches")
	}
}

func TestTokenSecretIsNeverFormatted(t *testing.T) {
	tok, err := NewToken([32]byte{})
	if err != nil {
		t.Fatal(err)
	}
	secret := tok.Text()[strings.LastIndex(tok.Text(), ".")+1:]
	var buf bytes.Buffer
	slog.New(slog.NewJSONHandler(&buf, nil)).Info("joined", "token", tok)
	j, err := json.Marshal(tok)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{fmt.Sprint(tok), fmt.Sprintf("%+v %#v %s %q", tok, tok, tok, tok), buf.String(), string(j)} {
		if strings.Contains(s, secret) {
			t.Fatalf("the secret shows in %q", s)
		}
	}
}

func TestBadTokensAreInvalid(t *testing.T) {
	tok, err := NewToken([32]byte{})
	if err != nil {
		t.Fatal(err)
	}
	good := tok.Text()
	for _, s := range []string{"", "fsj1", "fsj1..", good + "A", good[:len(good)-1], strings.Replace(good, "fsj1", "fsj2", 1),
		strings.Replace(good, ".", "", 1), good + ".x", "fsj1." + strings.Repeat("!", 43) + "." + strings.Repeat("A", 43),
		good[:len(good)-1] + "\n"} {
		_, err := ParseToken(s)
		if api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%q: %v", s, err)
		}
		if err != nil && len(s) > 60 && strings.Contains(err.Error(), s[50:]) {
			t.Errorf("the error quotes the token: %v", err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	tok, err := NewToken([32]byte{})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(tok.Text())
	f.Fuzz(func(t *testing.T, s string) {
		if tok, err := ParseToken(s); err == nil && tok.Text() != strings.TrimSpace(s) {
			t.Fatalf("%q has a second spelling", s)
		}
	})
}
