package manifest

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

func full() *Manifest {
	return &Manifest{Task: sealed.ID{1}, Suite: 1, Revision: sealed.Digest{2}, DeadlineMS: 1_800_000_000_000, Priority: 9,
		Needs: Needs{CPUMillis: 1500, MemoryBytes: 1 << 30, StorageBytes: 1 << 31, ScratchBytes: 1 << 32, PIDs: 100,
			IngressBPS: 1e9, EgressBPS: 2e9, Ports: []Port{{TCP, 8080, 1}, {UDP, 0, 3}},
			Constraints:   []Requirement{{"zone", Equals, "a"}, {"gpu", Exists, ""}, {"spot", Absent, ""}, {"disk", Differs, "hdd"}},
			Architectures: []string{"amd64", "arm64"}, AntiAffinity: ReplicasApart},
		Retry: Retry{3, []string{"node_lost", "oom_killed"}, true}}
}

func bounds() *Bounds {
	return &Bounds{Suite: 1, Revision: sealed.Digest{2}, Default: Needs{CPUMillis: 500, MemoryBytes: 1 << 28, Ports: []Port{{TCP, 0, 1}},
		Constraints: []Requirement{{"zone", Equals, "a"}}, Architectures: []string{"amd64", "arm64"}}, Priority: 2, Retry: Retry{MaxAttempts: 2},
		Max:         Max{CPUMillis: 2000, MemoryBytes: 1 << 30, Ports: 4, Priority: 5, Attempts: 4},
		Overridable: []Field{FieldCPU, FieldMemory, FieldPIDs, FieldPorts, FieldConstraints, FieldArchitectures, FieldAntiAffinity, FieldDeadline, FieldPriority, FieldRetry},
		Initiators:  []sealed.Fingerprint{{1}, {2}}}
}

var web = Reach{TCP, 10 << 24, 8, 443, 443}

// allowing is full with a list of what may be opened, which takes version 2.
func allowing() *Manifest {
	m := full()
	m.Needs.Allow = []Reach{web, {UDP, 0, 0, 1, 65535}}
	return m
}

func boundsAllowing() *Bounds {
	b := bounds()
	b.Default.Allow, b.Max.Allow = []Reach{web}, []Reach{{TCP, 192 << 24, 8, 1, 1024}}
	b.Overridable = append(b.Overridable, FieldAllow)
	return b
}

// What may be opened and cores of a task's own came with version 2. What has none of
// these is version 1, as it was, and neither is read as the other.
func TestVersionTwoIsForWhatVersionOneLacks(t *testing.T) {
	pinned := full()
	pinned.Needs.Cores = 2
	for _, m := range []*Manifest{full(), allowing(), pinned} {
		b, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		want := byte(2)
		if len(m.Needs.Allow) == 0 && m.Needs.Cores == 0 {
			want = 1
		}
		if b[2] != want {
			t.Errorf("version %d, want %d", b[2], want)
		}
		b[2] = 3 - want
		if _, err := Decode(b); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("version %d of what is version %d: %v", b[2], want, err)
		}
	}
	for i, edit := range []func(*Bounds){func(b *Bounds) { b.Default.Allow = nil; b.Max.Allow = nil }, func(b *Bounds) { b.Max.Allow, b.Overridable = nil, nil }, func(b *Bounds) { b.Default.Allow, b.Overridable = nil, nil },
		func(b *Bounds) { *b = *bounds(); b.Default.Cores, b.Max.Cores = 1, 2 }, func(b *Bounds) { *b = *bounds(); b.Max.Cores = 2 }, func(b *Bounds) { *b = *bounds(); b.Overridable = []Field{FieldCores} }} {
		bo := boundsAllowing()
		edit(bo)
		b, err := bo.Encode()
		if err != nil || b[2] != 2 {
			t.Fatalf("%d: %v", i, err)
		}
		if got, err := DecodeBounds(b); err != nil || !reflect.DeepEqual(got.Max, bo.Max) {
			t.Errorf("%d: %+v, %v", i, got, err)
		}
		b[2] = 1
		if _, err := DecodeBounds(b); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%d as version 1: %v", i, err)
		}
	}
	m := &Manifest{Suite: 1, Revision: sealed.Digest{1}, Needs: Needs{Allow: []Reach{web}}}
	b, err := m.Encode()
	if want := "\x0b\x00\x0c\x81\xa5\x01\x01\x02\x1a\x0a\x00\x00\x00\x03\x08\x04\x19\x01\xbb\x05\x19\x01\xbb\x07\x00"; err != nil || !bytes.Contains(b, []byte(want)) {
		t.Errorf("%x, %v", b, err)
	}
	m.Needs = Needs{Cores: 2}
	if b, err = m.Encode(); err != nil || !bytes.Contains(b, []byte("\x0b\x00\x0d\x02\x07\x00")) {
		t.Errorf("%x, %v", b, err)
	}
	m.Needs.Cores = MaxCores + 1
	if err := m.Validate(); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("%d cores: %v", m.Needs.Cores, err)
	}
	if got := web.Reach().String(); got != "10.0.0.0/8:443/tcp" {
		t.Error(got)
	}
	if r, err := ParseReach("x", "10.0.0.0/8:443/tcp"); err != nil || r != web {
		t.Errorf("%v, %v", r, err)
	}
}

