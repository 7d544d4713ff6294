package manifest

import (
	"crypto/rand"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm2"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

func TestSealedManifestsAreOfRoleFourAndShortLived(t *testing.T) {
	signer, err := sm2.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	reader, err := sm2.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	to, err := sealed.PublicKeyOf(&reader.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_800_000_000, 5e8)
	b, err := Seal(full(), to, signer, "f.ns", now, nil)
	if err != nil {
		t.Fatal(err)
	}
	p, err := sealed.Peek(b)
	if err != nil {
		t.Fatal(err)
	}
	if p.Grant.Role != sealed.RoleManifest || p.Grant.Name != "f.ns" || !p.Grant.Context.IsZero() || p.Grant.Recipient != to.KeyID() ||
		p.Grant.NotAfter-p.Grant.NotBefore > 301 || p.Message.Expires-p.Message.Issued != uint64(Life.Milliseconds()) {
		t.Errorf("%+v", p)
	}
	if err := sealed.CheckWindow(&p.Grant, &p.Message, 0, uint64(now.UnixMilli())); err != nil {
		t.Error(err)
	}
	anonymous := full()
	anonymous.Task = sealed.ID{}
	if _, err := Seal(anonymous, to, signer, "f.ns", now, nil); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("no task id: %v", err)
	}
	wild := full()
	wild.Priority = 10
	if _, err := Seal(wild, to, signer, "f.ns", now, nil); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("out of range: %v", err)
	}
	bad := bounds()
	bad.Suite = 2
	if _, err := SealBounds(bad, to, signer, "f.ns", now, nil); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("bounds out of range: %v", err)
	}
}
