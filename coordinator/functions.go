package coordinator

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/manifest/ask"
	"github.com/faasd-sec/faasd-sec/reqauth"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/store"
)

// storeTimeout bounds one management request's work in the store.
const storeTimeout = 10 * time.Second

// authorise verifies that an owner who may use this cluster signed the request.
func (c *Coordinator) authorise(ctx *fasthttp.RequestCtx, body reqauth.Body) (reqauth.Caller, error) {
	authorization := string(ctx.Request.Header.Peek(fasthttp.HeaderAuthorization))
	if err := c.claimsOwner(authorization); err != nil {
		return reqauth.Caller{}, err
	}
	return c.dep.Auth.Verify(reqauth.Request{
		Method: string(ctx.Method()), Target: string(ctx.RequestURI()), Authorization: authorization, Body: body,
	})
}

// claimsOwner refuses those who may not deploy before anything is verified: keys
// are made for nothing, and the memory of nonces is one for all.
func (c *Coordinator) claimsOwner(authorization string) error {
	claimed, err := reqauth.Claimed(authorization)
	if err != nil {
		return err
	}
	return c.mayDeploy(claimed)
}

func (c *Coordinator) mayDeploy(owner sealed.Fingerprint) error {
	if c.cfg.AnyOwner || slices.Contains(c.cfg.Owners, owner) {
		return nil
	}
	e := api.Errorf(api.CodeForbidden, "owner %s may not deploy to this cluster", owner)
	e.Remedy = "have the operator add this fingerprint to the coordinator's owners"
	return e
}

// claimsIdentity refuses a request without a signature before its body is read:
// a stranger's costs no memory.
func claimsIdentity(ctx *fasthttp.RequestCtx) error {
	if len(ctx.Request.Header.Peek(fasthttp.HeaderAuthorization)) > 0 {
		return nil
	}
	e := api.Errorf(api.CodeUnauthorized, "the request is not signed")
	e.Field, e.Remedy = fasthttp.HeaderAuthorization, "sign it with the owner's key, as faasd-sec does"
	return e
}

// putFunction takes a new or changed function. Nothing is stored unless the
// owner's signature holds, the name is free or the owner's own, the sequence
// grows, and the registry has image and bundle.
func (c *Coordinator) putFunction(ctx *fasthttp.RequestCtx, path string) (*api.FunctionStatus, error) {
	name, err := api.ParseFunctionName(path)
	if err != nil {
		return nil, err
	}
	if err := claimsIdentity(ctx); err != nil {
		return nil, err
	}
	body, err := readBody(ctx)
	if err != nil {
		return nil, err
	}
	caller, err := c.authorise(ctx, reqauth.Bytes(body))
	if err != nil {
		return nil, err
	}
	var rec api.Revision
	if err := json.Unmarshal(body, &rec); err != nil {
		return nil, api.Invalid("body", "send a revision as JSON", err.Error())
	}
	if rec.Plain != nil {
		return c.putPlain(name, rec)
	}
	signed, err := sealed.ParseDescriptor(rec.Descriptor)
	if err != nil {
		return nil, api.Invalid("descriptor", "deploy again with this release's faasd-sec", err.Error())
	}
	d, err := signed.Verify(caller.Fingerprint)
	if err != nil {
		return nil, api.Wrap(api.CodeForbidden, err, "the descriptor is not signed by the owner who sent it")
	}
	if d.FullName() != string(name) {
		return nil, api.Invalid("descriptor", "put it under its own name", "it describes "+d.FullName())
	}
	rev, err := d.Revision()
	if err != nil {
		return nil, api.Invalid("descriptor", "deploy again", err.Error())
	}
	if rec.Scale != nil {
		if err := rec.Scale.Check("scale"); err != nil {
			return nil, err
		}
	}
	if l := d.Config.Resources; l.CPUMillis == 0 || l.MemoryBytes == 0 || l.PIDs == 0 {
		return nil, api.Invalid("limits", "set cpu, memory and pids: nothing runs without a limit", "one of them is 0")
	}
	if err := checkNotes(rec); err != nil {
		return nil, err
	}
	sctx, cancel := context.WithTimeout(c.life, storeTimeout)
	defer cancel()
	if err := c.checkContent(sctx, d, rec); err != nil {
		return nil, err
	}
	expected := int64(0)
	old, err := c.dep.Store.GetFunction(sctx, name)
	switch {
	case err == nil:
		if err := mayReplace(old, d, caller); err != nil {
			return nil, err
		}
		expected = old.Version
	case api.CodeOf(err) != api.CodeNotFound:
		return nil, err
	}
	stated, err := checkRolling(d, rev, rec.Traffic, caller.Fingerprint)
	if err != nil {
		return nil, err
	}
	blob, err := c.depositBounds(sctx, ask.Subject{Function: name, Revision: rev, Owner: caller.Fingerprint}, rec.Bounds)
	if err != nil {
		return nil, err
	}
	if rec.Restore && old != nil {
		past, err := c.past(sctx, name)
		if err != nil {
			return nil, err
		}
		for _, f := range knownOf(old, past) { // it can be the current one, after another did not start
			if f.Revision == rev.String() {
				blob, rec.Scale, rec.Labels, rec.Annotations = f.Bounds, f.Scale, f.Labels, f.Annotations
				break
			}
		}
	}
	lim := d.Config.Resources
	f := store.Function{
		Name: name, Revision: rev.String(), Owner: caller.Fingerprint.String(), Sequence: d.Sequence,
		Descriptor: rec.Descriptor, ImageRef: rec.ImageRef, ImageDigest: d.Config.Image, BundleRef: rec.BundleRef,
		Resources: api.Resources{CPU: int64(lim.CPUMillis), Memory: int64(lim.MemoryBytes), PIDs: int64(lim.PIDs), Tmp: int64(lim.TmpBytes)},
		UpdatedAt: time.Now().Unix(), Bounds: blob, Scale: rec.Scale, Labels: rec.Labels, Annotations: rec.Annotations,
		Traffic: rec.Traffic, Stated: stated,
	}
	f = c.follow(old, f)
	version, err := c.dep.Store.PutFunction(sctx, f, expected)
	if err != nil {
		return nil, err
	}
	// The owner's next invocation finds it: the cache is fed by a watch.
	if err := c.dep.Cache.Wait(sctx, version); err != nil {
		return nil, api.Wrap(api.CodeUnavailable, err, "stored, but not yet visible here")
	}
	c.log.Info("function stored", "function", name, "revision", rev.String(), "owner", f.Owner, "sequence", d.Sequence)
	c.followed(old, &f)
	st := c.statusOf(&f, nil)
	return &st, nil
}

