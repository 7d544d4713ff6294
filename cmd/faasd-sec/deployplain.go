package main

import (
	"context"

	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/stack"
)

// deployPlain deploys a function that nothing of is sealed. An image that is built
// here, or given as a file, is pushed to the cluster's registry; any other is pulled
// by the nodes from where its name says.
func (d *deployer) deployPlain(ctx context.Context, fn *stack.Function) (client.Deployed, error) {
	plain := *fn.Plain
	var err error
	if plain.Env, err = environment(fn); err != nil {
		return client.Deployed{}, err
	}
	if fn.Build != nil || d.flags.imageTar != "" {
		p := d.newProgress("deploy " + fn.Name.Short())
		defer p.end()
		remote, err := d.registry(ctx, p)
		if err != nil {
			return client.Deployed{}, err
		}
		if _, err := d.image(ctx, fn, remote); err != nil {
			return client.Deployed{}, err
		}
	}
	return d.client.DeployPlain(ctx, fn.Name, plain)
}
