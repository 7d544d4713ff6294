package stack

import (
	"slices"

	"go.yaml.in/yaml/v3"

	"github.com/faasd-sec/faasd-sec/api"
)

// plainField reads a field of a plain function where that differs from a sealed
// one's: what is kept is the text. It reports whether the field was one of these.
func (p *parser) plainField(fn *Function, f pair) (is bool, err error) {
	if fn.Plain == nil {
		fn.Plain = &api.Plain{}
	}
	switch f.key {
	case "sealed", "needs":
		return true, p.at(resolve(f.node), f.field, "deploy it without --plain, or remove the section", "only a sealed function has one, and --plain would unseal it")
	case "fprocess":
		fn.Plain.EnvProcess, err = p.optional(f.node, f.field)
	case "labels":
		fn.Plain.Labels, err = p.stringMap(f.node, f.field)
	case "annotations":
		fn.Plain.Annotations, err = p.stringMap(f.node, f.field)
	case "constraints":
		fn.Plain.Constraints, _, err = p.list(f.node, f.field, false)
	case "limits":
		fn.Plain.Limits, err = p.amounts(f.node, f.field)
	case "requests":
		fn.Plain.Requests, err = p.amounts(f.node, f.field)
	case "readonly_root_filesystem":
		var s string
		s, err = p.choice(f.node, f.field, "true", "false")
		fn.Plain.ReadOnlyRoot = s == "true"
	default:
		return false, nil
	}
	return true, err
}

// amounts keeps quantities as they are written.
func (p *parser) amounts(n *yaml.Node, field string) (*api.PlainAmounts, error) {
	entries, err := p.mapping(n, field, []string{"cpu", "memory"})
	if err != nil || len(entries) == 0 {
		return nil, err
	}
	a := &api.PlainAmounts{}
	for _, e := range entries {
		to := &a.CPU
		if e.key == "memory" {
			to = &a.Memory
		}
		if *to, err = p.text(e.node, e.field); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// settlePlain completes a plain function and checks it as a gateway will.
func (p *parser) settlePlain(fn *Function, e pair) error {
	if fn.Plain == nil {
		fn.Plain = &api.Plain{}
	}
	fn.Plain.Image, fn.Plain.Secrets, fn.Plain.Env = fn.Image, slices.Clone(fn.Secrets), fn.Environment
	if _, err := fn.Plain.Settle(); err != nil {
		a := asAPI(err)
		return p.at(e.node, e.field+"."+a.Field, a.Remedy, "%s", a.Message)
	}
	return nil
}
