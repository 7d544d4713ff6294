package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/manifest"
)

const (
	// DefaultTimeout bounds one exchange, the reply's body included.
	DefaultTimeout = 5 * time.Minute
	// DefaultMaxBody is the most, in bytes, that is taken as one request's body.
	DefaultMaxBody = 1 << 30
	// DefaultMaxCallers are the connections that are served at once. Each may
	// hold a small body: the bound is also one on memory.
	DefaultMaxCallers = 1024

	maxTimeout = 24 * time.Hour
	minToken   = 16 // characters
)

// Config is what a proxy does, as its file says it. All paths are absolute, or
// relative to the file's directory.
type Config struct {
	Listen     string // IP:PORT, or unix:PATH
	Metrics    string // loopback IP:PORT; "" for none
	Gateway    string // "" leaves it to the caller
	Via        string // a node's gateway to ask first; "" for none
	TLS        *TLS   // nil for none
	TokenFile  string // "" for none
	MaxBody    int64  // bytes of one request
	MaxCallers int
	// PassphraseFiles open identities, by name.
	PassphraseFiles map[string]string
	Routes          []Route
}

// TLS names the files of the proxy's own certificate.
type TLS struct {
	Certificate string `yaml:"certificate"`
	Key         string `yaml:"key"`
}

// Route admits requests, and says whose key seals them. The first one that admits
// a request serves it.
type Route struct {
	Name      string // in metrics
	Functions []string
	Identity  string   // "" is the caller's own choice
	Methods   []string // empty for all
	Paths     []string // empty for all; "/a" is that path alone, "/a/*" also what is below
	Stream    bool     // the function reads while the body flows, before its end was authenticated
	Timeout   time.Duration
	// Needs are what each request's task asks for, and Overridable what a request
	// may ask for itself, in place of these: see api.HeaderNeedPrefix.
	Needs       []Need
	Overridable []manifest.Field
}

// DefaultConfig admits everything on loopback, with one identity.
func DefaultConfig() Config {
	return Config{Listen: "127.0.0.1:8090", MaxBody: DefaultMaxBody, MaxCallers: DefaultMaxCallers,
		Routes: []Route{{Name: "all", Functions: []string{"*"}, Timeout: DefaultTimeout}}}
}

// file is the YAML.
type file struct {
	Listen          string            `yaml:"listen"`
	Metrics         string            `yaml:"metrics"`
	Gateway         string            `yaml:"gateway"`
	Via             string            `yaml:"via"`
	TLS             *TLS              `yaml:"tls"`
	TokenFile       string            `yaml:"token_file"`
	MaxBody         string            `yaml:"max_body"`
	MaxCallers      *int              `yaml:"max_callers"`
	PassphraseFiles map[string]string `yaml:"passphrase_files"`
	Routes          []fileRoute       `yaml:"routes"`
}

type fileRoute struct {
	Name      string   `yaml:"name"`
	Functions []string `yaml:"functions"`
	Identity  string   `yaml:"identity"`
	Methods   []string `yaml:"methods"`
	Paths     []string `yaml:"paths"`
	Stream    bool     `yaml:"stream"`
	Timeout   string   `yaml:"timeout"`

	Needs       map[string]words `yaml:"needs"`
	Overridable []string         `yaml:"overridable"`
}

// Load reads a configuration file.
func Load(path string) (Config, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Config{}, &api.Error{Code: api.CodeInvalid, Field: "--config", Err: err, Message: "cannot read the proxy's configuration", Remedy: "check the path"}
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return Config{}, fmt.Errorf("proxy: %w", err)
	}
	return Parse(path, filepath.Dir(abs), b)
}