func TestManifestsAndBoundsComeBackAsTheyWere(t *testing.T) {
	for _, m := range []*Manifest{full(), allowing(), {Suite: 1, Revision: sealed.Digest{1}}} {
		b, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		again, err := got.Encode()
		if err != nil || !bytes.Equal(again, b) || m.Priority == 9 && !reflect.DeepEqual(got, m) {
			t.Errorf("%+v came back as %+v, %v", m, got, err)
		}
		if _, err := DecodeBounds(b); err == nil {
			t.Error("a manifest was taken for bounds")
		}
	}
	b, err := bounds().Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeBounds(b)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := got.Encode(); err != nil || !bytes.Equal(again, b) || !reflect.DeepEqual(got.Overridable, bounds().Overridable) {
		t.Errorf("bounds came back as %+v, %v", got, err)
	}
	if _, err := Decode(b); err == nil {
		t.Error("bounds were taken for a manifest")
	}
}

// TestEncodingIsTheDocumented holds the encoding to bytes written down by hand.
func TestEncodingIsTheDocumented(t *testing.T) {
	m := &Manifest{Task: sealed.ID{0xaa}, Suite: 1, Revision: sealed.Digest{0xbb}, Needs: Needs{CPUMillis: 500, Ports: []Port{{TCP, 80, 1}}}}
	got, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	want := "\xa9\x01\x01\x02\x01\x03\x50\xaa" + strings.Repeat("\x00", 15) + "\x04\x01\x05\x58\x20\xbb" + strings.Repeat("\x00", 31) +
		"\x06\xab\x01\x19\x01\xf4\x02\x00\x03\x00\x04\x00\x05\x00\x06\x00\x07\x00\x08\x81\xa3\x01\x01\x02\x18\x50\x03\x01\x09\x80\x0a\x80\x0b\x00" +
		"\x07\x00\x08\x00\x09\xa3\x01\x00\x02\x80\x03\xf4"
	if string(got) != want {
		t.Errorf("%x, want %x", got, want)
	}
}

