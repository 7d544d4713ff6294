package keybroker

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/reqauth"
)

// maxBody bounds any request in bytes: the largest is a sealed deposit.
const maxBody = maxDeposit + (64 << 10)

// Caller is who is at the other end of a connection.
type Caller struct {
	Node        bool // may ask for releases
	Coordinator bool // may relay deposits and removals
	ID          string
}

// Server serves a Broker over HTTP. Callers are authenticated by the TLS
// listener it is given; Identify reads who they are from the connection.
type Server struct {
	Broker   *Broker
	Identify func(*tls.ConnectionState) (Caller, error)
	Log      *slog.Logger
}

// Serve answers on ln, a TLS listener that demands certificates, until ctx ends;
// then it lets running requests finish for up to five seconds.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	// What is asked for after ctx ended would be half done; requests are short,
	// so they keep the context and are waited for instead.
	srv := &fasthttp.Server{Handler: func(c *fasthttp.RequestCtx) { s.handle(ctx, c) }, Name: "faasd-sec-keybroker",
		NoDefaultDate: true, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxRequestBodySize: maxBody, ReadBufferSize: 8 << 10, Concurrency: 1024, CloseOnShutdown: true,
		Logger: quiet{s.Log}}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	lapsed := make(chan struct{})
	lapse, endLapse := context.WithCancel(ctx)
	go func() { defer close(lapsed); s.lapse(lapse) }()
	defer func() { endLapse(); <-lapsed }()
	select {
	case err := <-done:
		return fmt.Errorf("keybroker: serve: %w", err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err := srv.ShutdownWithContext(stop)
	// Shutdown knows no listener yet when ctx ended before Serve had begun.
	ln.Close()
	<-done
	return err
}

// lapse destroys keys whose time is over until ctx ends.
func (s *Server) lapse(ctx context.Context) {
	tick := time.NewTicker(lapseEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := s.Broker.Lapse(); err != nil {
				s.Log.Error("key broker cannot destroy keys whose traffic statement ended; it does not release them", "error", err)
			}
		}
	}
}

// quiet turns fasthttp's own messages, such as failed handshakes of port scans,
// into debug lines.
type quiet struct{ log *slog.Logger }

func (q quiet) Printf(format string, args ...any) { q.log.Debug(fmt.Sprintf(format, args...)) }

func (s *Server) handle(ctx context.Context, c *fasthttp.RequestCtx) {
	callID := string(c.Request.Header.Peek(api.HeaderCallID))
	status, body, err := s.route(ctx, c)
	if err != nil {
		p := api.ProblemOf(err, callID)
		s.write(c, p.Status, api.ContentTypeProblem, p)
		return
	}
	if body == nil {
		c.SetStatusCode(status)
		return
	}
	s.write(c, status, api.ContentTypeJSON, body)
}

func (s *Server) write(c *fasthttp.RequestCtx, status int, contentType string, body any) {
	b, err := json.Marshal(body)
	if err != nil {
		s.Log.Error("key broker cannot encode its answer", "error", err)
		c.SetStatusCode(fasthttp.StatusInternalServerError)
		return
	}
	c.SetStatusCode(status)
	c.SetContentType(contentType)
	c.SetBody(b)
}

func (s *Server) route(ctx context.Context, c *fasthttp.RequestCtx) (int, any, error) {
	who, err := s.Identify(c.TLSConnectionState())
	if err != nil {
		return 0, nil, err
	}
	// The path as it came: an owner's signature covers it byte for byte, so
	// nothing here may be decoded or cleaned up first.
	path, _, _ := strings.Cut(string(c.Request.Header.RequestURI()), "?")
	method := string(c.Method())
	switch {
	case path == api.BrokerPathInfo && method == "GET":
		return 200, s.Broker.Info(), nil
	case path == api.BrokerPathDeposits && method == "POST":
		return s.deposit(who, c)
	case path == api.BrokerPathRelease && method == "POST":
		return s.release(ctx, who, c)
	case path == api.BrokerPathAttest && method == "POST":
		return s.attest(ctx, who, c)
	case strings.HasPrefix(path, api.BrokerPathDeposits+"/") && method == "DELETE":
		return s.remove(who, path, c)
	case strings.HasPrefix(path, api.BrokerPathSecrets):
		return s.secrets(who, method, path[len(api.BrokerPathSecrets):], c)
	case path == api.BrokerPathInfo || path == api.BrokerPathDeposits || path == api.BrokerPathRelease || path == api.BrokerPathAttest:
		return 0, nil, &api.Error{Code: api.CodeMethod, Message: method + " is not served here"}
	}
	return 0, nil, &api.Error{Code: api.CodeNotFound, Message: "no such path"}
}

