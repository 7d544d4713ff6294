package coordinator

import (
	"context"

	"github.com/faasd-sec/faasd-sec/api"
)

// Secrets are those of plain functions. What they are is passed on at once to the
// process that keeps them, sealed, and never read back here: a function gets them
// inside its sandbox.
type Secrets interface {
	// Put keeps value under name in a namespace, in the place of what was there.
	// value is wiped before it returns.
	Put(ctx context.Context, namespace, name string, value []byte) error
	// Delete removes a secret; CodeNotFound if there is none.
	Delete(ctx context.Context, namespace, name string) error
	// List names the secrets of a namespace, sorted.
	List(ctx context.Context, namespace string) ([]string, error)
}

// checkSecrets makes sure that the secrets a function asks for are there.
func (c *Coordinator) checkSecrets(ctx context.Context, name api.FunctionName, wanted []string) error {
	if len(wanted) == 0 {
		return nil
	}
	if c.dep.Secrets == nil {
		return api.Errorf(api.CodeUnavailable, "this coordinator keeps no secrets for plain functions")
	}
	have, err := c.dep.Secrets.List(ctx, name.Namespace())
	if err != nil {
		return err
	}
	known := make(map[string]bool, len(have))
	for _, s := range have {
		known[s] = true
	}
	for _, s := range wanted {
		if !known[s] {
			return api.Invalid("secrets", "create it first: faas-cli secret create "+s, "there is no secret "+s+" in namespace "+name.Namespace())
		}
	}
	return nil
}
