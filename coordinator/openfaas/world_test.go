package openfaas

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/valyala/fasthttp"
	"github.com/valyala/fasthttp/fasthttputil"

	"github.com/faasd-sec/faasd-sec/api"
)

// domain is a cluster in memory.
type domain struct {
	functions  map[api.FunctionName]Function
	secrets    map[string]string // "namespace/name" -> value
	namespaces map[string]api.Namespace
	lines      []LogLine
	query      LogQuery
}

func newDomain() *domain {
	return &domain{functions: map[api.FunctionName]Function{}, secrets: map[string]string{},
		namespaces: map[string]api.Namespace{api.DefaultNamespace: {Name: api.DefaultNamespace}}}
}

func (d *domain) Functions(ns string) (out []Function) {
	for _, f := range d.functions {
		if f.Name.Namespace() == ns {
			out = append(out, f)
		}
	}
	return out
}

func (d *domain) Function(_ context.Context, name api.FunctionName, usage bool) (Function, error) {
	f, ok := d.functions[name]
	if !ok {
		return f, api.Errorf(api.CodeNotFound, "there is no function %q", name)
	}
	if usage {
		f.Usage = &Usage{CPU: 7, Memory: 8}
	}
	return f, nil
}

func (d *domain) PutPlain(_ context.Context, name api.FunctionName, p api.Plain, _ string) (bool, error) {
	if _, err := p.Settle(); err != nil {
		return false, err
	}
	for _, s := range p.Secrets {
		if _, ok := d.secrets[name.Namespace()+"/"+s]; !ok {
			return false, api.Invalid("secrets", "create it", "there is no secret "+s)
		}
	}
	_, had := d.functions[name]
	d.functions[name] = Function{FunctionStatus: api.FunctionStatus{Name: name, Plain: &p, Image: "other@sha256:1", UpdatedAt: 1}, Desired: 1, Available: 1}
	return !had, nil
}

func (d *domain) DeletePlain(_ context.Context, name api.FunctionName) error {
	delete(d.functions, name)
	return nil
}

func (d *domain) ScaleFunction(_ context.Context, name api.FunctionName, n int) error {
	f := d.functions[name]
	f.Desired = n
	d.functions[name] = f
	return nil
}

func (d *domain) List(_ context.Context, ns string) (out []string, _ error) {
	for k := range d.secrets {
		if dir, name := filepath.Split(k); dir == ns+"/" {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out, nil
}

func (d *domain) Put(_ context.Context, ns, name string, value []byte) error {
	d.secrets[ns+"/"+name] = string(value)
	return nil
}

func (d *domain) Delete(_ context.Context, ns, name string) error {
	delete(d.secrets, ns+"/"+name)
	return nil
}

func (d *domain) Namespaces(context.Context) (out []string, _ error) {
	for n := range d.namespaces {
		out = append(out, n)
	}
	slices.Sort(out)
	return out, nil
}

func (d *domain) Namespace(_ context.Context, name string) (api.Namespace, error) {
	n, ok := d.namespaces[name]
	if !ok {
		return n, api.Errorf(api.CodeNotFound, "there is no namespace %q", name)
	}
	return n, nil
}

func (d *domain) CreateNamespace(ctx context.Context, n api.Namespace) error {
	if _, ok := d.namespaces[n.Name]; ok {
		return api.Errorf(api.CodeConflict, "it exists")
	}
	d.namespaces[n.Name] = n
	return nil
}

func (d *domain) UpdateNamespace(ctx context.Context, n api.Namespace) error {
	if _, err := d.Namespace(ctx, n.Name); err != nil {
		return err
	}
	d.namespaces[n.Name] = n
	return nil
}

func (d *domain) DeleteNamespace(ctx context.Context, name string) error {
	_, err := d.Namespace(ctx, name)
	delete(d.namespaces, name)
	return err
}

func (d *domain) Lines(_ context.Context, q LogQuery, each func(LogLine) error, _ func() error) error {
	d.query = q
	for _, l := range d.lines {
		if err := each(l); err != nil {
			return err
		}
	}
	return nil
}

// gateway serves a Handler to a test.
type gateway struct {
	t       testing.TB
	h       *Handler
	client  *http.Client
	user    string
	pass    string
	address netip.Addr
}

func serve(t testing.TB, d *domain, change ...func(*Config, *Deps)) *gateway {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{UserFile: "admin\n", PasswordFile: "secret\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := LoadCredentials(dir)
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{t: t, user: "admin", pass: "secret", address: netip.MustParseAddr("192.0.2.1")}
	cfg := Config{Credentials: c, Version: Version{Release: "1", SHA: "2", CommitMessage: "3"}, Arch: "amd64"}
	dep := Deps{Functions: d, Scaler: d, Secrets: d, Namespaces: d, Editor: d, Logs: d, Log: slog.New(slog.DiscardHandler),
		Origin:   func(net.Addr) netip.Addr { return g.address },
		ReadBody: func(ctx *fasthttp.RequestCtx) ([]byte, error) { return ctx.PostBody(), nil }}
	for _, f := range change {
		f(&cfg, &dep)
	}
	g.h = New(t.Context(), cfg, dep)
	ln := fasthttputil.NewInmemoryListener()
	s := &fasthttp.Server{Handler: g.h.Serve, NoDefaultContentType: true}
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	g.client = &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return ln.Dial() }}, Timeout: 10 * time.Second}
	t.Cleanup(func() {
		g.client.CloseIdleConnections()
		ln.Close()
		<-done
	})
	return g
}

// do sends body, a string or what becomes JSON, and returns the reply's status and
// body.
func (g *gateway) do(method, path string, body any, change ...func(*http.Request)) (int, string) {
	g.t.Helper()
	b, ok := body.(string)
	if !ok && body != nil {
		j, err := json.Marshal(body)
		if err != nil {
			g.t.Fatal(err)
		}
		b = string(j)
	}
	req, err := http.NewRequest(method, "http://gateway"+path, bytes.NewReader([]byte(b)))
	if err != nil {
		g.t.Fatal(err)
	}
	req.SetBasicAuth(g.user, g.pass)
	for _, f := range change {
		f(req)
	}
	resp, err := g.client.Do(req)
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil {
		g.t.Fatal(err)
	}
	for _, h := range []string{"WWW-Authenticate", "Content-Type", "Allow", "Retry-After"} {
		if v := resp.Header.Get(h); v != "" {
			out = append(out, "\n"+h+": "+v...)
		}
	}
	return resp.StatusCode, string(out)
}