func (s *Server) deposit(who Caller, c *fasthttp.RequestCtx) (int, any, error) {
	if !who.Coordinator {
		return 0, nil, &api.Error{Code: api.CodeForbidden, Message: "deposits come by way of a coordinator"}
	}
	if string(c.Request.Header.ContentType()) != api.ContentTypeSealed {
		return 0, nil, &api.Error{Code: api.CodeMediaType, Field: "Content-Type", Message: "want " + api.ContentTypeSealed}
	}
	d, err := s.Broker.Deposit(bytes.NewReader(c.PostBody()))
	return 200, d, err
}

func (s *Server) release(ctx context.Context, who Caller, c *fasthttp.RequestCtx) (int, any, error) {
	if !who.Node {
		return 0, nil, &api.Error{Code: api.CodeForbidden, Message: "keys are released to nodes"}
	}
	var req api.ReleaseRequest
	if err := json.Unmarshal(c.PostBody(), &req); err != nil {
		return 0, nil, api.Wrap(api.CodeInvalid, err, "the body is not a release request")
	}
	reply, err := s.Broker.Release(ctx, who.ID, req)
	return 200, reply, err
}

func (s *Server) attest(ctx context.Context, who Caller, c *fasthttp.RequestCtx) (int, any, error) {
	if !who.Node {
		return 0, nil, &api.Error{Code: api.CodeForbidden, Message: "evidence is taken from nodes"}
	}
	var req api.AttestRequest
	if err := json.Unmarshal(c.PostBody(), &req); err != nil {
		return 0, nil, api.Wrap(api.CodeInvalid, err, "the body is not an attest request")
	}
	return 204, nil, s.Broker.Attest(ctx, who.ID, req)
}

// secrets serves a coordinator, which puts secrets and never gets one.
func (s *Server) secrets(who Caller, method, path string, c *fasthttp.RequestCtx) (int, any, error) {
	if !who.Coordinator {
		return 0, nil, &api.Error{Code: api.CodeForbidden, Message: "secrets come by way of a coordinator"}
	}
	namespace, name, one := strings.Cut(path, "/")
	switch {
	case !one && method == "GET":
		names, err := s.Broker.Secrets(namespace)
		return 200, names, err
	case one && method == "PUT":
		value := c.PostBody()
		defer clear(value)
		return 204, nil, s.Broker.PutSecret(namespace, name, value)
	case one && method == "DELETE":
		return 204, nil, s.Broker.DeleteSecret(namespace, name)
	}
	return 0, nil, &api.Error{Code: api.CodeMethod, Message: method + " is not served here"}
}

func (s *Server) remove(who Caller, path string, c *fasthttp.RequestCtx) (int, any, error) {
	if !who.Coordinator {
		return 0, nil, &api.Error{Code: api.CodeForbidden, Message: "removals come by way of a coordinator"}
	}
	name, err := api.ParseFunctionName(strings.TrimPrefix(path, api.BrokerPathDeposits+"/"))
	if err != nil {
		return 0, nil, err
	}
	if len(c.PostBody()) != 0 {
		return 0, nil, api.Wrap(api.CodeInvalid, errors.New("body"), "a removal has no body")
	}
	return 204, nil, s.Broker.Remove(name, reqauth.Request{Method: "DELETE", Target: string(c.Request.Header.RequestURI()),
		Authorization: string(c.Request.Header.Peek("Authorization"))})
}
