package stack

import (
	"fmt"
	"strconv"

	"go.yaml.in/yaml/v3"
)

func (p *parser) build(n *yaml.Node, field string) (*Build, error) {
	entries, err := p.mapping(n, field, []string{"from", "copy", "go", "entrypoint", "cmd", "env", "workdir", "user", "labels"})
	if err != nil {
		return nil, err
	}
	b := new(Build)
	for _, e := range entries {
		switch e.key {
		case "from":
			b.From, err = p.text(e.node, e.field)
		case "copy":
			b.Copy, err = p.copies(e.node, e.field)
		case "go":
			b.Go, err = p.relative(e.node, e.field)
		case "entrypoint":
			b.Entrypoint, err = p.command(e.node, e.field)
		case "cmd":
			b.Cmd, err = p.command(e.node, e.field)
		case "env":
			b.Env, err = p.environment(e.node, e.field)
		case "workdir":
			if b.WorkDir, err = p.text(e.node, e.field); err == nil && b.WorkDir != "/" {
				b.WorkDir, err = p.absolute(e.node, e.field)
			}
		case "user":
			b.User, err = p.text(e.node, e.field)
		case "labels":
			b.Labels, err = p.stringMap(e.node, e.field)
		}
		if err != nil {
			return nil, err
		}
	}
	if b.From == "" {
		return nil, p.at(resolve(n), field+".from", `write "scratch", "debian:PACKAGE,…" or an image reference`, "the build has no base")
	}
	return b, nil
}

func (p *parser) copies(n *yaml.Node, field string) ([]Copy, error) {
	if n = resolve(n); null(n) {
		return nil, nil
	}
	if n.Kind != yaml.SequenceNode {
		return nil, p.at(n, field, "write a list of {src, dst, mode}", "want a list, found %s", kind(n))
	}
	out := make([]Copy, len(n.Content))
	for i, c := range n.Content {
		at := fmt.Sprintf("%s[%d]", field, i)
		entries, err := p.mapping(c, at, []string{"src", "dst", "mode"})
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			switch e.key {
			case "src":
				out[i].Src, err = p.relative(e.node, e.field)
			case "dst":
				out[i].Dst, err = p.absolute(e.node, e.field)
			case "mode":
				out[i].Mode, err = p.mode(e.node, e.field)
			}
			if err != nil {
				return nil, err
			}
		}
		if out[i].Src == "" || out[i].Dst == "" {
			return nil, p.at(c, at, "write {src: file, dst: /path}", "src or dst is missing")
		}
	}
	return out, nil
}

// mode reads permission bits, which are octal however they are written: 755,
// 0755 and 0o755 are the same to who writes them.
func (p *parser) mode(n *yaml.Node, field string) (uint32, error) {
	s, err := p.text(n, field)
	if err != nil {
		return 0, err
	}
	digits := s
	if len(digits) > 2 && digits[:2] == "0o" {
		digits = digits[2:]
	}
	v, err := strconv.ParseUint(digits, 8, 32)
	if err != nil || v == 0 || v > 0o777 {
		return 0, p.at(resolve(n), field, `write permission bits in octal, as in "0755"`, "%q is not a mode", s)
	}
	return uint32(v), nil
}
