package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/emmansun/gmsm/sm3"

	"github.com/faasd-sec/faasd-sec/api"
)

const (
	maxProblem = 64 << 10 // bytes read of an error's body
	maxAnswer  = 16 << 20 // bytes read of a JSON answer
)

// call is one management request.
type call struct {
	method string
	path   string // below the gateway, unescaped segments already checked
	query  url.Values
	typ    string // content type of body
	header http.Header
	body   []byte
	signed bool // with the identity's signing key
}

// do sends a management request and decodes a JSON answer into out, unless out
// is nil.
func (c *Client) do(ctx context.Context, k call, out any) error {
	ctx, cancel := context.WithTimeout(ctx, managementTimeout+time.Duration(len(k.body)>>20)*time.Second)
	defer cancel()
	res, err := c.send(ctx, k)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if out == nil {
		_, err = io.Copy(io.Discard, io.LimitReader(res.Body, maxProblem))
		return err
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return c.unreachable(err)
	}
	if err := json.Unmarshal(b, out); err != nil {
		return api.Wrap(api.CodeUnavailable, err, fmt.Sprintf("the gateway's answer to %s %s is not the JSON expected", k.method, k.path))
	}
	return nil
}

// sendTo returns a response with a 2xx status; the caller closes its body.
func (c *Client) sendTo(ctx context.Context, gateway *url.URL, k call) (*http.Response, error) {
	u := *gateway
	u.Path = k.path
	u.RawQuery = k.query.Encode()
	var body io.Reader
	if k.body != nil {
		body = bytes.NewReader(k.body)
	}
	req, err := http.NewRequestWithContext(ctx, k.method, u.String(), body)
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	for name, values := range k.header {
		req.Header[name] = values
	}
	if k.typ != "" {
		req.Header.Set("Content-Type", k.typ)
	}
	if k.signed {
		if err := c.needIdentity(); err != nil {
			return nil, err
		}
		auth, err := c.signer().Sign(k.method, req.URL.RequestURI(), sm3.Sum(k.body))
		if err != nil {
			return nil, err
		}
		req.Header.Set("Authorization", auth)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, unreachable(gateway, err)
	}
	if res.StatusCode/100 != 2 {
		defer res.Body.Close()
		return nil, problem(res.StatusCode, res.Header.Get("Content-Type"), res.Body)
	}
	return res, nil
}

// problem reads an error's body of the given content type.
func problem(status int, typ string, body io.Reader) error {
	b, err := io.ReadAll(io.LimitReader(body, maxProblem))
	if err != nil {
		b = nil
	}
	if !strings.HasPrefix(typ, api.ContentTypeProblem) {
		b = nil
	}
	e := api.ParseProblem(status, b)
	if e.Code == api.CodeUnavailable && len(b) == 0 {
		e.Remedy = "check that the gateway's URL is a faasd-sec coordinator's"
	}
	return e
}

func (c *Client) unreachable(err error) error { return unreachable(c.gateway, err) }

// unreachable tells a person which gateway did not answer; a context's end stays
// recognisable.
func unreachable(gateway *url.URL, err error) error {
	// The URL error repeats method and URL, which the message has already.
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, context.DeadlineExceeded):
		return api.Wrap(api.CodeDeadline, err, "no answer from "+gateway.String()+" in time")
	}
	return &api.Error{Code: api.CodeUnavailable, Field: "gateway", Err: err,
		Message: "cannot reach " + gateway.String(), Remedy: "start the cluster (faasd-sec up), or set --gateway"}
}
