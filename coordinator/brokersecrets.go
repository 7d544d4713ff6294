package coordinator

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// BrokerSecrets are Secrets that the key broker keeps, reached over mutual TLS. What
// is put goes to it and nowhere else, and cannot be read back.
type BrokerSecrets struct {
	Client *http.Client
	URL    string // https://host:port
}

var _ Secrets = (*BrokerSecrets)(nil)

// Put implements Secrets.
func (s *BrokerSecrets) Put(ctx context.Context, namespace, name string, value []byte) error {
	defer clear(value)
	_, err := s.do(ctx, http.MethodPut, url.PathEscape(namespace)+"/"+url.PathEscape(name), value)
	return err
}

// Delete implements Secrets.
func (s *BrokerSecrets) Delete(ctx context.Context, namespace, name string) error {
	_, err := s.do(ctx, http.MethodDelete, url.PathEscape(namespace)+"/"+url.PathEscape(name), nil)
	return err
}

// List implements Secrets.
func (s *BrokerSecrets) List(ctx context.Context, namespace string) ([]string, error) {
	b, err := s.do(ctx, http.MethodGet, url.PathEscape(namespace), nil)
	if err != nil {
		return nil, err
	}
	var names []string
	if err := json.Unmarshal(b, &names); err != nil {
		return nil, api.Wrap(api.CodeUnavailable, err, "the key broker's answer does not parse")
	}
	return names, nil
}

func (s *BrokerSecrets) do(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	return askBroker(ctx, s.Client, method, s.URL+api.BrokerPathSecrets+path, body)
}

// askBroker makes one request of this coordinator's own.
func askBroker(ctx context.Context, c *http.Client, method, target string, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	var from io.Reader
	if body != nil {
		from = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, target, from)
	if err != nil {
		return nil, api.Invalid("secret", "use the documented names", "it cannot be part of a path")
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, api.Wrap(api.CodeUnavailable, err, "the key broker cannot be reached")
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, api.Wrap(api.CodeUnavailable, err, "the key broker broke off")
	}
	if resp.StatusCode/100 != 2 {
		return nil, api.ParseProblem(resp.StatusCode, b)
	}
	return b, nil
}

// brokerKey is the key with which the broker signs releases, asked for once.
type brokerKey struct {
	mu     sync.Mutex
	key    string
	failed failure
}

// brokerSigning returns it, a point in hex.
func (c *Coordinator) brokerSigning() (string, error) {
	came := time.Now()
	c.broker.mu.Lock()
	defer c.broker.mu.Unlock()
	if c.broker.key != "" {
		return c.broker.key, nil
	}
	if err := c.broker.failed.of(came); err != nil {
		return "", err
	}
	if c.dep.BrokerURL == "" {
		return "", api.Errorf(api.CodeUnavailable, "this cluster has no key broker, which keeps secrets")
	}
	began := time.Now()
	b, err := askBroker(c.life, c.dep.Broker, http.MethodGet, c.dep.BrokerURL+api.BrokerPathInfo, nil)
	if c.broker.failed = (failure{began, err}); err != nil {
		return "", err
	}
	var info api.BrokerInfo
	if err := json.Unmarshal(b, &info); err != nil {
		return "", api.Wrap(api.CodeUnavailable, err, "the key broker's answer does not parse")
	}
	c.broker.key = info.Signing
	return info.Signing, nil
}
