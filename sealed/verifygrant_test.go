package sealed_test

import (
	"crypto/rand"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm2"

	"github.com/faasd-sec/faasd-sec/sealed"
)

// signedRequest is a sealed request and how long its grant is.
func signedRequest(t testing.TB) (body []byte, grant int) {
	t.Helper()
	var keys [2]*sm2.PrivateKey
	for i := range keys {
		var err error
		if keys[i], err = sm2.GenerateKey(rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	recipient, err := sealed.PublicKeyOf(keys[1].Public())
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	g, err := sealed.NewGrant(sealed.GrantParams{Role: sealed.RoleRequest, Recipient: recipient, Sender: keys[0],
		Context: sealed.Digest{1}, Name: "f.ns", NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Release()
	body, _, _, err = g.AppendRequest(nil, sealed.MessageParams{Issued: now, Life: time.Minute}, sealed.RequestHead{Method: "POST"}, []byte("hello"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := sealed.Peek(body)
	if err != nil {
		t.Fatal(err)
	}
	const message = 125
	return body, p.Len - message
}

func TestAGrantIsVerifiedWithItsSendersPublicKey(t *testing.T) {
	body, grant := signedRequest(t)
	if err := sealed.VerifyGrant(body); err != nil {
		t.Error(err)
	}
	for i := range grant {
		bad := append([]byte(nil), body...)
		bad[i] ^= 1
		if err := sealed.VerifyGrant(bad); err == nil {
			t.Fatalf("byte %d of the grant may be changed", i)
		}
	}
	last := append([]byte(nil), body...)
	last[grant-1] ^= 1
	if err := sealed.VerifyGrant(last); sealed.CodeOf(err) != sealed.CodeSignature {
		t.Errorf("another signature: %v", err)
	}
	if err := sealed.VerifyGrant(body[:grant]); sealed.CodeOf(err) != sealed.CodeTruncated {
		t.Errorf("half an envelope: %v", err)
	}
}

func BenchmarkVerifyGrant(b *testing.B) {
	body, _ := signedRequest(b)
	for b.Loop() {
		if err := sealed.VerifyGrant(body); err != nil {
			b.Fatal(err)
		}
	}
}
