package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/faasd-sec/faasd-sec/api"
)

// SetReplicas sets a function's number of replicas by hand, as its owner. Where it
// has a policy, that changes the number again when the load asks for it.
func (c *Client) SetReplicas(ctx context.Context, name api.FunctionName, n int) error {
	return c.order(ctx, name, "scale", api.SetReplicas{Replicas: n}, nil)
}

// order posts what only the function's owner may say.
func (c *Client) order(ctx context.Context, name api.FunctionName, what string, body, out any) error {
	if err := c.needIdentity(); err != nil {
		return err
	}
	b, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("client: encode the request: %w", err)
	}
	return c.do(ctx, call{method: http.MethodPost, path: api.GatewayPathFunctions + "/" + string(name) + "/" + what,
		typ: api.ContentTypeJSON, body: b, signed: true}, out)
}

// SetTraffic divides the calls of a plain function among revisions, named by the
// beginnings of their digests, in percent.
func (c *Client) SetTraffic(ctx context.Context, name api.FunctionName, percent map[string]int) error {
	return c.order(ctx, name, "traffic", api.Traffic{Percent: percent}, nil)
}