func TestEveryFieldHasItsBounds(t *testing.T) {
	many := func(n int) (list []Requirement) {
		for i := range n {
			list = append(list, Requirement{strings.Repeat("k", i+1), Exists, ""})
		}
		return list
	}
	for _, c := range []struct {
		field string
		edit  func(*Manifest)
	}{
		{"suite", func(m *Manifest) { m.Suite = 2 }},
		{"revision", func(m *Manifest) { m.Revision = sealed.Digest{} }},
		{"cpu", func(m *Manifest) { m.Needs.CPUMillis = MaxCPUMillis + 1 }},
		{"memory", func(m *Manifest) { m.Needs.MemoryBytes = MaxBytes + 1 }},
		{"storage", func(m *Manifest) { m.Needs.StorageBytes = ^uint64(0) }},
		{"scratch", func(m *Manifest) { m.Needs.ScratchBytes = MaxBytes + 1 }},
		{"pids", func(m *Manifest) { m.Needs.PIDs = MaxPIDs + 1 }},
		{"ingress", func(m *Manifest) { m.Needs.IngressBPS = MaxBPS + 1 }},
		{"egress", func(m *Manifest) { m.Needs.EgressBPS = MaxBPS + 1 }},
		{"ports", func(m *Manifest) { m.Needs.Ports = make([]Port, MaxPortEntries+1) }},
		{"ports", func(m *Manifest) { m.Needs.Ports = []Port{{0, 0, 1}} }},
		{"ports", func(m *Manifest) { m.Needs.Ports = []Port{{TCP, 0, 0}} }},
		{"ports", func(m *Manifest) { m.Needs.Ports = []Port{{TCP, 80, 2}} }},
		{"ports", func(m *Manifest) { m.Needs.Ports = []Port{{TCP, 80, 1}, {TCP, 80, 1}} }},
		{"ports", func(m *Manifest) { m.Needs.Ports = []Port{{TCP, 0, 60}, {UDP, 0, 5}} }},
		{"constraints", func(m *Manifest) { m.Needs.Constraints = many(MaxConstraints + 1) }},
		{"constraints", func(m *Manifest) { m.Needs.Constraints = []Requirement{{"", Exists, ""}} }},
		{"constraints", func(m *Manifest) {
			m.Needs.Constraints = []Requirement{{strings.Repeat("k", MaxLabel+1), Exists, ""}}
		}},
		{"constraints", func(m *Manifest) { m.Needs.Constraints = []Requirement{{"k", Equals, "\x00"}} }},
		{"constraints", func(m *Manifest) { m.Needs.Constraints = []Requirement{{"k", 0, ""}} }},
		{"constraints", func(m *Manifest) { m.Needs.Constraints = []Requirement{{"k", 5, ""}} }},
		{"constraints", func(m *Manifest) { m.Needs.Constraints = []Requirement{{"k", Exists, "v"}} }},
		{"constraints", func(m *Manifest) { m.Needs.Constraints = append(many(1), many(1)...) }},
		{"architectures", func(m *Manifest) { m.Needs.Architectures = []string{"arm64", "amd64"} }},
		{"architectures", func(m *Manifest) { m.Needs.Architectures = []string{"AMD"} }},
		{"architectures", func(m *Manifest) { m.Needs.Architectures = []string{""} }},
		{"anti_affinity", func(m *Manifest) { m.Needs.AntiAffinity = 3 }},
		{"allow", func(m *Manifest) { m.Needs.Allow = []Reach{{3, 0, 0, 1, 1}} }},
		{"allow", func(m *Manifest) { m.Needs.Allow = []Reach{{TCP, 10<<24 + 1, 8, 1, 1}} }},
		{"allow", func(m *Manifest) { m.Needs.Allow = []Reach{{TCP, 0, 33, 1, 1}} }},
		{"allow", func(m *Manifest) { m.Needs.Allow = []Reach{{TCP, 0, 0, 0, 1}} }},
		{"allow", func(m *Manifest) { m.Needs.Allow = []Reach{{TCP, 0, 0, 2, 1}} }},
		{"allow", func(m *Manifest) { m.Needs.Allow = []Reach{web, web} }},
		{"allow", func(m *Manifest) { m.Needs.Allow = make([]Reach, api.MaxReach+1) }},
		{"deadline", func(m *Manifest) { m.DeadlineMS = MaxDeadlineMS + 1 }},
		{"priority", func(m *Manifest) { m.Priority = 10 }},
		{"retry", func(m *Manifest) { m.Retry.MaxAttempts = 11 }},
		{"retry", func(m *Manifest) { m.Retry = Retry{AfterNodeDeath: true} }},
		{"retry", func(m *Manifest) { m.Retry.Codes = []string{"b", "a"} }},
		{"retry", func(m *Manifest) { m.Retry.Codes = []string{"no-dash"} }},
	} {
		m := full()
		c.edit(m)
		_, err := m.Encode()
		var e *api.Error
		if !errors.As(err, &e) || e.Code != api.CodeInvalid || e.Field != c.field || e.Remedy == "" {
			t.Errorf("%s: %v", c.field, err)
		}
	}
	for _, c := range []struct {
		field string
		edit  func(*Bounds)
	}{
		{"suite", func(b *Bounds) { b.Suite = 0 }},
		{"cpu", func(b *Bounds) { b.Default.CPUMillis = MaxCPUMillis + 1 }},
		{"max cpu", func(b *Bounds) { b.Max.CPUMillis = 499 }},
		{"max memory", func(b *Bounds) { b.Max.MemoryBytes = MaxBytes + 1 }},
		{"max ports", func(b *Bounds) { b.Max.Ports = MaxPorts + 1 }},
		{"max priority", func(b *Bounds) { b.Priority = 10 }},
		{"max retry", func(b *Bounds) { b.Max.Attempts = 1 }},
		{"max allow", func(b *Bounds) { b.Max.Allow = []Reach{{TCP, 1, 0, 1, 1}} }},
		{"overridable", func(b *Bounds) { b.Overridable = []Field{fieldEnd} }},
		{"overridable", func(b *Bounds) { b.Overridable = []Field{0} }},
		{"overridable", func(b *Bounds) { b.Overridable = []Field{2, 1} }},
		{"initiators", func(b *Bounds) { b.AnyInitiator = true }},
		{"initiators", func(b *Bounds) { b.Initiators = []sealed.Fingerprint{{2}, {1}} }},
		{"initiators", func(b *Bounds) { b.Initiators = make([]sealed.Fingerprint, MaxInitiators+1) }},
	} {
		b := bounds()
		c.edit(b)
		_, err := b.Encode()
		var e *api.Error
		if !errors.As(err, &e) || e.Code != api.CodeInvalid || e.Field != c.field || e.Remedy == "" {
			t.Errorf("bounds: %s: %v", c.field, err)
		}
	}
}

