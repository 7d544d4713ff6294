package stack

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"

	"go.yaml.in/yaml/v3"

	"github.com/faasd-sec/faasd-sec/api"
)

// maxFile bounds a function.yml in bytes.
const maxFile = 1 << 20

// Load reads and checks a file. lookup gives the variables for ${NAME}, usually
// os.LookupEnv.
func Load(path string, lookup func(string) (string, bool)) (*File, error) {
	return load(&parser{path: path, lookup: lookup})
}

// LoadPlain is Load for functions that are to be deployed as plain ones: each has
// its Plain, and a section that only a sealed function can have is an error.
func LoadPlain(path string, lookup func(string) (string, bool)) (*File, error) {
	return load(&parser{path: path, lookup: lookup, plain: true})
}

func load(p *parser) (*File, error) {
	path := p.path
	f, err := os.Open(path)
	if err != nil {
		return nil, &api.Error{Code: api.CodeNotFound, Field: path, Err: err, Message: "cannot read it",
			Remedy: "name the file with -f, or run in the directory that has function.yml"}
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1)) // what is no regular file has no size
	if err != nil {
		return nil, &api.Error{Code: api.CodeInvalid, Field: path, Err: err, Message: "cannot read it", Remedy: "name the file itself with -f"}
	}
	if len(b) > maxFile {
		return nil, api.Invalid(path, "split it", fmt.Sprintf("more than %d bytes are not read", maxFile))
	}
	return p.parse(b)
}

// Parse checks the content of a file that lies at path.
func Parse(path string, b []byte, lookup func(string) (string, bool)) (*File, error) {
	return (&parser{path: path, lookup: lookup}).parse(b)
}

// ParsePlain is Parse for plain functions, see LoadPlain.
func ParsePlain(path string, b []byte, lookup func(string) (string, bool)) (*File, error) {
	return (&parser{path: path, lookup: lookup, plain: true}).parse(b)
}

func (p *parser) parse(b []byte) (*File, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return nil, p.syntax(err)
	}
	if len(doc.Content) == 0 {
		return nil, api.Invalid(p.path, "write at least one function under \"functions:\"", "it is empty")
	}
	return p.file(doc.Content[0])
}

var yamlLine = regexp.MustCompile(`^yaml: line (\d+): (.*)$`)

// syntax gives YAML's own errors our form; the library tells no column.
func (p *parser) syntax(err error) error {
	const remedy = "indent with spaces, and quote values that hold ': ' or begin with a special character"
	if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
		return &api.Error{Code: api.CodeInvalid, Field: "yaml", Remedy: remedy, Message: p.path + ":" + m[1] + ":1: " + m[2]}
	}
	return &api.Error{Code: api.CodeInvalid, Field: "yaml", Remedy: remedy, Message: p.path + ":1:1: " + err.Error()}
}

func (p *parser) file(root *yaml.Node) (*File, error) {
	top, err := p.mapping(root, "", []string{"version", "provider", "functions", "configuration"})
	if err != nil {
		return nil, err
	}
	f := &File{Path: p.path}
	for _, e := range top {
		switch e.key {
		case "version":
			_, err = p.choice(e.node, e.field, "1.0", "1")
		case "provider":
			f.Gateway, err = p.provider(e.node, e.field)
		case "configuration":
			p.warn(e, "it names templates, which faasd-sec does not use")
		case "functions":
			f.Functions, err = p.functions(e.node, e.field)
		}
		if err != nil {
			return nil, err
		}
	}
	if len(f.Functions) == 0 {
		return nil, p.at(root, "functions", "write at least one function under \"functions:\"", "there is no function")
	}
	f.Warnings = p.warnings
	return f, nil
}

func (p *parser) warn(e pair, why string) {
	p.warnings = append(p.warnings, fmt.Sprintf("%s:%d: %s has no effect: %s", p.path, e.node.Line, e.field, why))
}

func (p *parser) provider(n *yaml.Node, field string) (gateway string, err error) {
	entries, err := p.mapping(n, field, []string{"name", "gateway", "network"})
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		switch e.key {
		case "name":
			_, err = p.choice(e.node, e.field, "openfaas", "faas", "faasd-sec")
		case "gateway":
			gateway, err = p.text(e.node, e.field)
		case "network":
			p.warn(e, "functions have no network but their own loopback")
		}
		if err != nil {
			return "", err
		}
	}
	return gateway, nil
}

func (p *parser) functions(n *yaml.Node, field string) ([]Function, error) {
	entries, err := p.mapping(n, field, nil)
	if err != nil {
		return nil, err
	}
	out := make([]Function, 0, len(entries))
	seen := make(map[api.FunctionName]int)
	for _, e := range entries {
		fn, err := p.function(e)
		if err != nil {
			return nil, err
		}
		if line, twice := seen[fn.Name]; twice {
			return nil, p.at(e.node, e.field, "rename one of the two", "%s stands on line %d already", fn.Name, line)
		}
		seen[fn.Name] = fn.Line
		out = append(out, fn)
	}
	return out, nil
}

// Find returns the function of a name, or the only one when name is empty.
func (f *File) Find(name string) (*Function, error) {
	if name == "" {
		if len(f.Functions) == 1 {
			return &f.Functions[0], nil
		}
		return nil, api.Invalid("function", "name one of those in "+f.Path, fmt.Sprintf("the file has %d functions", len(f.Functions)))
	}
	full, err := api.ParseFunctionName(name)
	if err != nil {
		return nil, err
	}
	for i := range f.Functions {
		if f.Functions[i].Name == full {
			return &f.Functions[i], nil
		}
	}
	names := make([]string, len(f.Functions))
	for i := range f.Functions {
		names[i] = f.Functions[i].Name.Short()
	}
	return nil, &api.Error{Code: api.CodeNotFound, Field: "function", Err: errors.New(name),
		Message: "no such function in " + f.Path, Remedy: fmt.Sprintf("it has %v", names)}
}

// dirOf is where a file's relative paths start.
func dirOf(path string) string { return filepath.Dir(path) }
