package stack

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/faasd-sec/faasd-sec/api"
)

// parser reads one file. Its methods take the path of a field, for errors.
type parser struct {
	path     string
	lookup   func(string) (string, bool)
	plain    bool // functions are plain ones
	warnings []string
}

// pair is one entry of a mapping, in the order of the file.
type pair struct {
	key   string
	field string // full path
	node  *yaml.Node
}

func resolve(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

func null(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

// mapping returns the entries of n, refusing a key twice and, where known is not
// nil, one that is not in it. A null is an empty mapping.
func (p *parser) mapping(n *yaml.Node, field string, known []string) ([]pair, error) {
	if n = resolve(n); null(n) {
		return nil, nil
	}
	if n.Kind != yaml.MappingNode {
		return nil, p.at(n, field, "write a mapping, one \"name: value\" on each line", "want a mapping, found %s", kind(n))
	}
	out := make([]pair, 0, len(n.Content)/2)
	seen := make(map[string]int, len(n.Content)/2)
	for i := 0; i < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode {
			return nil, p.at(k, field, "write a plain name", "a field's name is %s", kind(k))
		}
		path := join(field, k.Value)
		if line, twice := seen[k.Value]; twice {
			return nil, p.at(k, path, "remove one of the two", "it stands on line %d already", line)
		}
		seen[k.Value] = k.Line
		if known != nil && !slices.Contains(known, k.Value) {
			return nil, p.unknown(k, path, known)
		}
		out = append(out, pair{key: k.Value, field: path, node: v})
	}
	return out, nil
}

func join(field, name string) string {
	if field == "" {
		return name
	}
	return field + "." + name
}

func kind(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode:
		if n.Tag == "!!null" {
			return "nothing"
		}
		return strconv.Quote(n.Value)
	default:
		return "something else"
	}
}

// text returns a scalar with its variables replaced.
func (p *parser) text(n *yaml.Node, field string) (string, error) {
	if n = resolve(n); n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		return "", p.at(n, field, "write one value", "want one value, found %s", kind(n))
	}
	s, err := substitute(n.Value, p.lookup)
	if err != nil {
		return "", p.at(n, field, "set the variable, or give a default as in ${NAME:-value}; write $$ for a plain $ before a brace", "%v", err)
	}
	return s, nil
}

// optional is text, with nothing as "".
func (p *parser) optional(n *yaml.Node, field string) (string, error) {
	if null(resolve(n)) {
		return "", nil
	}
	return p.text(n, field)
}

// list returns a list of scalars; one scalar is a list of one if single is set.
func (p *parser) list(n *yaml.Node, field string, single bool) ([]string, []*yaml.Node, error) {
	if n = resolve(n); null(n) {
		return nil, nil, nil
	}
	nodes := n.Content
	if n.Kind == yaml.ScalarNode && single {
		nodes = []*yaml.Node{n}
	} else if n.Kind != yaml.SequenceNode {
		return nil, nil, p.at(n, field, `write a list, as in ["a", "b"]`, "want a list, found %s", kind(n))
	}
	out := make([]string, len(nodes))
	for i, e := range nodes {
		var err error
		if out[i], err = p.text(e, fmt.Sprintf("%s[%d]", field, i)); err != nil {
			return nil, nil, err
		}
	}
	return out, nodes, nil
}

// stringMap returns a mapping of scalars; nothing is "".
func (p *parser) stringMap(n *yaml.Node, field string) (map[string]string, error) {
	pairs, err := p.mapping(n, field, nil)
	if err != nil {
		return nil, err
	}
	out := make(map[string]string, len(pairs))
	for _, e := range pairs {
		if out[e.key], err = p.optional(e.node, e.field); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// quantity reads a value with one of api's parsers and places its error.
func (p *parser) quantity(n *yaml.Node, field string, parse func(field, s string) (int64, error)) (int64, error) {
	s, err := p.text(n, field)
	if err != nil {
		return 0, err
	}
	v, err := parse(field, s)
	if err != nil {
		e := asAPI(err)
		return 0, p.at(resolve(n), field, e.Remedy, "%s", e.Message)
	}
	return v, nil
}

func asAPI(err error) *api.Error {
	if e, ok := err.(*api.Error); ok {
		return e
	}
	return &api.Error{Message: err.Error()}
}

// count reads a whole number within bounds.
func (p *parser) count(n *yaml.Node, field string, low, high int) (int, error) {
	s, err := p.text(n, field)
	if err != nil {
		return 0, err
	}
	v, err := strconv.Atoi(s)
	if err != nil || v < low || v > high {
		return 0, p.at(resolve(n), field, fmt.Sprintf("write a whole number from %d to %d", low, high), "%q is not one", s)
	}
	return v, nil
}

const maxDuration = 24 * time.Hour

func (p *parser) duration(n *yaml.Node, field string) (time.Duration, error) {
	s, err := p.text(n, field)
	if err != nil {
		return 0, err
	}
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		return 0, p.at(resolve(n), field, `write a number with its unit, as in "30s", "500ms" or "5m"`, "%q is not a duration", s)
	case d < time.Millisecond || d > maxDuration || d%time.Millisecond != 0:
		return 0, p.at(resolve(n), field, "write from 1ms to 24h, in whole milliseconds", "%q is out of range", s)
	}
	return d, nil
}

// choice reads one of a few words.
func (p *parser) choice(n *yaml.Node, field string, words ...string) (string, error) {
	s, err := p.text(n, field)
	if err != nil {
		return "", err
	}
	if !slices.Contains(words, s) {
		remedy := fmt.Sprintf("write one of %v", words)
		if guess := nearest(s, words); guess != "" {
			remedy = fmt.Sprintf("did you mean %q?", guess)
		}
		return "", p.at(resolve(n), field, remedy, "%q is not known", s)
	}
	return s, nil
}
