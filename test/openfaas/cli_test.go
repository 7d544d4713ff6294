package openfaas

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// faasCLI makes the requests that faas-cli makes, to the letter.
type faasCLI struct {
	gateway, user, password string
}

// message is a body: fields by their names.
type message map[string]any

type reply struct {
	status int
	header http.Header
	body   string
}

// into parses a reply of JSON.
func (r reply) into(v any) error {
	if r.status != http.StatusOK {
		return fmt.Errorf("status %d: %s", r.status, r.body)
	}
	return json.Unmarshal([]byte(r.body), v)
}

// send makes a request; body is nil, a string or what becomes JSON.
func (c *faasCLI) send(method, path string, body any, change ...func(*http.Request)) reply {
	var b []byte
	switch v := body.(type) {
	case nil:
	case string:
		b = []byte(v)
	default:
		b, _ = json.Marshal(v) // of strings and numbers
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, c.gateway+path, bytes.NewReader(b))
	if err != nil {
		return reply{body: err.Error()}
	}
	req.Header.Set("User-Agent", "faas-cli/0.17.4")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.user != "" && strings.HasPrefix(path, "/system/") {
		req.SetBasicAuth(c.user, c.password)
	}
	for _, f := range change {
		f(req)
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		return reply{body: err.Error()}
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil {
		return reply{body: err.Error()}
	}
	return reply{resp.StatusCode, resp.Header, string(out)}
}

// login is a list of functions, which has to be answered with 200 or 401.
func (c *faasCLI) login() reply { return c.send("GET", "/system/functions", nil) }

// deploy updates, and creates what is not there.
func (c *faasCLI) deploy(d message) reply {
	r := c.send("PUT", "/system/functions", d)
	if r.status == http.StatusNotFound {
		r = c.send("POST", "/system/functions", d)
	}
	return r
}

func query(namespace string) string {
	if namespace == "" {
		return ""
	}
	return "?namespace=" + url.QueryEscape(namespace)
}

func (c *faasCLI) list(namespace string) reply {
	return c.send("GET", "/system/functions"+query(namespace), nil)
}

func (c *faasCLI) describe(name, namespace string) reply {
	q := url.Values{"usage": {"1"}}
	if namespace != "" {
		q.Set("namespace", namespace)
	}
	return c.send("GET", "/system/function/"+name+"?"+q.Encode(), nil)
}

func (c *faasCLI) remove(name, namespace string) reply {
	return c.send("DELETE", "/system/functions"+query(namespace), message{"functionName": name})
}

func (c *faasCLI) scale(name, namespace string, n int) reply {
	return c.send("POST", "/system/scale-function/"+name, message{"serviceName": name, "replicas": n, "namespace": namespace})
}

func (c *faasCLI) secret(method, name, namespace, value string) reply {
	return c.send(method, "/system/secrets", message{"name": name, "namespace": namespace, "value": value})
}

func (c *faasCLI) secrets(namespace string) reply {
	return c.send("GET", "/system/secrets"+query(namespace), nil)
}

// logs reads a log that is not followed.
func (c *faasCLI) logs(name string, tail int) ([]logMessage, error) {
	q := url.Values{"name": {name}, "follow": {"false"}, "tail": {strconv.Itoa(tail)}}
	r := c.send("GET", "/system/logs?"+q.Encode(), nil)
	if r.status != http.StatusOK || r.header.Get("Content-Type") != "application/x-ndjson" {
		return nil, fmt.Errorf("status %d, %s: %s", r.status, r.header.Get("Content-Type"), r.body)
	}
	var out []logMessage
	for d := json.NewDecoder(strings.NewReader(r.body)); d.More(); {
		var m logMessage
		if err := d.Decode(&m); err != nil {
			return out, err
		}
		out = append(out, m)
	}
	return out, nil
}

type logMessage struct {
	Name, Namespace, Instance, Text string
	Timestamp                       time.Time
}

// invoke calls a function; the name may have a namespace, a path and a query.
func (c *faasCLI) invoke(method, name, body string, change ...func(*http.Request)) reply {
	return c.send(method, "/function/"+name, body, change...)
}

// status is the part of a FunctionStatus that the tests read.
type status struct {
	Name, Image, Namespace, EnvProcess string
	EnvVars                            map[string]string
	Labels, Annotations                map[string]string
	Secrets, Constraints               []string
	Limits, Requests                   map[string]string
	ReadOnlyRootFilesystem             bool
	InvocationCount                    float64
	Replicas, AvailableReplicas        int
	CreatedAt                          time.Time
	Usage                              *struct{ CPU, TotalMemoryBytes float64 }
	Mode                               string
}

func (c *faasCLI) status(name string) (s status, err error) {
	return s, c.describe(name, "").into(&s)
}
