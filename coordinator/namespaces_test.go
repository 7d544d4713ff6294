package coordinator

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/store"
)

// namespaceMemory keeps namespaces as the store does.
type namespaceMemory map[string]store.Namespace

func (m namespaceMemory) PutNamespace(_ context.Context, n store.Namespace, expected int64) (int64, error) {
	if have := m[n.Name].Version; have != expected {
		return 0, api.Errorf(api.CodeConflict, "changed")
	}
	n.Version = m[n.Name].Version + 1
	m[n.Name] = n
	return n.Version, nil
}

func (m namespaceMemory) GetNamespace(_ context.Context, name string) (*store.Namespace, error) {
	n, ok := m[name]
	if !ok {
		return nil, api.Errorf(api.CodeNotFound, "none")
	}
	return &n, nil
}

func (m namespaceMemory) ListNamespaces(context.Context) (all []*store.Namespace, _ error) {
	for _, n := range m {
		all = append(all, &n)
	}
	return all, nil
}

func (m namespaceMemory) DeleteNamespace(_ context.Context, name string, expected int64) error {
	if m[name].Version != expected {
		return api.Errorf(api.CodeConflict, "changed")
	}
	delete(m, name)
	return nil
}

// secretMemory keeps the names of secrets.
type secretMemory map[string]bool

func (m secretMemory) Put(_ context.Context, ns, name string, _ []byte) error {
	m[ns+"/"+name] = true
	return nil
}

func (m secretMemory) Delete(_ context.Context, ns, name string) error {
	delete(m, ns+"/"+name)
	return nil
}

func (m secretMemory) List(_ context.Context, ns string) (out []string, _ error) {
	for k := range m {
		if len(k) > len(ns) && k[:len(ns)+1] == ns+"/" {
			out = append(out, k[len(ns)+1:])
		}
	}
	return out, nil
}

func TestNamespacesAreThoseThatWereCreatedAndThoseWithFunctions(t *testing.T) {
	w := newWorld(t, 0) // with the function f.ns
	kept, secrets := namespaceMemory{}, secretMemory{}
	w.c.dep.Namespaces, w.c.dep.Secrets = kept, secrets
	ctx := t.Context()
	want := func(names ...string) {
		t.Helper()
		if got, err := w.c.Namespaces(ctx); err != nil || !slices.Equal(got, names) {
			t.Fatalf("%v, %v, want %v", got, err, names)
		}
	}
	code := func(err error, want api.Code) {
		t.Helper()
		if api.CodeOf(err) != want {
			t.Fatalf("%v, want %s", err, want)
		}
	}
	want("ns", "openfaas-fn")
	code(w.c.CreateNamespace(ctx, api.Namespace{Name: "dev", Labels: map[string]string{"a": "b"}}), "")
	want("dev", "ns", "openfaas-fn")
	for _, name := range []string{"dev", "ns", "openfaas-fn"} {
		code(w.c.CreateNamespace(ctx, api.Namespace{Name: name}), api.CodeConflict)
	}
	code(w.c.CreateNamespace(ctx, api.Namespace{Name: "Dev"}), api.CodeInvalid)
	code(w.c.UpdateNamespace(ctx, api.Namespace{Name: "dev", Annotations: map[string]string{"c": "d"}}), "")
	if n, err := w.c.Namespace(ctx, "dev"); err != nil || n.Annotations["c"] != "d" || len(n.Labels) != 0 {
		t.Fatalf("%+v, %v", n, err)
	}
	code(w.c.UpdateNamespace(ctx, api.Namespace{Name: "prod"}), api.CodeNotFound)
	code(w.c.UpdateNamespace(ctx, api.Namespace{Name: "ns"}), "")
	code(w.c.DeleteNamespace(ctx, "ns"), api.CodeConflict)
	code(w.c.DeleteNamespace(ctx, "openfaas-fn"), api.CodeForbidden)
	code(w.c.DeleteNamespace(ctx, "prod"), api.CodeNotFound)
	secrets["dev/s"], secrets["ns/s"] = true, true
	code(w.c.DeleteNamespace(ctx, "dev"), "")
	if secrets["dev/s"] || !secrets["ns/s"] {
		t.Errorf("the secrets are %v", secrets)
	}
	want("ns", "openfaas-fn")
}

func TestAnOpenFaaSAPIWithoutCredentialsIsOff(t *testing.T) {
	w := newWorld(t, 0)
	resp, err := http.Get(w.url + "/system/functions")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(resp.Body.Close()); err != nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("%d, %v", resp.StatusCode, err)
	}
	http.DefaultClient.CloseIdleConnections()
}
