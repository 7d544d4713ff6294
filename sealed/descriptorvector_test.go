package sealed_test

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"

	"github.com/faasd-sec/faasd-sec/sealed"
)

const descriptorFile = "testdata/descriptors.json"

// descriptorVector is a signed descriptor and what is to be computed of it.
type descriptorVector struct {
	Name     string `json:"name"`
	Owner    string `json:"owner"` // fingerprint
	Signed   string `json:"signed"`
	Revision string `json:"revision"`
}

func TestDescriptorVectors(t *testing.T) {
	if *update {
		var list []descriptorVector
		for _, d := range []*sealed.Descriptor{fullDescriptor(t), smallDescriptor(t)} {
			owner := newKey(t, "owner sign")
			b, err := d.Sign(nil, owner)
			if err != nil {
				t.Fatal(err)
			}
			r, err := d.Revision()
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, descriptorVector{d.FullName(), owner.PublicKey().Fingerprint().String(), hex.EncodeToString(b), r.String()})
		}
		b, err := json.MarshalIndent(list, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(descriptorFile, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(descriptorFile)
	if err != nil {
		t.Fatal(err)
	}
	var list []descriptorVector
	if err := json.Unmarshal(b, &list); err != nil || len(list) == 0 {
		t.Fatal(len(list), err)
	}
	for _, v := range list {
		owner, err := sealed.ParseFingerprint(v.Owner)
		if err != nil {
			t.Fatal(err)
		}
		s, err := sealed.ParseDescriptor(unhex(t, v.Signed))
		if err != nil {
			t.Fatal(err)
		}
		d, err := s.Verify(owner)
		if err != nil {
			t.Fatal(err)
		}
		if r, err := d.Revision(); err != nil || r.String() != v.Revision || d.FullName() != v.Name {
			t.Errorf("%s: revision %s, %v", v.Name, r, err)
		}
	}
}
