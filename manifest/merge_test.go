package manifest

import (
	"errors"
	"reflect"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

func TestMergeKeepsToTheOwnersBounds(t *testing.T) {
	fixed := func(b *Bounds) { b.Overridable = nil }
	lists := func(b *Bounds) { *b = *boundsAllowing(); b.Default.IngressBPS, b.Default.EgressBPS = 1e6, 1e6 }
	cores := func(b *Bounds) { b.Overridable, b.Max.Cores = append(b.Overridable, FieldCores), 2 }
	for _, c := range []struct {
		name   string
		bounds func(*Bounds)
		wish   func(*Manifest)
		field  string // at fault, or empty
		want   func(*Manifest)
	}{
		{"nothing asked", nil, func(*Manifest) {}, "", func(*Manifest) {}},
		{"the default itself, fixed", fixed, func(m *Manifest) { m.Needs.CPUMillis = 500 }, "", func(*Manifest) {}},
		{"less", nil, func(m *Manifest) { m.Needs.CPUMillis = 100 }, "", func(m *Manifest) { m.Needs.CPUMillis = 100 }},
		{"the most", nil, func(m *Manifest) { m.Needs.CPUMillis = 2000 }, "", func(m *Manifest) { m.Needs.CPUMillis = 2000 }},
		{"beyond", nil, func(m *Manifest) { m.Needs.CPUMillis = 2001 }, "cpu", nil},
		{"fixed", fixed, func(m *Manifest) { m.Needs.CPUMillis = 499 }, "cpu", nil},
		{"memory beyond", nil, func(m *Manifest) { m.Needs.MemoryBytes = 1<<30 + 1 }, "memory", nil},
		{"no maximum", nil, func(m *Manifest) { m.Needs.PIDs = 1 }, "pids", nil},
		{"storage fixed", nil, func(m *Manifest) { m.Needs.StorageBytes = 1 }, "storage", nil},
		{"scratch fixed", nil, func(m *Manifest) { m.Needs.ScratchBytes = 1 }, "scratch", nil},
		{"ingress fixed", nil, func(m *Manifest) { m.Needs.IngressBPS = 1 }, "ingress", nil},
		{"egress fixed", nil, func(m *Manifest) { m.Needs.EgressBPS = 1 }, "egress", nil},
		{"ports", nil, func(m *Manifest) { m.Needs.Ports = []Port{{UDP, 53, 1}} }, "", func(m *Manifest) { m.Needs.Ports = []Port{{UDP, 53, 1}} }},
		{"ports beyond", nil, func(m *Manifest) { m.Needs.Ports = []Port{{UDP, 0, 5}} }, "ports", nil},
		{"ports fixed", fixed, func(m *Manifest) { m.Needs.Ports = []Port{{UDP, 0, 1}} }, "ports", nil},
		{"a constraint is added", nil, func(m *Manifest) { m.Needs.Constraints = []Requirement{{"gpu", Exists, ""}, {"zone", Equals, "a"}} }, "",
			func(m *Manifest) {
				m.Needs.Constraints = []Requirement{{"zone", Equals, "a"}, {"gpu", Exists, ""}}
			}},
		{"constraints fixed", fixed, func(m *Manifest) { m.Needs.Constraints = []Requirement{{"gpu", Exists, ""}} }, "constraints", nil},
		{"narrower architecture", nil, func(m *Manifest) { m.Needs.Architectures = []string{"arm64"} }, "", func(m *Manifest) { m.Needs.Architectures = []string{"arm64"} }},
		{"wider architecture", nil, func(m *Manifest) { m.Needs.Architectures = []string{"arm64", "riscv64"} }, "architectures", nil},
		{"architecture fixed", fixed, func(m *Manifest) { m.Needs.Architectures = []string{"arm64"} }, "architectures", nil},
		{"apart", nil, func(m *Manifest) { m.Needs.AntiAffinity = ReplicasApart }, "", func(m *Manifest) { m.Needs.AntiAffinity = ReplicasApart }},
		{"apart, fixed", fixed, func(m *Manifest) { m.Needs.AntiAffinity = ReplicasApart }, "anti_affinity", nil},
		{"deadline", nil, func(m *Manifest) { m.DeadlineMS = 7 }, "", func(m *Manifest) { m.DeadlineMS = 7 }},
		{"deadline fixed", fixed, func(m *Manifest) { m.DeadlineMS = 7 }, "deadline", nil},
		{"priority", nil, func(m *Manifest) { m.Priority = 5 }, "", func(m *Manifest) { m.Priority = 5 }},
		{"priority beyond", nil, func(m *Manifest) { m.Priority = 6 }, "priority", nil},
		{"priority fixed", fixed, func(m *Manifest) { m.Priority = 1 }, "priority", nil},
		{"allow nothing beyond the default", nil, func(m *Manifest) { m.Needs.Allow = []Reach{web} }, "allow", nil},
		{"the default list, fixed", func(b *Bounds) { fixed(b); b.Default.Allow = []Reach{web} }, func(m *Manifest) { m.Needs.Allow = []Reach{web} }, "", func(*Manifest) {}},
		{"allow, fixed", func(b *Bounds) { b.Default.Allow = []Reach{web} }, func(m *Manifest) { m.Needs.Allow = []Reach{{TCP, 10 << 24, 9, 443, 443}} }, "allow", nil},
		{"narrower than the default list", lists, func(m *Manifest) { m.Needs.Allow = []Reach{{TCP, 10<<24 + 1, 32, 443, 443}} }, "",
			func(m *Manifest) { m.Needs.Allow = []Reach{{TCP, 10<<24 + 1, 32, 443, 443}} }},
		{"within the most", lists, func(m *Manifest) { m.Needs.Allow = []Reach{{TCP, 192<<24 + 7, 32, 80, 1024}, web} }, "",
			func(m *Manifest) { m.Needs.Allow = []Reach{{TCP, 192<<24 + 7, 32, 80, 1024}, web} }},
		{"one entry beyond", lists, func(m *Manifest) { m.Needs.Allow = []Reach{web, {TCP, 192 << 24, 8, 1, 1025}} }, "allow", nil},
		{"a wider network", lists, func(m *Manifest) { m.Needs.Allow = []Reach{{TCP, 10 << 24, 7, 443, 443}} }, "allow", nil},
		{"another protocol", lists, func(m *Manifest) { m.Needs.Allow = []Reach{{UDP, 10 << 24, 8, 443, 443}} }, "allow", nil},
		{"cores, fixed", nil, func(m *Manifest) { m.Needs.Cores = 1 }, "cores", nil},
		{"cores", cores, func(m *Manifest) { m.Needs.Cores = 2 }, "", func(m *Manifest) { m.Needs.Cores = 2 }},
		{"cores beyond", cores, func(m *Manifest) { m.Needs.Cores = 3 }, "cores", nil},
		{"retry", nil, func(m *Manifest) { m.Retry = Retry{4, []string{"node_lost"}, true} }, "", func(m *Manifest) { m.Retry = Retry{4, []string{"node_lost"}, true} }},
		{"retry beyond", nil, func(m *Manifest) { m.Retry.MaxAttempts = 5 }, "retry", nil},
		{"retry fixed", fixed, func(m *Manifest) { m.Retry = Retry{MaxAttempts: 2, AfterNodeDeath: true} }, "retry", nil},
	} {
		b, wish := networked(), &Manifest{Task: sealed.ID{9}, Suite: 1, Revision: sealed.Digest{2}}
		if c.bounds != nil {
			c.bounds(b)
		}
		c.wish(wish)
		got, err := Merge(b, wish)
		if c.field != "" {
			var e *api.Error
			if !errors.As(err, &e) || e.Code != CodeExceedsBounds || e.Field != c.field || e.Remedy == "" || e.Status() != 403 {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		want := &Manifest{Task: sealed.ID{9}, Suite: 1, Revision: sealed.Digest{2}, Needs: b.Default.clone(), Priority: 2, Retry: Retry{MaxAttempts: 2}}
		c.want(want)
		if err != nil || !reflect.DeepEqual(&got, want) {
			t.Errorf("%s: %+v, %v; want %+v", c.name, got, err, want)
		}
	}
}

func TestMergeWithoutAWishIsTheDefault(t *testing.T) {
	b := networked()
	got, err := Merge(b, nil)
	if err != nil || !reflect.DeepEqual(got.Needs, b.Default) || got.Priority != 2 || !got.Task.IsZero() {
		t.Errorf("%+v, %v", got, err)
	}
	got.Needs.Ports[0].Count = 64
	if b.Default.Ports[0].Count != 1 {
		t.Error("the merged manifest aliases the bounds")
	}
}

// networked are bounds whose default has both directions.
func networked() *Bounds {
	b := bounds()
	b.Default.IngressBPS, b.Default.EgressBPS = 1e6, 1e6
	return b
}

func TestMergeRefusesANetworkThatCarriesNothing(t *testing.T) {
	for _, c := range []struct {
		ingress, egress uint64
		ports           []Port
		field           string
	}{{0, 1e6, nil, "ingress"}, {1e6, 0, nil, "egress"}, {0, 0, []Port{{TCP, 0, 1}}, "ingress"}, {1e6, 1e6, nil, ""}, {0, 0, nil, ""}} {
		b := bounds()
		b.Default.Ports, b.Default.IngressBPS, b.Default.EgressBPS = c.ports, c.ingress, c.egress
		for _, wish := range []*Manifest{nil, {Suite: 1, Revision: sealed.Digest{2}}} {
			var e *api.Error
			if _, err := Merge(b, wish); c.field == "" && err != nil || c.field != "" && (!errors.As(err, &e) || e.Field != c.field || e.Remedy == "") {
				t.Errorf("%+v: %v", c, err)
			}
		}
	}
}

func TestMergeRefusesAnotherRevision(t *testing.T) {
	_, err := Merge(bounds(), &Manifest{Suite: 1, Revision: sealed.Digest{3}})
	if api.CodeOf(err) != api.CodeStaleRevision {
		t.Error(err)
	}
}

func TestConstraintsTogetherAreBounded(t *testing.T) {
	b, wish := bounds(), &Manifest{Suite: 1, Revision: sealed.Digest{2}}
	for i := range MaxConstraints {
		wish.Needs.Constraints = append(wish.Needs.Constraints, Requirement{string(rune('a' + i)), Exists, ""})
	}
	if _, err := Merge(b, wish); api.CodeOf(err) != CodeExceedsBounds {
		t.Error(err)
	}
}
