package node

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
)

// serve routes one request of a coordinator.
func (n *Node) serve(ctx *fasthttp.RequestCtx) {
	path := string(ctx.Path())
	method := string(ctx.Method())
	rest := func(prefix string) (string, bool) { return strings.CutPrefix(path, prefix) }
	if name, ok := rest(api.NodePathInvoke); ok && method == fasthttp.MethodPost {
		n.traced(ctx, name, n.serveInvoke)
		return
	}
	if name, ok := rest(api.NodePathPlain); ok {
		n.traced(ctx, name, n.servePlain)
		return
	}
	var out any
	var err error
	switch {
	case strings.HasPrefix(path, api.NodePathAdmit) && method == fasthttp.MethodPost:
		out, err = n.serveAdmit(ctx, path[len(api.NodePathAdmit):])
	case strings.HasPrefix(path, api.NodePathRevisions) && method == fasthttp.MethodPut:
		err = n.servePutRevision(ctx, path[len(api.NodePathRevisions):])
	case strings.HasPrefix(path, api.NodePathFunctions) && method == fasthttp.MethodDelete:
		err = n.serveRetire(ctx, path[len(api.NodePathFunctions):])
	case strings.HasPrefix(path, api.NodePathLogs) && method == fasthttp.MethodGet:
		err = n.serveLogs(ctx, path[len(api.NodePathLogs):])
		if err == nil {
			return
		}
	case path == api.NodePathReplicas && method == fasthttp.MethodGet:
		out = n.serveReplicas(ctx)
	case strings.HasPrefix(path, api.NodePathReplicas+"/") && method == fasthttp.MethodPut:
		out, err = n.serveReplicaOrder(ctx, path[len(api.NodePathReplicas)+1:])
	case path == api.NodePathSandboxes && method == fasthttp.MethodGet:
		out, err = n.serveSandboxes(ctx)
	case path == api.NodePathStatus && method == fasthttp.MethodGet:
		out = n.serveStatus(ctx)
	case path == api.NodePathDrain && (method == fasthttp.MethodPut || method == fasthttp.MethodDelete):
		err = n.cordon(method == fasthttp.MethodPut)
	case path == api.NodePathAnomalies && method == fasthttp.MethodGet:
		if err = n.serveAnomalies(ctx); err == nil {
			return
		}
	default:
		err = api.Errorf(api.CodeNotFound, "no such path on a node")
	}
	if err != nil {
		n.problem(ctx, err)
		return
	}
	if out == nil {
		ctx.SetStatusCode(fasthttp.StatusNoContent)
		return
	}
	b, err := json.Marshal(out)
	if err != nil {
		n.problem(ctx, err)
		return
	}
	ctx.SetContentType(api.ContentTypeJSON)
	ctx.SetBody(b)
}

// problem replies with err as a problem document.
func (n *Node) problem(ctx *fasthttp.RequestCtx, err error) {
	p := api.ProblemOf(err, string(ctx.Request.Header.Peek(api.HeaderCallID)))
	if p.Code == api.CodeInternal {
		n.log.Error("request failed", "path", string(ctx.Path()), "call", p.CallID, "err", err)
	}
	b, jerr := json.Marshal(p)
	if jerr != nil { // strings and numbers always encode
		ctx.SetStatusCode(fasthttp.StatusInternalServerError)
		return
	}
	ctx.SetStatusCode(p.Status)
	ctx.SetContentType(api.ContentTypeProblem)
	ctx.SetBody(b)
}

// refuse replies that no byte reached an agent, with what the node has free, so
// that the coordinator goes to its next candidate better informed.
func (n *Node) refuse(ctx *fasthttp.RequestCtx, err error) {
	n.problem(ctx, err)
	ctx.Response.Header.Set(api.HeaderRefused, string(api.CodeOf(err)))
	if l := n.load.Load(); l != nil {
		carry(ctx, l)
	}
}

// maxCarried is the longest load that replies carry along, in bytes: peers
// bound a reply's header, and gossip brings a longer load anyway.
const maxCarried = 4 << 10

func carry(ctx *fasthttp.RequestCtx, l *stampedLoad) {
	if len(l.json) <= maxCarried {
		ctx.Response.Header.Set(api.HeaderLoad, l.json)
	}
}

// lookup reads the function name and the revision of a request.
func (n *Node) lookup(ctx *fasthttp.RequestCtx, name string) (*revision, error) {
	digest := string(ctx.QueryArgs().Peek("rev"))
	rev, ok := n.revs.get(digest)
	if seq, err := strconv.ParseUint(string(ctx.QueryArgs().Peek("seq")), 10, 64); err != nil || !ok || rev.seq < seq {
		return nil, api.Errorf(api.CodeUnknownRevision, "this node was not told that revision yet")
	}
	if string(rev.name) != name {
		return nil, api.Invalid("rev", "ask for a revision of the function named in the path", "it belongs to another function")
	}
	return rev, nil
}

