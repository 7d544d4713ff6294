package stack

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/faasd-sec/faasd-sec/api"
)

var functionFields = []string{"lang", "handler", "image", "fprocess", "environment", "environment_file", "secrets",
	"constraints", "labels", "annotations", "limits", "requests", "readonly_root_filesystem", "namespace", "sealed", "needs", "scale", "build"}

var (
	imageRef   = regexp.MustCompile(`^[a-z0-9][a-z0-9._/:@-]{0,254}$`)
	secretName = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)
	envName    = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

func (p *parser) function(e pair) (Function, error) {
	fn := Function{Dir: dirOf(p.path), Line: e.node.Line,
		Resources: api.Resources{CPU: DefaultCPU, Memory: DefaultMemory, PIDs: DefaultPIDs},
		Mode:      DefaultMode, Upstream: DefaultUpstream, BundlePath: DefaultBundlePath,
		Callers: Callers{Owner: true}, MaxInFlight: DefaultMaxInFlight, Attestation: []string{DefaultAttestation},
		Read: DefaultRead, Write: DefaultWrite, Exec: DefaultExec, Start: DefaultStart}
	entries, err := p.mapping(e.node, e.field, functionFields)
	if err != nil {
		return fn, err
	}
	name := e.key
	var imageNode *yaml.Node
	for _, f := range entries {
		switch f.key {
		case "namespace":
			var ns string
			if ns, err = p.text(f.node, f.field); err == nil {
				name += "." + ns
			}
		case "image":
			imageNode = f.node
			fn.Image, err = p.text(f.node, f.field)
		default:
			err = p.functionField(&fn, f)
		}
		if err != nil {
			return fn, err
		}
	}
	if fn.Name, err = api.ParseFunctionName(name); err != nil {
		a := asAPI(err)
		return fn, p.at(e.node, e.field, a.Remedy, "%s", a.Message)
	}
	switch {
	case imageNode == nil:
		return fn, p.at(e.node, e.field+".image", "add \"image: "+e.key+":latest\"", "the function has no image")
	case !imageRef.MatchString(fn.Image):
		return fn, p.at(resolve(imageNode), e.field+".image", "write repository[:tag] in lower case, as in \"hello:latest\"", "%q is not an image reference", fn.Image)
	}
	if p.plain {
		return fn, p.settlePlain(&fn, e)
	}
	return fn, p.memory(&fn, e)
}

func (p *parser) functionField(fn *Function, f pair) (err error) {
	if p.plain {
		if is, err := p.plainField(fn, f); is {
			return err
		}
	}
	switch f.key {
	case "lang":
		fn.Lang, err = p.optional(f.node, f.field)
	case "handler":
		fn.Handler, err = p.optional(f.node, f.field)
	case "fprocess":
		fn.Process, err = p.command(f.node, f.field)
	case "environment":
		fn.Environment, err = p.environment(f.node, f.field)
	case "environment_file":
		fn.EnvFiles, _, err = p.list(f.node, f.field, true)
	case "secrets":
		fn.Secrets, err = p.secrets(f.node, f.field)
	case "constraints":
		fn.Constraints, err = p.constraints(f.node, f.field)
	case "labels":
		if fn.Labels, err = p.stringMap(f.node, f.field); err == nil && fn.Scale == nil {
			fn.Scale, err = p.scaleLabels(fn.Labels, f)
		}
	case "annotations":
		fn.Annotations, err = p.stringMap(f.node, f.field)
		if err == nil && fn.Annotations["schedule"] != "" {
			name := strings.TrimSuffix(strings.TrimPrefix(f.field, "functions."), ".annotations")
			return p.at(resolve(f.node), f.field+".schedule", "leave it out, deploy, and seal its calls ahead: faasd-sec schedule put "+name+" --cron '"+fn.Annotations["schedule"]+"'",
				"nobody but a caller with a key can seal a call to a sealed function, so that the cluster has none to make by itself")
		}
	case "limits":
		err = p.limits(fn, f.node, f.field)
	case "requests":
		var ignored Function
		if err = p.limits(&ignored, f.node, f.field); err == nil {
			p.warn(f, "what is reserved is the limit")
		}
	case "readonly_root_filesystem":
		if _, err = p.choice(f.node, f.field, "true"); err != nil {
			err = p.at(resolve(f.node), f.field, "leave it out and write to /tmp", "the root filesystem is always read-only")
		}
	case "sealed":
		err = p.sealed(fn, f.node, f.field)
	case "needs":
		fn.Needs, err = p.needs(f.node, f.field)
	case "scale":
		fn.Scale, err = p.scale(f.node, f.field)
	case "build":
		fn.Build, err = p.build(f.node, f.field)
	}
	return err
}

