package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/faasd-sec/faasd-sec/api"
)

// DeployPlain deploys a plain function: everybody on its way, and the operators of
// the cluster, can read what it is and what it is sent.
func (c *Client) DeployPlain(ctx context.Context, name api.FunctionName, p api.Plain) (Deployed, error) {
	if err := c.needIdentity(); err != nil {
		return Deployed{}, err
	}
	body, err := json.Marshal(api.Revision{Plain: &api.PlainRevision{Function: p}})
	if err != nil {
		return Deployed{}, fmt.Errorf("client: encode a plain function: %w", err)
	}
	var st api.FunctionStatus
	if err := c.do(ctx, call{method: http.MethodPut, path: api.GatewayPathFunctions + "/" + string(name),
		typ: api.ContentTypeJSON, body: body, signed: true}, &st); err != nil {
		return Deployed{}, err
	}
	return Deployed{Name: st.Name, Revision: st.Revision, Sequence: st.Sequence, Image: st.Image, Changed: true, Plain: true}, nil
}
