package node

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// HTTPBroker reaches a key broker over HTTP; its client does the mutual TLS.
type HTTPBroker struct {
	Client *http.Client
	URL    string // https://host:port
}

// Release implements Broker.
func (b *HTTPBroker) Release(ctx context.Context, req api.ReleaseRequest) (api.ReleaseReply, error) {
	var reply api.ReleaseReply
	body, err := json.Marshal(req)
	if err != nil {
		return reply, fmt.Errorf("encode release request: %w", err)
	}
	hr, err := http.NewRequestWithContext(ctx, http.MethodPost, b.URL+api.BrokerPathRelease, bytes.NewReader(body))
	if err != nil {
		return reply, fmt.Errorf("key broker: %w", err)
	}
	hr.Header.Set("Content-Type", api.ContentTypeJSON)
	resp, err := b.Client.Do(hr)
	if err != nil {
		return reply, api.Wrap(api.CodeUnavailable, err, "the key broker cannot be reached")
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return reply, api.Wrap(api.CodeUnavailable, err, "the key broker broke off")
	}
	if resp.StatusCode != http.StatusOK {
		return reply, api.ParseProblem(resp.StatusCode, out)
	}
	if err := json.Unmarshal(out, &reply); err != nil {
		return reply, api.Wrap(api.CodeUnavailable, err, "the key broker's reply is not understood")
	}
	return reply, nil
}

// nearEvery is how often KeepNear asks: more often than a broker gives up an
// idle connection.
const nearEvery = 45 * time.Second

// KeepNear keeps a connection to the broker open until ctx ends, so that the
// first start after a quiet hour does not wait for a handshake. A broker that is
// away is left to the starts, which say so.
func (b *HTTPBroker) KeepNear(ctx context.Context) {
	tick := time.NewTicker(nearEvery)
	defer tick.Stop()
	for {
		b.look(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// look asks for what anybody may know, and throws the answer away.
func (b *HTTPBroker) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, nearEvery/2)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.URL+api.BrokerPathInfo, nil)
	if err != nil {
		return
	}
	resp, err := b.Client.Do(req)
	if err != nil {
		return
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
	_ = resp.Body.Close()
}
