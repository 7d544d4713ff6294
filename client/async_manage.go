package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/faasd-sec/faasd-sec/api"
)

// AsyncCalls lists the asynchronous invocations that wait or run and that this
// identity sent, or whose function it owns.
func (c *Client) AsyncCalls(ctx context.Context, query url.Values) ([]api.AsyncCall, error) {
	var out []api.AsyncCall
	return out, c.do(ctx, call{method: http.MethodGet, path: api.GatewayPathAsyncCalls, query: query, signed: true}, &out)
}

// AsyncCall looks one up, in whatever state.
func (c *Client) AsyncCall(ctx context.Context, id string) (api.AsyncCall, error) {
	var out api.AsyncCall
	return out, c.do(ctx, call{method: http.MethodGet, path: api.GatewayPathAsyncCalls + "/" + url.PathEscape(id), signed: true}, &out)
}

// CancelCall ends one that waits or runs.
func (c *Client) CancelCall(ctx context.Context, id string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: api.GatewayPathAsync + url.PathEscape(id), signed: true}, nil)
}

// ForgetResult drops a result.
func (c *Client) ForgetResult(ctx context.Context, id string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: api.GatewayPathResults + url.PathEscape(id), signed: true}, nil)
}

// DeadLetters lists calls that were given up, in the order of their ids.
func (c *Client) DeadLetters(ctx context.Context, query url.Values) ([]api.AsyncCall, error) {
	var out []api.AsyncCall
	return out, c.do(ctx, call{method: http.MethodGet, path: api.GatewayPathDead, query: query, signed: true}, &out)
}

// ReplayDead has a dead letter attempted anew.
func (c *Client) ReplayDead(ctx context.Context, id string) error {
	return c.do(ctx, call{method: http.MethodPost, path: api.GatewayPathDead + "/" + url.PathEscape(id) + "/replay", signed: true}, nil)
}

// PurgeDead forgets a dead letter.
func (c *Client) PurgeDead(ctx context.Context, id string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: api.GatewayPathDead + "/" + url.PathEscape(id), signed: true}, nil)
}

// CallbackKeys are the keys with which the cluster signs callbacks.
func (c *Client) CallbackKeys(ctx context.Context) (api.CallbackKeys, error) {
	var out api.CallbackKeys
	return out, c.do(ctx, call{method: http.MethodGet, path: api.GatewayPathCallbackKey}, &out)
}
