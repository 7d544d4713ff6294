package stack

import (
	"errors"
	"fmt"
	"slices"

	"go.yaml.in/yaml/v3"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/manifest"
)

// Needs is what function.yml says of manifests: sealed at deployment, so that
// neither it nor what tasks ask for is in the clear anywhere.
type Needs struct {
	Bounds manifest.Bounds // without suite, revision and initiators
	Listed []string        // initiators besides the owner: fingerprints, 64 hex digits
}

var (
	needsNumbers = []string{"cpu", "memory", "storage", "scratch", "pids", "ingress", "egress", "cores"}
	needsFields  = append(slices.Clone(needsNumbers), "ports", "allow", "require", "arch", "apart", "priority", "retry")
	maxFields    = append(slices.Clone(needsNumbers), "ports", "allow", "priority", "attempts")
)

func (p *parser) needs(n *yaml.Node, field string) (*Needs, error) {
	entries, err := p.mapping(n, field, []string{"default", "max", "overridable", "initiators"})
	if err != nil {
		return nil, err
	}
	out := &Needs{}
	for _, e := range entries {
		switch e.key {
		case "default":
			err = p.needsDefault(&out.Bounds, e)
		case "max":
			err = p.needsMax(&out.Bounds.Max, e)
		case "overridable":
			err = p.overridable(&out.Bounds, e)
		case "initiators":
			err = p.initiators(out, e)
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (p *parser) needsDefault(b *manifest.Bounds, at pair) error {
	entries, err := p.mapping(at.node, at.field, needsFields)
	if err != nil {
		return err
	}
	for _, e := range entries {
		switch e.key {
		case "ports":
			b.Default.Ports, err = each(p, e, manifest.ParsePort)
		case "allow":
			b.Default.Allow, err = each(p, e, manifest.ParseReach)
		case "require":
			b.Default.Constraints, err = each(p, e, manifest.ParseRequirement)
		case "arch":
			b.Default.Architectures, _, err = p.list(e.node, e.field, true)
			slices.Sort(b.Default.Architectures)
		case "apart":
			var v string
			if v, err = p.choice(e.node, e.field, "true", "false"); v == "true" {
				b.Default.AntiAffinity = manifest.ReplicasApart
			}
		case "priority":
			var v int
			v, err = p.count(e.node, e.field, 1, 9)
			b.Priority = uint8(v)
		case "retry":
			b.Retry, err = one(p, e, manifest.ParseRetry)
		default:
			var v uint64
			var f manifest.Field
			if f, v, err = p.needsNumber(e); err == nil {
				b.Default.SetNumber(f, v)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *parser) needsMax(m *manifest.Max, at pair) error {
	entries, err := p.mapping(at.node, at.field, maxFields)
	if err != nil {
		return err
	}
	for _, e := range entries {
		var v int
		switch e.key {
		case "ports":
			v, err = p.count(e.node, e.field, 1, 64)
			m.Ports = uint64(v)
		case "allow":
			m.Allow, err = each(p, e, manifest.ParseReach)
		case "priority":
			v, err = p.count(e.node, e.field, 1, 9)
			m.Priority = uint8(v)
		case "attempts":
			v, err = p.count(e.node, e.field, 1, 10)
			m.Attempts = uint8(v)
		default:
			var f manifest.Field
			var v uint64
			if f, v, err = p.needsNumber(e); err == nil {
				*map[manifest.Field]*uint64{manifest.FieldCPU: &m.CPUMillis, manifest.FieldMemory: &m.MemoryBytes, manifest.FieldStorage: &m.StorageBytes,
					manifest.FieldScratch: &m.ScratchBytes, manifest.FieldPIDs: &m.PIDs, manifest.FieldIngress: &m.IngressBPS, manifest.FieldEgress: &m.EgressBPS,
					manifest.FieldCores: &m.Cores}[f] = v
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *parser) needsNumber(e pair) (manifest.Field, uint64, error) {
	f, err := manifest.ParseField(e.field, e.key)
	if err != nil {
		return 0, 0, err
	}
	v, err := one(p, e, func(name, s string) (uint64, error) { return manifest.ParseNumber(f, name, s) })
	return f, v, err
}

func (p *parser) overridable(b *manifest.Bounds, e pair) (err error) {
	if b.Overridable, err = each(p, e, manifest.ParseField); err != nil {
		return err
	}
	slices.Sort(b.Overridable)
	b.Overridable = slices.Compact(b.Overridable)
	return nil
}

func (p *parser) initiators(out *Needs, e pair) error {
	c, err := p.callers(e.node, e.field)
	if err != nil {
		return err
	}
	out.Bounds.AnyInitiator, out.Listed = c.Any, c.Listed // the owner always may
	return nil
}

// one parses a text, and says where it stands if it does not parse.
func one[T any](p *parser, e pair, parse func(name, s string) (T, error)) (T, error) {
	s, err := p.text(e.node, e.field)
	if err != nil {
		var none T
		return none, err
	}
	v, err := parse(e.field, s)
	return v, p.located(e.node, e.field, err)
}

// each parses a list of texts.
func each[T any](p *parser, e pair, parse func(name, s string) (T, error)) ([]T, error) {
	list, nodes, err := p.list(e.node, e.field, true)
	if err != nil {
		return nil, err
	}
	out := make([]T, 0, len(list))
	for i, s := range list {
		at := fmt.Sprintf("%s[%d]", e.field, i)
		v, err := parse(at, s)
		if err != nil {
			return nil, p.located(nodes[i], at, err)
		}
		out = append(out, v)
	}
	return out, nil
}

func (p *parser) located(n *yaml.Node, field string, err error) error {
	var e *api.Error
	if errors.As(err, &e) {
		return p.at(resolve(n), field, e.Remedy, "%s", e.Message)
	}
	return err
}
