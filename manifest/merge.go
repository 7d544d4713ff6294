package manifest

import (
	"fmt"
	"slices"

	"github.com/faasd-sec/faasd-sec/api"
)

// Merge joins the owner's bounds and an initiator's wish, which may be nil. Both
// are valid. What the wish sets replaces the default, except that constraints are
// added to the owner's, and architectures must be among the owner's. An unset
// part is the default. A wish that sets what it may not, or beyond the maximum,
// is refused with CodeExceedsBounds and the field's name; one of another
// revision with api.CodeStaleRevision.
//
// A wish for exactly the default passes whether or not the field may be set.
func Merge(b *Bounds, wish *Manifest) (Manifest, error) {
	out := Manifest{Suite: b.Suite, Revision: b.Revision, Needs: b.Default.clone(), Priority: b.Priority, Retry: b.Retry.clone()}
	if wish == nil {
		return out, out.Needs.carries()
	}
	if wish.Revision != b.Revision {
		return Manifest{}, &api.Error{Code: api.CodeStaleRevision, Field: "revision", Message: "the manifest is for another revision than the bounds",
			Remedy: "fetch the descriptor, and seal again"}
	}
	out.Task, out.Suite = wish.Task, wish.Suite
	m := merger{b: b, out: &out}
	for _, step := range [...]func(*Manifest) error{m.numbers, m.ports, m.allow, m.where, m.policy} {
		if err := step(wish); err != nil {
			return Manifest{}, err
		}
	}
	if err := out.Needs.carries(); err != nil {
		return Manifest{}, err
	}
	return out, out.Validate()
}

// carries refuses a network that no conversation could pass: each direction needs
// the other, and ports need both.
func (n *Needs) carries() error {
	if n.IngressBPS == 0 && n.EgressBPS == 0 && len(n.Ports) == 0 {
		return nil
	}
	for _, x := range []number{{field: FieldIngress, value: n.IngressBPS}, {field: FieldEgress, value: n.EgressBPS}} {
		if x.value == 0 {
			return api.Invalid(x.field.String(), "ask for both directions, also where ports are asked for", "a network without it carries nothing")
		}
	}
	return nil
}

type merger struct {
	b   *Bounds
	out *Manifest
}

// may refuses a change of f that the owner does not allow at all.
func (m *merger) may(f Field) error {
	if slices.Contains(m.b.Overridable, f) {
		return nil
	}
	return exceeds(f, "the function's owner fixed it", "leave it out")
}

func exceeds(f Field, message, remedy string) error {
	return &api.Error{Code: CodeExceedsBounds, Field: f.String(), Message: message, Remedy: remedy}
}

// within refuses a number above the owner's maximum, or above the default where
// there is none.
func within(f Field, value, def, most uint64) error {
	if most = max(most, def); value > most {
		return exceeds(f, fmt.Sprintf("%d, the function's owner allows at most %d", value, most), "ask for less, or have the owner raise it")
	}
	return nil
}

func (m *merger) numbers(wish *Manifest) error {
	def, most := m.b.Default.numbers(), m.b.Max.numbers()
	for i, w := range wish.Needs.numbers() {
		if w.value == 0 || w.value == def[i].value {
			continue
		}
		if err := m.may(w.field); err != nil {
			return err
		}
		if err := within(w.field, w.value, def[i].value, most[i]); err != nil {
			return err
		}
		m.out.Needs.set(w.field, w.value)
	}
	return nil
}

func (m *merger) ports(wish *Manifest) error {
	want := wish.Needs.Ports
	if len(want) == 0 || slices.Equal(want, m.b.Default.Ports) {
		return nil
	}
	if err := m.may(FieldPorts); err != nil {
		return err
	}
	if err := within(FieldPorts, countPorts(want), countPorts(m.b.Default.Ports), m.b.Max.Ports); err != nil {
		return err
	}
	m.out.Needs.Ports = slices.Clone(want)
	return nil
}

// allow takes a list of which each entry is within one of the owner's.
func (m *merger) allow(wish *Manifest) error {
	want, def := wish.Needs.Allow, m.b.Default.Allow
	if len(want) == 0 || slices.Equal(want, def) {
		return nil
	}
	if err := m.may(FieldAllow); err != nil {
		return err
	}
	for i, r := range want {
		if !slices.ContainsFunc(def, r.within) && !slices.ContainsFunc(m.b.Max.Allow, r.within) {
			return exceeds(FieldAllow, fmt.Sprintf("entry %d is not within what the function's owner allows", i+1), "ask for less, or have the owner allow it")
		}
	}
	m.out.Needs.Allow = slices.Clone(want)
	return nil
}

// where narrows the choice of nodes, and never widens it.
func (m *merger) where(wish *Manifest) error {
	n := &m.out.Needs
	for _, r := range wish.Needs.Constraints {
		if slices.Contains(n.Constraints, r) {
			continue
		}
		if err := m.may(FieldConstraints); err != nil {
			return err
		}
		if len(n.Constraints) == MaxConstraints {
			return exceeds(FieldConstraints, fmt.Sprintf("more than %d together with the owner's", MaxConstraints), "ask for fewer")
		}
		n.Constraints = append(n.Constraints, r)
	}
	if a := wish.Needs.Architectures; len(a) > 0 && !slices.Equal(a, n.Architectures) {
		if err := m.may(FieldArchitectures); err != nil {
			return err
		}
		for _, s := range a {
			if len(n.Architectures) > 0 && !slices.Contains(m.b.Default.Architectures, s) {
				return exceeds(FieldArchitectures, "one is not among the owner's", "choose among the owner's")
			}
		}
		n.Architectures = slices.Clone(a)
	}
	if a := wish.Needs.AntiAffinity; a != AffinityUnset && a != n.AntiAffinity {
		if err := m.may(FieldAntiAffinity); err != nil {
			return err
		}
		n.AntiAffinity = a
	}
	return nil
}

func (m *merger) policy(wish *Manifest) error {
	if wish.DeadlineMS != 0 {
		if err := m.may(FieldDeadline); err != nil {
			return err
		}
		m.out.DeadlineMS = wish.DeadlineMS
	}
	if p := wish.Priority; p != 0 && p != m.b.Priority {
		if err := m.may(FieldPriority); err != nil {
			return err
		}
		if err := within(FieldPriority, uint64(p), uint64(m.b.Priority), uint64(m.b.Max.Priority)); err != nil {
			return err
		}
		m.out.Priority = p
	}
	if r := wish.Retry; r.MaxAttempts != 0 && !r.equal(m.b.Retry) {
		if err := m.may(FieldRetry); err != nil {
			return err
		}
		if err := within(FieldRetry, uint64(r.MaxAttempts), uint64(m.b.Retry.MaxAttempts), uint64(m.b.Max.Attempts)); err != nil {
			return err
		}
		m.out.Retry = r.clone()
	}
	return nil
}

func (r Retry) equal(o Retry) bool {
	return r.MaxAttempts == o.MaxAttempts && r.AfterNodeDeath == o.AfterNodeDeath && slices.Equal(r.Codes, o.Codes)
}

func (r Retry) clone() Retry { r.Codes = slices.Clone(r.Codes); return r }

// clone copies the lists too: what is merged aliases nothing.
func (n Needs) clone() Needs {
	n.Ports, n.Constraints, n.Architectures = slices.Clone(n.Ports), slices.Clone(n.Constraints), slices.Clone(n.Architectures)
	n.Allow = slices.Clone(n.Allow)
	return n
}
