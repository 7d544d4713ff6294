package coordinator

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/gate"
	"github.com/faasd-sec/faasd-sec/reqauth"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// ask makes one management request to a node, or another coordinator.
func (c *Coordinator) ask(ctx context.Context, p *peer, method, path string, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://node"+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("ask node: %w", err)
	}
	resp, err := p.up.RoundTrip(req)
	if err != nil {
		return nil, api.Wrap(api.CodeUnavailable, err, "member "+p.id+" cannot be reached")
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err != nil {
		return nil, api.Wrap(api.CodeUnavailable, err, "member "+p.id+" broke off")
	}
	if resp.StatusCode/100 != 2 {
		return nil, api.ParseProblem(resp.StatusCode, b)
	}
	return b, nil
}

// everyNode runs f for each member that runs sandboxes, all at once.
func (c *Coordinator) everyNode(f func(*peer)) {
	var wg sync.WaitGroup
	for _, n := range c.dep.Mesh.Snapshot().Nodes {
		if n.Load.Epoch == 0 {
			continue
		}
		p := c.peers.get(n)
		wg.Add(1)
		go func() { defer wg.Done(); f(p) }()
	}
	wg.Wait()
}

// retire stops a function's sandboxes everywhere, but those of revisions keep.
// A node that cannot be reached stops them when they are idle.
func (c *Coordinator) retire(name api.FunctionName, keep ...string) {
	path := api.NodePathFunctions + string(name)
	if len(keep) > 0 {
		path += "?" + url.Values{api.NodeQueryKeep: keep}.Encode()
	}
	c.everyNode(func(p *peer) {
		if _, err := c.ask(c.life, p, http.MethodDelete, path, nil); err != nil {
			c.log.Warn("retire", "function", name, "node", p.id, "err", err)
		}
	})
}

// describeTimeout bounds the question about a function's sandboxes.
const describeTimeout = 2 * time.Second

// sandboxesOf asks every node for a function's sandboxes.
func (c *Coordinator) sandboxesOf(name api.FunctionName) []api.SandboxStatus {
	var mu sync.Mutex
	var all []api.SandboxStatus
	// Callers wait for this when they fetch a descriptor: a node that does not
	// answer is left out soon.
	ctx, cancel := context.WithTimeout(c.life, describeTimeout)
	defer cancel()
	c.everyNode(func(p *peer) {
		b, err := c.ask(ctx, p, http.MethodGet, api.NodePathSandboxes+"?function="+string(name), nil)
		var some []api.SandboxStatus
		if err == nil {
			err = json.Unmarshal(b, &some)
		}
		if err != nil {
			c.log.Warn("list sandboxes", "node", p.id, "err", err)
			return
		}
		mu.Lock()
		all = append(all, some...)
		mu.Unlock()
	})
	return all
}

