package sealed_test

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

func newKey(tb testing.TB, label string) *unseal.PrivateKey {
	tb.Helper()
	d := testKey(label).D.FillBytes(make([]byte, 32))
	k, err := unseal.KeyFromScalar(d)
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

// fullDescriptor sets every field.
func fullDescriptor(tb testing.TB) *sealed.Descriptor {
	callers := []sealed.Fingerprint{newKey(tb, "caller sign").PublicKey().Fingerprint(), newKey(tb, "caller 2").PublicKey().Fingerprint()}
	slices.SortFunc(callers, func(a, b sealed.Fingerprint) int { return bytes.Compare(a[:], b[:]) })
	return &sealed.Descriptor{
		Name: "echo", Namespace: "demo", Sequence: 7, Issued: 1_800_000_000,
		Config: sealed.Config{
			Image: "sha256:" + strings.Repeat("a1", 32), Bundle: sealed.Digest{1, 2}, Mode: sealed.ModeStreaming,
			Argv: []string{"/bin/fn", "-v", "é"}, Upstream: "http://127.0.0.1:8080", BundleMount: "/srv/bundle",
			ReadMS: 1000, WriteMS: 2000, ExecMS: 3000, StartMS: 4000, MaxInFlight: 8,
			Resources: sealed.Resources{CPUMillis: 500, MemoryBytes: 64 << 20, PIDs: 128, TmpBytes: 16 << 20, IOReadBPS: 1, IOWriteBPS: 2},
			IdleMS:    60000, Labels: map[string]string{"zone": "a", "gpu": "no", "a": ""},
			Policy: sealed.Policy{Callers: callers, Attestation: []string{"node-key", "tpm"}, Broker: newKey(tb, "broker sign").PublicKey()},
		},
		BundleBlob: "sha256:" + strings.Repeat("b2", 32), SigningKey: newKey(tb, "function sign").PublicKey(),
		Decryption: []sealed.DecryptionKey{
			{Key: newKey(tb, "function decrypt").PublicKey(), NotBefore: 1_799_990_000, NotAfter: 1_800_090_000},
			{Key: newKey(tb, "function decrypt 2").PublicKey(), NotBefore: 1_800_050_000, NotAfter: 1_800_190_000},
		},
		Suites: []uint16{1}, LogRecipient: newKey(tb, "owner decrypt").PublicKey(), MaxQueuedMS: 3_600_000, ImageRef: "registry/echo:1",
	}
}

// smallDescriptor leaves empty what may be.
func smallDescriptor(tb testing.TB) *sealed.Descriptor {
	return &sealed.Descriptor{
		Name: "a", Namespace: "b", Sequence: 1, Config: sealed.Config{Image: "sha256:" + strings.Repeat("00", 32), Mode: sealed.ModeHTTP, Upstream: "unix"},
		SigningKey: newKey(tb, "function sign").PublicKey(), Decryption: []sealed.DecryptionKey{{Key: newKey(tb, "function decrypt").PublicKey()}}, Suites: []uint16{1},
	}
}

func TestDescriptorTravels(t *testing.T) {
	owner := newKey(t, "owner sign")
	for _, d := range []*sealed.Descriptor{fullDescriptor(t), smallDescriptor(t)} {
		b, err := d.Sign(rand.Reader, owner)
		if err != nil {
			t.Fatal(err)
		}
		s, err := sealed.ParseDescriptor(b)
		if err != nil {
			t.Fatal(err)
		}
		if s.ClaimedOwner() != owner.PublicKey() {
			t.Fatal("names another owner")
		}
		got, err := s.Verify(owner.PublicKey().Fingerprint())
		if err != nil {
			t.Fatal(err)
		}
		again, err := got.Sign(nil, owner)
		if err != nil {
			t.Fatal(err)
		}
		once, err := d.Sign(nil, owner)
		if err != nil || !bytes.Equal(again, once) {
			t.Fatal("one descriptor has two encodings")
		}
		x, errX := d.Revision()
		y, errY := got.Revision()
		if errX != nil || errY != nil || x != y || x.IsZero() {
			t.Fatal("the revision changed on the way")
		}
		_, err = s.Verify(newKey(t, "somebody").PublicKey().Fingerprint())
		if !errors.Is(err, sealed.CodeSender) {
			t.Fatal(err)
		}
	}
}

// TestDescriptorHasTheDocumentedForm builds the payload with a general CBOR
// library from docs/envelope.md.
func TestDescriptorHasTheDocumentedForm(t *testing.T) {
	d := fullDescriptor(t)
	mode, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		t.Fatal(err)
	}
	c := &d.Config
	config := map[int]any{
		1: c.Image, 2: c.Bundle[:], 3: "streaming", 4: c.Argv, 5: c.Upstream, 6: c.BundleMount,
		7: 1000, 8: 2000, 9: 3000, 10: 4000, 11: 8,
		12: map[int]any{1: 500, 2: 64 << 20, 3: 128, 4: 16 << 20, 5: 1, 6: 2}, 13: 60000, 14: c.Labels,
		15: map[int]any{1: [][]byte{c.Policy.Callers[0][:], c.Policy.Callers[1][:]}, 2: false, 3: c.Policy.Attestation, 4: c.Policy.Broker[:]},
	}
	keys := []any{}
	for i := range d.Decryption {
		k := &d.Decryption[i]
		keys = append(keys, map[int]any{1: k.Key[:], 2: k.NotBefore, 3: k.NotAfter})
	}
	payload, err := mode.Marshal(map[int]any{
		1: 1, 2: "echo", 3: "demo", 4: 7, 5: 1_800_000_000, 6: config, 7: d.BundleBlob, 8: d.SigningKey[:], 9: keys,
		10: []int{1}, 11: d.LogRecipient[:], 12: 3_600_000, 13: d.ImageRef,
	})
	if err != nil {
		t.Fatal(err)
	}
	b, err := d.Sign(rand.Reader, newKey(t, "owner sign"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b[8:8+len(payload)], payload) {
		t.Fatalf("payload is %x, want %x", b[8:8+len(payload)], payload)
	}
	revisioned, err := mode.Marshal([]any{"faasd-sec/v1 revision", "echo", "demo", config})
	if err != nil {
		t.Fatal(err)
	}
	r, err := d.Revision()
	if err != nil || !bytes.Equal(r[:], hash(revisioned)) {
		t.Fatalf("revision is %s, %v", r, err)
	}
}

func TestEveryChangedByteOfADescriptorIsRefused(t *testing.T) {
	owner := newKey(t, "owner sign")
	b, err := smallDescriptor(t).Sign(rand.Reader, owner)
	if err != nil {
		t.Fatal(err)
	}
	open := func(b []byte) error {
		s, err := sealed.ParseDescriptor(b)
		if err == nil {
			_, err = s.Verify(owner.PublicKey().Fingerprint())
		}
		return err
	}
	if err := open(b); err != nil {
		t.Fatal(err)
	}
	for i := range b {
		for _, bit := range []byte{1, 0x20, 0x80} {
			bad := slices.Clone(b)
			bad[i] ^= bit
			if open(bad) == nil {
				t.Errorf("byte %d, bit %#x: taken", i, bit)
			}
		}
		if open(b[:i]) == nil {
			t.Errorf("cut to %d bytes: taken", i)
		}
	}
	if open(append(b, 0)) == nil {
		t.Error("a byte after it: taken")
	}
}

func TestWrongFieldsAreNamed(t *testing.T) {
	owner := newKey(t, "owner sign")
	for want, change := range map[string]func(*sealed.Descriptor){
		"name":                 func(d *sealed.Descriptor) { d.Name = "Echo" },
		"namespace":            func(d *sealed.Descriptor) { d.Namespace = "a.b" },
		"sequence":             func(d *sealed.Descriptor) { d.Sequence = 0 },
		"bundle blob":          func(d *sealed.Descriptor) { d.BundleBlob = "sha256:xyz" },
		"bundle digest":        func(d *sealed.Descriptor) { d.Config.Bundle = sealed.Digest{} },
		"max age queued":       func(d *sealed.Descriptor) { d.MaxQueuedMS = 86_400_001 },
		"image ref":            func(d *sealed.Descriptor) { d.ImageRef = "a\nb" },
		"suites":               func(d *sealed.Descriptor) { d.Suites = []uint16{2, 1} },
		"signing key":          func(d *sealed.Descriptor) { d.SigningKey = sealed.PublicKey{} },
		"decryption keys":      func(d *sealed.Descriptor) { d.Decryption = nil },
		"decryption key 1":     func(d *sealed.Descriptor) { d.Decryption[1].Key = d.SigningKey },
		"repeats key 0":        func(d *sealed.Descriptor) { d.Decryption[1].Key = d.Decryption[0].Key },
		"not_before":           func(d *sealed.Descriptor) { d.Decryption[0].NotAfter = 0 },
		"broker's signing":     func(d *sealed.Descriptor) { d.Config.Policy.Broker = d.Decryption[0].Key },
		"owner's signing":      func(d *sealed.Descriptor) { d.Decryption[0].Key = owner.PublicKey() },
		"log recipient":        func(d *sealed.Descriptor) { d.LogRecipient = d.SigningKey },
		"log recipient: is th": func(d *sealed.Descriptor) { d.LogRecipient = owner.PublicKey() },
		"image:":               func(d *sealed.Descriptor) { d.Config.Image = "echo:latest" },
		"mode":                 func(d *sealed.Descriptor) { d.Config.Mode = "exec" },
		"argv 0":               func(d *sealed.Descriptor) { d.Config.Argv = []string{""} },
		"argv":                 func(d *sealed.Descriptor) { d.Config.Argv = make([]string, 65) },
		"upstream":             func(d *sealed.Descriptor) { d.Config.Upstream = "http://10.0.0.1:80" },
		"bundle mount":         func(d *sealed.Descriptor) { d.Config.BundleMount = "/a/../b" },
		"exec timeout":         func(d *sealed.Descriptor) { d.Config.ExecMS = 1 << 40 },
		"resources: memory":    func(d *sealed.Descriptor) { d.Config.Resources.MemoryBytes = 1 << 60 },
		"labels":               func(d *sealed.Descriptor) { d.Config.Labels = map[string]string{"": "x"} },
		"any caller":           func(d *sealed.Descriptor) { d.Config.Policy.AnyCaller = true },
		"not ascending":        func(d *sealed.Descriptor) { slices.Reverse(d.Config.Policy.Callers) },
		"attestation":          func(d *sealed.Descriptor) { d.Config.Policy.Attestation = []string{"tpm", "tpm"} },
		"max in flight":        func(d *sealed.Descriptor) { d.Config.MaxInFlight = 1 << 20 },
	} {
		d := fullDescriptor(t)
		change(d)
		if _, err := d.Sign(rand.Reader, owner); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error that names %q, got %v", want, err)
		}
	}
	for _, up := range []string{"", "http://127.0.0.1:0", "http://127.0.0.1:65536", "http://127.0.0.1:080", "http://127.0.0.1", "http://127.0.0.1:80/", "http://localhost:80", "http://127.0.0.1:80@evil"} {
		d := fullDescriptor(t)
		d.Config.Upstream = up
		if d.Validate() == nil {
			t.Errorf("upstream %q was taken", up)
		}
	}
}