func (n *Node) serveAdmit(ctx *fasthttp.RequestCtx, name string) (*api.Ticket, error) {
	rev, err := n.lookup(ctx, name)
	var t *task
	if err == nil {
		t, err = n.taskOf(ctx.Request.Header.Peek(api.HeaderNeeds), rev, time.Now())
	}
	if err == nil {
		if t != nil {
			rev = t.rev
		}
		c, cancel := t.within(n.life, rev.start)
		defer cancel()
		var sl slot
		if sl, err = n.acquire(c, rev, askerOf(ctx, nil)); err == nil {
			ticket := n.promise(sl, t)
			return &ticket, nil
		}
	}
	ctx.Response.Header.Set(api.HeaderRefused, string(api.CodeOf(err)))
	if l := n.load.Load(); l != nil {
		carry(ctx, l)
	}
	return nil, err
}

func (n *Node) servePutRevision(ctx *fasthttp.RequestCtx, digest string) error {
	if b, err := hex.DecodeString(digest); err != nil || len(b) != 32 {
		return api.Invalid("revision", "use 64 hex digits", "it is not a digest")
	}
	body, err := readSmall(ctx)
	if err != nil {
		return err
	}
	var rec api.Revision
	if err := json.Unmarshal(body, &rec); err != nil {
		return api.Invalid("body", "send a revision as JSON", err.Error())
	}
	rev, err := n.revs.put(digest, rec, keeps(ctx)...)
	if err != nil {
		return err
	}
	if ctx.QueryArgs().Has(api.NodeQueryPrefetch) {
		n.spawn(func() { n.prefetch(rev) })
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.fleet {
		if s.rev.digest == digest && s.rev.seq < rev.seq { // it has the keys of before
			n.spawn(func() { n.retire(s) })
		}
	}
	return nil
}

// keeps are the revisions of a function that a coordinator names as those that
// serve now.
func keeps(ctx *fasthttp.RequestCtx) (list []string) {
	for _, b := range ctx.QueryArgs().PeekMulti(api.NodeQueryKeep) {
		list = append(list, string(b))
	}
	return list
}

// serveRetire stops the sandboxes of all revisions of a function but those named,
// each after its invocations under way.
func (n *Node) serveRetire(ctx *fasthttp.RequestCtx, name string) error {
	keep := keeps(ctx)
	if err := n.revs.drop(api.FunctionName(name), keep...); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.fleet {
		if string(s.rev.name) == name && !slices.Contains(keep, s.rev.digest) {
			n.spawn(func() { n.retire(s) })
		}
	}
	if len(keep) == 0 {
		n.logs.drop(api.FunctionName(name))
	}
	return nil
}

// retire gives s no more invocations and removes it once it is idle, or when
// those under way overstay.
func (n *Node) retire(s *sandbox) {
	n.mu.Lock()
	s.retiring = true
	patience := s.rev.bound
	if s.state == starting {
		patience += s.rev.start
	}
	n.mu.Unlock()
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		n.mu.Lock()
		idle, wait := s.inFlight == 0 || s.state >= stopping, n.changed
		n.mu.Unlock()
		if idle {
			break
		}
		select {
		case <-wait:
			continue
		case <-late.C:
		case <-n.life.Done():
			return
		}
		break
	}
	n.remove(s, "replaced or removed")
	// It may have logged until now, past the end of its function's book.
	if !n.revs.has(s.rev.name) {
		n.logs.drop(s.rev.name)
	}
}

func (n *Node) serveSandboxes(ctx *fasthttp.RequestCtx) ([]api.SandboxStatus, error) {
	want := string(ctx.QueryArgs().Peek("function"))
	match := func(f api.FunctionName) bool { return want == "" || string(f) == want }
	out := []api.SandboxStatus{}
	var live []*sandbox
	n.mu.Lock()
	for _, s := range n.fleet {
		if match(s.rev.name) {
			out = append(out, n.status(s))
			live = append(live, s)
		}
	}
	for i := len(n.past) - 1; i >= 0 && i >= len(n.past)-64; i-- {
		if match(n.past[i].Function) {
			out = append(out, n.past[i])
		}
	}
	n.mu.Unlock()
	c, cancel := context.WithTimeout(n.life, 5*time.Second)
	defer cancel()
	for i, s := range live {
		rt := n.runtimeOf(s)
		if rt == nil {
			continue
		}
		if u, err := rt.Usage(c); err == nil {
			out[i].Memory, out[i].CPUMicros = u.Memory, u.CPU.Microseconds()
		}
	}
	return out, nil
}

// readSmall reads a management request's body, at most 1 MiB.
func readSmall(ctx *fasthttp.RequestCtx) ([]byte, error) {
	const limit = 1 << 20
	if ctx.Request.Header.ContentLength() > limit {
		ctx.SetConnectionClose()
		return nil, api.Errorf(api.CodeTooLarge, "the body is over %d bytes", limit)
	}
	body, err := readAll(ctx, limit)
	if err != nil {
		return nil, err
	}
	return body, nil
}
