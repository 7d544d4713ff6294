package client

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"

	"github.com/faasd-sec/faasd-sec/api"
)

// NodeDetails asks every node of the cluster, through the gateway, what it has and
// runs; with history also for the last minute. Nodes that do not answer are there
// with an error.
func (c *Client) NodeDetails(ctx context.Context, history bool) (api.NodeList, error) {
	q := url.Values{api.QueryDetail: {"1"}}
	if history {
		q.Set(api.QueryHistory, "1")
	}
	var out api.NodeList
	return out, c.do(ctx, call{method: http.MethodGet, path: api.GatewayPathNodes, query: q}, &out)
}

// Tasks asks every node what it runs; query is of api.QueryFunction, QueryNode and
// QueryHistory.
func (c *Client) Tasks(ctx context.Context, query url.Values) (api.TaskList, error) {
	var out api.TaskList
	return out, c.do(ctx, call{method: http.MethodGet, path: api.GatewayPathTasks, query: query}, &out)
}

// maxEventLine bounds one line of an anomaly log.
const maxEventLine = 8 << 10

// Anomalies calls each with every line, a JSON object, of the anomaly logs of the
// cluster that query takes, until there are no more or, with api.QueryFollow,
// until ctx ends or each returns an error, which is returned. Nothing of it is
// verified: who must be sure verifies a copy of the log.
func (c *Client) Anomalies(ctx context.Context, query url.Values, each func(line []byte) error) error {
	res, err := c.send(ctx, call{method: http.MethodGet, path: api.GatewayPathAnomalies, query: query})
	if err != nil {
		return err
	}
	defer res.Body.Close()
	r := bufio.NewReaderSize(res.Body, maxEventLine)
	for {
		line, err := r.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return c.unreachable(err)
		}
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue // a sign of life
		}
		if err := each(line); err != nil {
			return err
		}
	}
}