func TestRotationKeepsTheRevision(t *testing.T) {
	d, rotated, changed := fullDescriptor(t), fullDescriptor(t), fullDescriptor(t)
	rotated.Decryption, rotated.Sequence, rotated.ImageRef = rotated.Decryption[1:], 8, "elsewhere"
	changed.Config.ExecMS++
	revision := func(d *sealed.Descriptor) sealed.Digest {
		r, err := d.Revision()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if revision(d) != revision(rotated) || revision(d) == revision(changed) {
		t.Fatal("a rotation changes the revision, or a change of configuration does not")
	}
	if err := rotated.Follows(d); err != nil {
		t.Error(err)
	}
	for name, err := range map[string]error{"older": d.Follows(rotated), "same sequence, other revision": changed.Follows(d)} {
		if err == nil || !strings.Contains(err.Error(), "sequence") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestKeyAtPicksTheLongestLiving(t *testing.T) {
	d := fullDescriptor(t)
	for at, want := range map[int64]int{1_799_990_000: 0, 1_800_040_000: 0, 1_800_050_000: 1, 1_800_090_000: 1, 1_800_190_000: 1} {
		if k, err := d.KeyAt(time.Unix(at, 0)); err != nil || k != d.Decryption[want].Key {
			t.Errorf("at %d: another key than %d, %v", at, want, err)
		}
	}
	for _, at := range []int64{-1, 0, 1_799_989_999, 1_800_190_001} {
		if _, err := d.KeyAt(time.Unix(at, 0)); err == nil {
			t.Errorf("at %d: a key that is not live", at)
		}
	}
}

// A caller of this release must not seal with a suite that the owner left out.
func TestKeyAtOffersNoSuiteThatTheOwnerLeftOut(t *testing.T) {
	d := fullDescriptor(t)
	d.Suites = []uint16{2, 3}
	if err := d.Validate(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.KeyAt(time.Unix(1_800_050_000, 0)); err == nil || !strings.Contains(err.Error(), "suites") {
		t.Errorf("error %v", err)
	}
}

func TestPolicyAdmitsWhomItNames(t *testing.T) {
	a, b := sealed.Fingerprint{1}, sealed.Fingerprint{2}
	if (&sealed.Policy{}).AllowSender(a) {
		t.Error("an empty policy admits somebody")
	}
	if p := (&sealed.Policy{Callers: []sealed.Fingerprint{a}}); !p.AllowSender(a) || p.AllowSender(b) {
		t.Error("a list admits others, or not its own")
	}
	if !(&sealed.Policy{AnyCaller: true}).AllowSender(b) {
		t.Error("any caller is not admitted")
	}
}

func FuzzParseDescriptor(f *testing.F) {
	owner := newKey(f, "owner sign")
	for _, d := range []*sealed.Descriptor{fullDescriptor(f), smallDescriptor(f)} {
		b, err := d.Sign(nil, owner)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := sealed.ParseDescriptor(b)
		if err != nil {
			return
		}
		// What parses has one encoding, up to the owner and the signature.
		again, err := s.Unverified().Sign(nil, owner)
		if err != nil {
			return // the fuzzer made our owner's key one of the function's
		}
		size := 8 + int(binary.BigEndian.Uint32(b[4:]))
		if !bytes.HasPrefix(again, b[:size]) {
			t.Fatalf("%x encodes as %x", b, again)
		}
	})
}
