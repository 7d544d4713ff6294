package client

import (
	"context"
	"net/http"

	"github.com/faasd-sec/faasd-sec/api"
)

// List returns the functions of the cluster as its gateway tells them.
func (c *Client) List(ctx context.Context) ([]api.FunctionStatus, error) {
	var out []api.FunctionStatus
	return out, c.do(ctx, call{method: http.MethodGet, path: api.GatewayPathFunctions}, &out)
}

// Describe returns one function as the gateway tells it, with its signed
// descriptor, which is not verified here; see Verified.
func (c *Client) Describe(ctx context.Context, name api.FunctionName) (api.FunctionStatus, error) {
	var out api.FunctionStatus
	err := c.do(ctx, call{method: http.MethodGet, path: api.GatewayPathFunctions + "/" + string(name)}, &out)
	return out, err
}

// Nodes returns the machines of the cluster and what is free on them.
func (c *Client) Nodes(ctx context.Context) ([]api.NodeView, error) {
	var out []api.NodeView
	return out, c.do(ctx, call{method: http.MethodGet, path: api.GatewayPathNodes}, &out)
}

// Broker returns the key broker that the gateway names, which is not trusted by
// this; see Config.Pins.
func (c *Client) Broker(ctx context.Context) (api.BrokerInfo, error) {
	var out api.BrokerInfo
	return out, c.do(ctx, call{method: http.MethodGet, path: api.GatewayPathBroker}, &out)
}

// Remove stops a function, forgets it, and has the key broker destroy its keys.
// Only its owner can. Removing again what was half removed completes it.
func (c *Client) Remove(ctx context.Context, name api.FunctionName) error {
	err := c.do(ctx, call{method: http.MethodDelete, path: api.GatewayPathFunctions + "/" + string(name), signed: true}, nil)
	missing := api.CodeOf(err) == api.CodeNotFound
	if err != nil && !missing {
		return err
	}
	kerr := c.do(ctx, call{method: http.MethodDelete, path: api.GatewayPathDeposits + "/" + string(name), signed: true}, nil)
	switch keysMissing := api.CodeOf(kerr) == api.CodeNotFound; {
	case kerr != nil && !keysMissing:
		return kerr
	case missing && keysMissing:
		return err
	}
	c.mu.Lock()
	delete(c.known, name)
	c.mu.Unlock()
	return nil
}