func TestHostileEncodingsAreRefused(t *testing.T) {
	good, err := full().Encode()
	if err != nil {
		t.Fatal(err)
	}
	edit := func(at int, with ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[at:], with)
		return b
	}
	long := append([]byte("\xa9\x01\x01\x02\x01\x03\x50"), good[7:]...)
	for name, b := range map[string][]byte{
		"nothing": {}, "cut": good[:len(good)-1], "goes on": append(bytes.Clone(good), 0), "version 2": edit(2, 2), "version 3": edit(2, 3), "kind 2": edit(4, 2), "kind 3": edit(4, 3),
		"fewer pairs": edit(0, 0xa8), "more pairs": edit(0, 0xaa), "array": edit(0, 0x89), "repeated key": edit(3, 1), "indefinite": edit(0, 0xbf),
		"long form":     append(append(bytes.Clone(long[:24]), 0x18, 0x01), long[25:]...)[:len(long)],
		"unordered":     edit(1, 2, 1, 1, 1),
		"negative":      edit(24, 0x20),
		"tag":           edit(24, 0xc1),
		"float":         edit(24, 0xf9, 0x3c, 0x00),
		"null":          edit(24, 0xf6),
		"too long":      make([]byte, MaxEncoded+1),
		"deep":          append([]byte("\xa9\x01\x01\x02\x01\x03"), bytes.Repeat([]byte{0x81}, 10000)...),
		"claims a lot":  append([]byte("\xa9\x01\x01\x02\x01\x03"), 0x5b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff),
		"short task id": append([]byte("\xa9\x01\x01\x02\x01\x03\x4f"), good[8:]...),
	} {
		if m, err := Decode(b); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
	// An unknown key, everything else in order.
	var doc map[int]any
	if err := cbor.Unmarshal(good, &doc); err != nil {
		t.Fatal(err)
	}
	doc[10] = 1
	mode, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		t.Fatal(err)
	}
	b, err := mode.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(b); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("an unknown key: %v", err)
	}
	delete(doc, 10)
	if b, err = mode.Marshal(doc); err != nil || !bytes.Equal(b, good) {
		t.Errorf("another implementation encodes it differently: %v", err)
	}
	delete(doc, 7)
	if b, err = mode.Marshal(doc); err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(b); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("a missing key: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, m := range []*Manifest{full(), allowing(), {Suite: 1, Revision: sealed.Digest{1}}} {
		b, err := m.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	b, err := boundsAllowing().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, in []byte) {
		if m, err := Decode(in); err == nil {
			if again, err := m.Encode(); err != nil || !bytes.Equal(again, in) {
				t.Fatalf("%x was read as %x, %v", in, again, err)
			}
		}
		if b, err := DecodeBounds(in); err == nil {
			if again, err := b.Encode(); err != nil || !bytes.Equal(again, in) {
				t.Fatalf("%x was read as %x, %v", in, again, err)
			}
		}
	})
}