// maxNotes is what labels and annotations may have together, in bytes.
const maxNotes = 64 << 10

func checkNotes(rec api.Revision) error {
	size := 0
	for _, m := range []map[string]string{rec.Labels, rec.Annotations} {
		for k, v := range m {
			size += len(k) + len(v)
		}
	}
	if size > maxNotes {
		return api.Invalid("annotations", "use fewer", fmt.Sprintf("labels and annotations have %d bytes, at most %d are kept", size, maxNotes))
	}
	return nil
}

// mayReplace protects a name and its history.
func mayReplace(old *store.Function, d *sealed.Descriptor, caller reqauth.Caller) error {
	if old.Plain != nil {
		e := api.Errorf(api.CodeConflict, "%s is a plain function", old.Name.Short())
		e.Field, e.Remedy = "name", "remove it first, with faas-cli, or choose another name or namespace"
		return e
	}
	if old.Owner != caller.Fingerprint.String() {
		e := api.Errorf(api.CodeForbidden, "%s belongs to another owner", old.Name)
		e.Field, e.Remedy = "name", "choose another name or namespace"
		return e
	}
	if newest := max(old.Newest(), old.Stated); d.Sequence <= newest {
		e := api.Errorf(api.CodeConflict, "sequence %d is not above the stored %d", d.Sequence, newest)
		e.Field, e.Remedy = "sequence", "deploy again: an older descriptor must not come back"
		return e
	}
	return nil
}

// checkContent makes sure that what the descriptor names is there, so that a
// deployment is never half made.
func (c *Coordinator) checkContent(ctx context.Context, d *sealed.Descriptor, rec api.Revision) error {
	if !api.NamesRegistry(rec.ImageRef) { // another registry is asked by the node that pulls
		ok, err := c.dep.Images.HasManifest(ctx, api.Repository(rec.ImageRef), d.Config.Image)
		if err != nil {
			return err
		}
		if !ok {
			return api.Invalid("image", "push it first: faasd-sec deploy does", "the registry has no "+rec.ImageRef+"@"+d.Config.Image)
		}
	}
	if d.BundleBlob == "" {
		return nil
	}
	ok, err := c.dep.Images.HasBlob(ctx, rec.BundleRef, d.BundleBlob)
	if err != nil {
		return err
	}
	if !ok {
		return api.Invalid("bundle", "push it first: faasd-sec deploy does", "the registry has no "+rec.BundleRef+"@"+d.BundleBlob)
	}
	return nil
}