// Parse reads a configuration; path is for errors, and dir is where relative paths
// in it start. A field that is not known, or a value that does not parse, is an error.
func Parse(path, dir string, b []byte) (Config, error) {
	var f file
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	err := d.Decode(&f)
	if err == nil {
		if err = d.Decode(new(yaml.Node)); err == nil {
			err = errors.New("there is a second document")
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return Config{}, &api.Error{Code: api.CodeInvalid, Field: path, Message: strings.ReplaceAll(err.Error(), "\n", " "),
			Remedy: "docs/proxy.md lists the fields"}
	}
	c := DefaultConfig()
	if f.Listen != "" {
		c.Listen = f.Listen
	}
	c.Metrics, c.Gateway, c.Via, c.TLS = f.Metrics, f.Gateway, f.Via, f.TLS
	if f.MaxBody != "" {
		if c.MaxBody, err = api.ParseBytes("max_body", f.MaxBody); err != nil {
			return Config{}, err
		}
	}
	if f.MaxCallers != nil {
		c.MaxCallers = *f.MaxCallers
	}
	below := func(p string) string {
		if p == "" || filepath.IsAbs(p) {
			return p
		}
		return filepath.Join(dir, p)
	}
	c.TokenFile = below(f.TokenFile)
	if c.TLS != nil {
		c.TLS.Certificate, c.TLS.Key = below(c.TLS.Certificate), below(c.TLS.Key)
	}
	for name, p := range f.PassphraseFiles {
		if c.PassphraseFiles == nil {
			c.PassphraseFiles = make(map[string]string)
		}
		c.PassphraseFiles[name] = below(p)
	}
	if p, ok := strings.CutPrefix(c.Listen, "unix:"); ok {
		c.Listen = "unix:" + below(p)
	}
	c.Routes = nil
	for i, r := range f.Routes {
		out := Route{Name: r.Name, Functions: r.Functions, Identity: r.Identity, Methods: r.Methods, Paths: r.Paths, Stream: r.Stream, Timeout: DefaultTimeout}
		if out.Name == "" {
			out.Name = "route-" + strconv.Itoa(i+1)
		}
		if r.Timeout != "" {
			if out.Timeout, err = time.ParseDuration(r.Timeout); err != nil {
				return Config{}, api.Invalid(fmt.Sprintf("routes[%d].timeout", i), `write a duration with a unit, as in "30s"`, fmt.Sprintf("%q is not one", r.Timeout))
			}
		}
		if err = r.needs(i, &out); err != nil {
			return Config{}, err
		}
		c.Routes = append(c.Routes, out)
	}
	return c, c.Validate()
}

// Validate refuses what could not work, and what would let others use the keys.
func (c *Config) Validate() error {
	if err := c.checkListen(); err != nil {
		return err
	}
	if c.Metrics != "" {
		if ip, err := address("metrics", c.Metrics); err != nil {
			return err
		} else if !ip.IsLoopback() {
			return api.Invalid("metrics", "write a loopback address, as in 127.0.0.1:8091", c.Metrics+" can be reached by other machines")
		}
	}
	if c.TLS != nil && (c.TLS.Certificate == "" || c.TLS.Key == "") {
		return api.Invalid("tls", "name both certificate and key", "one is missing")
	}
	if c.MaxBody <= 0 || c.MaxCallers < 1 {
		return api.Invalid("max_body, max_callers", "write positive numbers, or leave them out", "one is not positive")
	}
	if len(c.Routes) == 0 {
		return api.Invalid("routes", `list what is admitted, as in "- functions: [hello]"`, "there is no route: nothing would be admitted")
	}
	names := make(map[string]bool)
	for i := range c.Routes {
		r := &c.Routes[i]
		if names[r.Name] {
			return api.Invalid(fmt.Sprintf("routes[%d].name", i), "give each its own", fmt.Sprintf("%q is there twice", r.Name))
		}
		names[r.Name] = true
		if _, err := compile(i, r); err != nil {
			return err
		}
	}
	return nil
}

// checkListen refuses an address that other machines reach, unless they have to
// show a token, which TLS hides on its way.
func (c *Config) checkListen() error {
	if p, ok := strings.CutPrefix(c.Listen, "unix:"); ok {
		if p == "" {
			return api.Invalid("listen", "write unix:PATH", "the socket has no path")
		}
		return nil
	}
	ip, err := address("listen", c.Listen)
	switch {
	case err != nil:
		return err
	case ip.IsLoopback(), c.TLS != nil && c.TokenFile != "":
		return nil
	}
	return api.Invalid("listen", "listen on 127.0.0.1 or a unix socket, or give both tls and token_file",
		c.Listen+" can be reached by other machines, which would act with your keys")
}

// address reads IP:PORT. A name is refused: what it stands for can change.
func address(field, s string) (net.IP, error) {
	host, port, err := net.SplitHostPort(s)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	ip := net.ParseIP(host)
	if err != nil || ip == nil {
		return nil, api.Invalid(field, "write IP:PORT, as in 127.0.0.1:8090", fmt.Sprintf("%q is not an IP address and a port", s))
	}
	return ip, nil
}

// Identities are the names that routes use; "" stands for the caller's choice.
func (c *Config) Identities() []string {
	var out []string
	seen := make(map[string]bool)
	for _, r := range c.Routes {
		if !seen[r.Identity] {
			seen[r.Identity] = true
			out = append(out, r.Identity)
		}
	}
	return out
}
