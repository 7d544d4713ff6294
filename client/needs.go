package client

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/manifest"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// Needs is what one task asks for beyond its function's defaults. It is sealed to
// the cluster's manifest key: nobody on the way reads it. A zero field is the
// function's default; what the function's owner does not allow is refused with
// api.CodeExceedsBounds and the field's name.
type Needs struct {
	manifest.Needs
	Deadline time.Time // by which the task must have ended
	Priority int       // 1 to 9, 9 before all others
	Retry    manifest.Retry
	Task     sealed.ID // zero: one is drawn; a task of one id is run once
}

// NeedNames are the names of what can be asked for, as flags, files and headers
// have them.
func NeedNames() []string {
	return []string{"cpu", "memory", "storage", "scratch", "pids", "ingress", "egress", "cores",
		"port", "allow", "require", "arch", "apart", "deadline", "priority", "retry"}
}

// NeedIsList reports whether a field takes several values.
func NeedIsList(f manifest.Field) bool {
	switch f {
	case manifest.FieldPorts, manifest.FieldAllow, manifest.FieldConstraints, manifest.FieldArchitectures:
		return true
	}
	return false
}

// Set gives one field the values that people write in flags, files and headers, in
// place of those it had: "500m" for cpu, "30s" from now on for deadline, "true" for
// apart. Errors call it name; after one n is as it was.
func (n *Needs) Set(f manifest.Field, name string, values []string, now time.Time) error {
	out := *n
	if err := out.parse(f, name, values, now); err != nil {
		return err
	}
	m, err := out.manifest()
	if err == nil {
		err = m.ValidateAsked()
	}
	var e *api.Error
	if errors.As(err, &e) { // all other fields were good before
		return api.Invalid(name, e.Remedy, e.Message)
	}
	if err == nil {
		*n = out
	}
	return err
}

func (n *Needs) parse(f manifest.Field, name string, values []string, now time.Time) (err error) {
	switch f {
	case manifest.FieldPorts:
		n.Ports, err = parseAll(name, values, manifest.ParsePort)
	case manifest.FieldAllow:
		n.Allow, err = parseAll(name, values, manifest.ParseReach)
	case manifest.FieldConstraints:
		n.Constraints, err = parseAll(name, values, manifest.ParseRequirement)
	case manifest.FieldArchitectures:
		n.Architectures = slices.Clone(values)
	default:
		if len(values) != 1 {
			return api.Invalid(name, "give it once", fmt.Sprintf("it has %d values", len(values)))
		}
		return n.parseOne(f, name, values[0], now)
	}
	if err == nil && len(values) == 0 {
		err = api.Invalid(name, "give one value or more, or leave it out", "it is empty")
	}
	return err
}

func (n *Needs) parseOne(f manifest.Field, name, s string, now time.Time) (err error) {
	switch f {
	case manifest.FieldAntiAffinity:
		switch s {
		case "true":
			n.AntiAffinity = manifest.ReplicasApart
		case "false":
			n.AntiAffinity = manifest.AffinityNone
		default:
			return api.Invalid(name, "write true or false", fmt.Sprintf("%q is neither", s))
		}
	case manifest.FieldDeadline:
		d, err := time.ParseDuration(s)
		if err != nil || d <= 0 {
			return api.Invalid(name, "give a time such as 30s", fmt.Sprintf("%q is no time to come", s))
		}
		n.Deadline = now.Add(d)
	case manifest.FieldPriority:
		v, err := manifest.ParseNumber(f, name, s)
		if err != nil || v > manifest.MaxPriority {
			return api.Invalid(name, "choose 1 to 9", fmt.Sprintf("%q is out of range", s))
		}
		n.Priority = int(v)
	case manifest.FieldRetry:
		n.Retry, err = manifest.ParseRetry(name, s)
	default:
		var v uint64
		if v, err = manifest.ParseNumber(f, name, s); err == nil {
			n.SetNumber(f, v)
		}
	}
	return err
}

func parseAll[T any](name string, list []string, parse func(name, s string) (T, error)) ([]T, error) {
	var out []T
	for _, s := range list {
		v, err := parse(name, s)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// manifest is n in the form that is sealed, without suite and revision.
func (n *Needs) manifest() (*manifest.Manifest, error) {
	if n.Priority < 0 || n.Priority > manifest.MaxPriority {
		return nil, api.Invalid("priority", "choose 1 to 9", fmt.Sprintf("%d is out of range", n.Priority))
	}
	m := &manifest.Manifest{Task: n.Task, Needs: n.Needs, Priority: uint8(n.Priority), Retry: n.Retry}
	if !n.Deadline.IsZero() {
		m.DeadlineMS = uint64(max(n.Deadline.UnixMilli(), 1))
	}
	m.Needs.Architectures = slices.Sorted(slices.Values(m.Needs.Architectures))
	m.Retry.Codes = slices.Sorted(slices.Values(m.Retry.Codes))
	return m, nil
}