// command reads argv as one line, cut as a shell would, or as a list.
func (p *parser) command(n *yaml.Node, field string) ([]string, error) {
	if n = resolve(n); n.Kind == yaml.SequenceNode {
		out, _, err := p.list(n, field, false)
		return out, err
	}
	s, err := p.optional(n, field)
	if err != nil {
		return nil, err
	}
	out, err := split(s)
	if err != nil {
		return nil, p.at(n, field, "close the quote, or write a list of arguments", "%v", err)
	}
	return out, nil
}

func (p *parser) environment(n *yaml.Node, field string) (map[string]string, error) {
	m, err := p.stringMap(n, field)
	if err != nil {
		return nil, err
	}
	for k := range m {
		if !envName.MatchString(k) {
			return nil, p.at(resolve(n), join(field, k), "use letters, digits and '_', not beginning with a digit", "%q is not a variable's name", k)
		}
	}
	return m, nil
}

func (p *parser) secrets(n *yaml.Node, field string) ([]string, error) {
	names, nodes, err := p.list(n, field, false)
	if err != nil {
		return nil, err
	}
	seen := make(map[string]bool, len(names))
	for i, s := range names {
		at := fmt.Sprintf("%s[%d]", field, i)
		if !secretName.MatchString(s) {
			return nil, p.at(nodes[i], at, "use 1 to 63 of a-z, 0-9, '.', '_' and '-'", "%q is not a secret's name", s)
		}
		if seen[s] {
			return nil, p.at(nodes[i], at, "remove one of the two", "%q is listed twice", s)
		}
		seen[s] = true
	}
	return names, nil
}

func (p *parser) constraints(n *yaml.Node, field string) (map[string]string, error) {
	list, nodes, err := p.list(n, field, false)
	if err != nil {
		return nil, err
	}
	out := make(map[string]string, len(list))
	for i, s := range list {
		k, v, ok := strings.Cut(s, "=")
		k, v = strings.TrimSpace(k), strings.TrimSpace(strings.TrimPrefix(v, "="))
		if !ok || k == "" || v == "" || strings.HasSuffix(k, "!") {
			return nil, p.at(nodes[i], fmt.Sprintf("%s[%d]", field, i), `write a node's label and its value, as in "zone=a"`, "%q is not a constraint", s)
		}
		if _, twice := out[k]; twice {
			return nil, p.at(nodes[i], fmt.Sprintf("%s[%d]", field, i), "leave one of the two", "label %q is asked for already, and a node has one value of it", k)
		}
		out[k] = v
	}
	return out, nil
}

func (p *parser) limits(fn *Function, n *yaml.Node, field string) error {
	entries, err := p.mapping(n, field, []string{"cpu", "memory"})
	if err != nil {
		return err
	}
	for _, e := range entries {
		switch e.key {
		case "cpu":
			fn.Resources.CPU, err = p.quantity(e.node, e.field, api.ParseCPU)
		case "memory":
			fn.Resources.Memory, err = p.quantity(e.node, e.field, api.ParseBytes)
			if err == nil && fn.Resources.Memory < minMemory {
				err = p.at(resolve(e.node), e.field, "write 16Mi or more", "%d bytes are too few to start in", fn.Resources.Memory)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// memory settles tmp, which is part of memory: half of it at most if not given.
func (p *parser) memory(fn *Function, e pair) error {
	r := &fn.Resources
	if r.Tmp == 0 {
		r.Tmp = min(DefaultTmp, r.Memory/2)
	}
	if r.Tmp > r.Memory {
		return p.at(e.node, e.field+".sealed.tmp", "raise limits.memory or lower tmp", "%d bytes of tmp do not fit into %d bytes of memory", r.Tmp, r.Memory)
	}
	return nil
}

// relative accepts a path below the file's directory.
func (p *parser) relative(n *yaml.Node, field string) (string, error) {
	s, err := p.text(n, field)
	if err != nil {
		return "", err
	}
	if s == "" || filepath.IsAbs(s) {
		return "", p.at(resolve(n), field, "write a path relative to "+p.path, "%q is not a relative path", s)
	}
	return filepath.Clean(s), nil
}