// relayToBroker passes a request on to the key broker untouched: a deposit is
// sealed to the broker, a deletion signed by the owner.
func (c *Coordinator) relayToBroker(ctx *fasthttp.RequestCtx) error {
	if c.dep.BrokerURL == "" {
		return api.Errorf(api.CodeUnavailable, "this cluster has no key broker")
	}
	target := string(ctx.RequestURI())
	if !strings.HasPrefix(target, "/") {
		// It is appended to the broker's address, which must stay whole and which
		// an error would tell.
		return api.Invalid("path", "send it as a path that begins with /", "the request-target is not a path")
	}
	body, err := readBody(ctx)
	if err != nil {
		return err
	}
	switch {
	case ctx.IsPost():
		err = c.mayDeposit(body)
	case ctx.IsDelete():
		err = c.claimsOwner(string(ctx.Request.Header.Peek(fasthttp.HeaderAuthorization)))
	}
	if err != nil {
		return err
	}
	rctx, cancel := context.WithTimeout(c.life, storeTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(rctx, string(ctx.Method()), c.dep.BrokerURL+target, bytes.NewReader(body))
	if err != nil {
		return api.Invalid("path", "use the documented one", err.Error())
	}
	for _, h := range []string{fasthttp.HeaderAuthorization, fasthttp.HeaderContentType} {
		if v := ctx.Request.Header.Peek(h); len(v) > 0 {
			req.Header.Set(h, string(v))
		}
	}
	resp, err := c.dep.Broker.Do(req)
	if err != nil {
		return api.Wrap(api.CodeUnavailable, err, "the key broker cannot be reached")
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return api.Wrap(api.CodeUnavailable, err, "the key broker broke off")
	}
	ctx.SetStatusCode(resp.StatusCode)
	ctx.SetContentType(resp.Header.Get(fasthttp.HeaderContentType))
	ctx.SetBody(b)
	return nil
}

// mayDeposit refuses deposits of those who may not deploy: a key broker that
// lists no owners would bind the name to whoever comes first. The broker checks
// that the sender is who the envelope says.
func (c *Coordinator) mayDeposit(body []byte) error {
	p, err := sealed.Peek(body)
	if err != nil {
		return gate.Coded(err)
	}
	return c.mayDeploy(p.Grant.Sender.Fingerprint())
}

// serveRegistry lets owners read and push images and sealed bundles, and whoever has
// the password of the OpenFaaS API, since clients of registries cannot sign. An
// upload's content is bound by its digest, not by the request's signature.
func (c *Coordinator) serveRegistry(ctx *fasthttp.RequestCtx) {
	if ctx.IsDelete() && !reqauth.IsRegistryUpload(fasthttp.MethodPost, string(ctx.Path())) {
		// Repositories have no owners: one owner could take another's image away.
		ctx.SetConnectionClose()
		c.problem(ctx, api.Errorf(api.CodeMethod, "nothing is deleted from the registry through the gateway"))
		return
	}
	if scheme, _, _ := strings.Cut(string(ctx.Request.Header.Peek(fasthttp.HeaderAuthorization)), " "); scheme != reqauth.Scheme && c.system.TakesPassword() {
		ctx.Response.Header.Set("Docker-Distribution-Api-Version", "registry/2.0")
		if !c.system.Admit(ctx) {
			ctx.SetConnectionClose()
			if ctx.Response.StatusCode() == fasthttp.StatusUnauthorized { // with the challenge, for which those clients wait
				e := api.Errorf(api.CodeUnauthorized, "the request is neither signed nor has the gateway's password")
				e.Field, e.Remedy = fasthttp.HeaderAuthorization, "sign it with the owner's key, as faasd-sec does, or log in (docker login)"
				c.problem(ctx, e)
			}
			return
		}
		c.dep.Registry(ctx)
		return
	}
	body := reqauth.Body{}
	if reqauth.IsRegistryUpload(string(ctx.Method()), string(ctx.Path())) {
		body = reqauth.Unsigned()
	} else if ctx.IsPut() || ctx.IsPost() || ctx.IsPatch() {
		if err := claimsIdentity(ctx); err != nil {
			c.problem(ctx, err)
			return
		}
		b, err := readLimited(ctx, 4<<20) // a manifest
		if err != nil {
			ctx.SetConnectionClose()
			c.problem(ctx, err)
			return
		}
		ctx.Request.SetBody(b)
		body = reqauth.Bytes(b)
	}
	if _, err := c.authorise(ctx, body); err != nil {
		ctx.SetConnectionClose()
		c.problem(ctx, err)
		return
	}
	c.dep.Registry(ctx)
}

// readLimited reads a request's whole body.
func readLimited(ctx *fasthttp.RequestCtx, limit int) ([]byte, error) {
	tooLarge := api.Errorf(api.CodeTooLarge, "the body is over %d bytes", limit)
	if ctx.Request.Header.ContentLength() > limit {
		return nil, tooLarge
	}
	stream := ctx.RequestBodyStream()
	if stream == nil {
		return ctx.PostBody(), nil
	}
	b, err := io.ReadAll(io.LimitReader(stream, int64(limit)+1))
	if err != nil {
		return nil, api.Wrap(api.CodeInvalid, err, "the body ended early or came too slowly")
	}
	if len(b) > limit {
		return nil, tooLarge
	}
	return b, nil
}

// serveLogs merges the sealed log frames of all nodes into one stream.
func (c *Coordinator) serveLogs(ctx *fasthttp.RequestCtx, path string) error {
	name, err := api.ParseFunctionName(path)
	if err != nil {
		return err
	}
	sctx, cancel := context.WithTimeout(c.life, storeTimeout)
	defer cancel()
	if _, err := c.owned(sctx, ctx, name); err != nil {
		return err
	}
	query := ""
	if string(ctx.QueryArgs().Peek("follow")) == "1" {
		query = "?follow=1"
	}
	m := newMerger(c, name, query)
	ctx.SetContentType(api.ContentTypeFrames)
	conn := ctx.Conn()
	ctx.SetBodyStreamWriter(m.write(func() { _ = conn.SetWriteDeadline(time.Now().Add(30 * time.Second)) }))
	return nil
}