func (c *Coordinator) deleteFunction(ctx *fasthttp.RequestCtx, path string) error {
	name, err := api.ParseFunctionName(path)
	if err != nil {
		return err
	}
	sctx, cancel := context.WithTimeout(c.life, storeTimeout)
	defer cancel()
	rec, err := c.owned(sctx, ctx, name)
	if err != nil {
		return err
	}
	if _, err := c.dep.Store.DeleteFunction(sctx, name, rec.Version); err != nil {
		return err
	}
	c.log.Info("function removed", "function", name)
	c.forgetHistory(name)
	c.retire(name)
	return nil
}

// owned authorises a request without a body that only the function's owner may make.
func (c *Coordinator) owned(sctx context.Context, ctx *fasthttp.RequestCtx, name api.FunctionName) (*store.Function, error) {
	caller, err := c.authorise(ctx, reqauth.Body{})
	if err != nil {
		return nil, err
	}
	rec, err := c.dep.Store.GetFunction(sctx, name)
	if err != nil {
		return nil, err
	}
	if rec.Plain == nil && rec.Owner != caller.Fingerprint.String() { // a plain one is everybody's who may deploy
		return nil, api.Errorf(api.CodeForbidden, "%s belongs to another owner", name)
	}
	return rec, nil
}

func (c *Coordinator) listFunctions() []api.FunctionStatus {
	snap, n := c.dep.Cache.Snapshot(), c.looked()
	out := make([]api.FunctionStatus, 0, len(snap.Functions))
	for _, f := range snap.Functions {
		out = append(out, c.statusOf(f, n))
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// maxLooks bounds the descriptions that ask all nodes and coordinators at once.
// Anybody may ask for one: beyond the bound they come without sandboxes and demand,
// so that one request of a stranger does not become one to each member for ever
// more of them.
const maxLooks = 16

func (c *Coordinator) describeFunction(path string, brief bool) (*api.FunctionStatus, error) {
	name, err := api.ParseFunctionName(path)
	if err != nil {
		return nil, err
	}
	r, err := c.routeOf(name)
	if err != nil {
		return nil, err
	}
	var n *census
	if !brief {
		n = c.looked()
	}
	st := c.statusOf(r.rec, n)
	st.Descriptor = r.rec.Descriptor
	if t := trafficOf(r.rec); t != nil && t.Live(time.Now()) == nil {
		st.Traffic = r.rec.Traffic
	}
	if brief {
		return &st, nil
	}
	select {
	case c.looks <- struct{}{}:
		var wg sync.WaitGroup
		wg.Go(func() { st.Demand = c.demandOf(r.rec) })
		st.Sandboxes = c.sandboxesOf(name)
		wg.Wait()
		<-c.looks
	default: // callers come for the descriptor
	}
	return &st, nil
}

// statusOf describes a stored function. Without a census replicas come from gossip,
// which knows of each node whether it has any.
func (c *Coordinator) statusOf(f *store.Function, n *census) api.FunctionStatus {
	st := api.FunctionStatus{
		Name: f.Name, Revision: f.Revision, Owner: f.Owner, Image: f.ImageRef + "@" + f.ImageDigest, Sealed: f.Plain == nil,
		Resources: f.Resources, Sequence: f.Sequence, UpdatedAt: f.UpdatedAt, Plain: f.Plain, CreatedAt: f.CreatedAt,
		Labels: f.Labels, Annotations: f.Annotations,
	}
	if f.Plain != nil {
		st.Mode = api.ModePlain
	} else if d, err := sealed.ParseDescriptor(f.Descriptor); err == nil {
		st.Mode = string(d.Unverified().Config.Mode)
	}
	st.Scale, st.Set, st.Rollout = f.Scale, f.Replicas, f.Rollout
	if len(f.Serving()) > 1 {
		st.Serving = servingStatus(f, n)
	}
	if n != nil {
		for _, rev := range f.Serving() {
			sum := n.sum(rev.Revision)
			st.Replicas, st.Available = st.Replicas+sum.Ready+sum.Starting, st.Available+sum.Ready
		}
		return st
	}
	key := api.RevisionKey(f.Revision)
	for _, n := range c.dep.Mesh.Snapshot().Nodes {
		if n.Load.Warm[key] > 0 {
			st.Replicas++
			st.Available++
		}
	}
	return st
}

// readBody reads a management request's body, at most 1 MiB.
func readBody(ctx *fasthttp.RequestCtx) ([]byte, error) {
	const limit = 1 << 20
	b, err := readLimited(ctx, limit)
	if err != nil {
		ctx.SetConnectionClose()
	}
	return b, err
}
