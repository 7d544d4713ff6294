package coordinator

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/store"
)

// NamespaceStore is where created namespaces are kept; *store.Store is one.
type NamespaceStore interface {
	PutNamespace(ctx context.Context, n store.Namespace, expected int64) (int64, error)
	GetNamespace(ctx context.Context, name string) (*store.Namespace, error)
	ListNamespaces(ctx context.Context) ([]*store.Namespace, error)
	DeleteNamespace(ctx context.Context, name string, expected int64) error
}

// A namespace exists if it is the default one, if somebody created it, or if it
// has a function: owners of sealed functions name theirs without creating it. A
// function that is deployed while its namespace is deleted so keeps it.

// Namespaces names all namespaces, sorted.
func (c *Coordinator) Namespaces(ctx context.Context) ([]string, error) {
	all := map[string]bool{api.DefaultNamespace: true}
	for name := range c.dep.Cache.Snapshot().Functions {
		all[name.Namespace()] = true
	}
	if c.dep.Namespaces != nil {
		ctx, cancel := context.WithTimeout(ctx, storeTimeout)
		defer cancel()
		kept, err := c.dep.Namespaces.ListNamespaces(ctx)
		if err != nil {
			return nil, err
		}
		for _, n := range kept {
			all[n.Name] = true
		}
	}
	return slices.Sorted(maps.Keys(all)), nil
}

// Namespace describes one; CodeNotFound if there is none of that name.
func (c *Coordinator) Namespace(ctx context.Context, name string) (api.Namespace, error) {
	n, _, err := c.namespace(ctx, name)
	return n, err
}

// namespace is Namespace with the record's version, store.Absent for none.
func (c *Coordinator) namespace(ctx context.Context, name string) (api.Namespace, int64, error) {
	n := api.Namespace{Name: name, Labels: map[string]string{}, Annotations: map[string]string{}}
	if err := api.CheckNamespace(name); err != nil {
		return n, 0, err
	}
	missing := api.Errorf(api.CodeNotFound, "there is no namespace %q", name)
	if c.dep.Namespaces != nil {
		ctx, cancel := context.WithTimeout(ctx, storeTimeout)
		defer cancel()
		rec, err := c.dep.Namespaces.GetNamespace(ctx, name)
		if err == nil {
			maps.Copy(n.Labels, rec.Labels)
			maps.Copy(n.Annotations, rec.Annotations)
			return n, rec.Version, nil
		}
		if api.CodeOf(err) != api.CodeNotFound {
			return n, 0, err
		}
	}
	if name == api.DefaultNamespace || c.functionsIn(name) > 0 {
		return n, store.Absent, nil
	}
	return n, 0, missing
}

// CreateNamespace makes a namespace; CodeConflict if there is one of that name.
func (c *Coordinator) CreateNamespace(ctx context.Context, n api.Namespace) error {
	_, _, err := c.namespace(ctx, n.Name)
	if err == nil {
		return &api.Error{Code: api.CodeConflict, Field: "name", Message: fmt.Sprintf("namespace %s already exists", n.Name), Remedy: "update it, or choose another name"}
	}
	if api.CodeOf(err) != api.CodeNotFound {
		return err
	}
	return c.writeNamespace(ctx, n, store.Absent)
}

// UpdateNamespace replaces labels and annotations; CodeNotFound if there is no
// such namespace.
func (c *Coordinator) UpdateNamespace(ctx context.Context, n api.Namespace) error {
	_, version, err := c.namespace(ctx, n.Name)
	if err != nil {
		return err
	}
	return c.writeNamespace(ctx, n, version)
}

func (c *Coordinator) writeNamespace(ctx context.Context, n api.Namespace, expected int64) error {
	if c.dep.Namespaces == nil {
		return api.Errorf(api.CodeUnavailable, "this coordinator keeps no namespaces")
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	rec := store.Namespace{Name: n.Name, Labels: n.Labels, Annotations: n.Annotations, CreatedAt: time.Now().Unix()}
	_, err := c.dep.Namespaces.PutNamespace(ctx, rec, expected)
	return err
}

// DeleteNamespace removes an empty namespace with its secrets, so that who creates
// the name again finds none of them. It is refused while there are functions in it,
// and for the default one always.
func (c *Coordinator) DeleteNamespace(ctx context.Context, name string) error {
	_, version, err := c.namespace(ctx, name)
	if err != nil {
		return err
	}
	if name == api.DefaultNamespace {
		return &api.Error{Code: api.CodeForbidden, Field: "name", Message: "the default namespace " + name + " cannot be deleted", Remedy: "delete the functions in it"}
	}
	if n := c.functionsIn(name); n > 0 {
		return &api.Error{Code: api.CodeConflict, Field: "name", Message: fmt.Sprintf("namespace %s has %d functions", name, n), Remedy: "delete them first"}
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	if c.dep.Secrets != nil {
		secrets, err := c.dep.Secrets.List(ctx, name)
		if err != nil {
			return err
		}
		for _, s := range secrets {
			if err := c.dep.Secrets.Delete(ctx, name, s); err != nil && api.CodeOf(err) != api.CodeNotFound {
				return err
			}
		}
	}
	return c.dep.Namespaces.DeleteNamespace(ctx, name, version)
}

// functionsIn counts the functions of a namespace.
func (c *Coordinator) functionsIn(namespace string) int {
	n := 0
	for name := range c.dep.Cache.Snapshot().Functions {
		if name.Namespace() == namespace {
			n++
		}
	}
	return n
}
