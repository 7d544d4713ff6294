package stack

import (
	"fmt"

	"go.yaml.in/yaml/v3"

	"github.com/faasd-sec/faasd-sec/api"
)

// scale reads how many replicas a function is to have. Its fields are those of the
// labels com.openfaas.scale.*, by their last parts.
func (p *parser) scale(n *yaml.Node, field string) (*api.Scale, error) {
	known := api.ScaleFields()
	entries, err := p.mapping(n, field, known)
	if err != nil {
		return nil, err
	}
	values := make(map[string]string, len(entries))
	for _, e := range entries {
		if values[e.key], err = p.text(e.node, e.field); err != nil {
			return nil, err
		}
	}
	s, err := api.ParseScale(values, func(key string) string { return key })
	if err == nil {
		return &s, nil
	}
	a := asAPI(err)
	for _, e := range entries {
		if e.key == a.Field {
			return nil, p.at(resolve(e.node), e.field, a.Remedy, "%s", a.Message)
		}
	}
	return nil, p.at(resolve(n), field, a.Remedy, "%s", a.Message)
}

// scaleLabels reads the same from labels, as OpenFaaS has it.
func (p *parser) scaleLabels(labels map[string]string, at pair) (*api.Scale, error) {
	s, err := api.ScaleOf(labels)
	if err != nil {
		a := asAPI(err)
		return nil, p.at(resolve(at.node), fmt.Sprintf("%s.%s", at.field, a.Field), a.Remedy, "%s", a.Message)
	}
	return s, nil
}
