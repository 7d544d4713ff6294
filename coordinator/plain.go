package coordinator

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/placement"
	"github.com/faasd-sec/faasd-sec/store"
)

// Plain functions are deployed without a descriptor, by whoever may do so by
// OpenFaaS's means: the adapter decides that, and calls this.

// ImageResolver finds out what an image's reference means now.
type ImageResolver interface {
	// Resolve returns where the image is to be pulled, with its registry where that
	// is not the cluster's own, and its digest "sha256:…". The error says what to do
	// about a name that means nothing.
	Resolve(ctx context.Context, ref string) (full, digest string, err error)
	// ResolveOwn is the same of an image that is in the cluster's registry or nowhere.
	ResolveOwn(ctx context.Context, ref string) (full, digest string, err error)
}

// PutPlain deploys a plain function, or changes it; created tells which. The
// reference of its image is resolved now, and its digest is what runs until the
// next deployment. Settings that are equal to those that run change nothing.
// CodeConflict says that the name is a sealed function's.
func (c *Coordinator) PutPlain(ctx context.Context, name api.FunctionName, p api.Plain) (created bool, err error) {
	return c.putPlainFrom(ctx, name, p, plainSource{})
}

// plainSource is what is known of a plain function beside what was deployed.
type plainSource struct {
	host  string     // by which the client knows this gateway: images there are the cluster's own
	scale *api.Scale // where the labels have none
}

// putPlainFrom is PutPlain with more that is known.
func (c *Coordinator) putPlainFrom(ctx context.Context, name api.FunctionName, p api.Plain, from plainSource) (created bool, err error) {
	settings, err := p.Settle()
	if err != nil {
		return false, err
	}
	scale, err := api.ScaleOf(p.Labels)
	if err != nil {
		return false, err
	}
	if scale == nil {
		scale = from.scale
	}
	if c.dep.Resolver == nil {
		e := api.Errorf(api.CodeUnavailable, "this coordinator takes no plain functions")
		e.Remedy = "seal the function: faasd-sec deploy"
		return false, e
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	expected := store.Absent
	old, err := c.dep.Store.GetFunction(ctx, name)
	switch {
	case err == nil && old.Plain == nil:
		return false, sealedName(name)
	case err == nil:
		expected = old.Version
	case api.CodeOf(err) != api.CodeNotFound:
		return false, err
	default:
		old = nil
	}
	if err := c.checkSecrets(ctx, name, p.Secrets); err != nil {
		return false, err
	}
	resolve, image := c.dep.Resolver.Resolve, p.Image
	if own, ok := strings.CutPrefix(image, from.host+"/"); ok && from.host != "" {
		resolve, image = c.dep.Resolver.ResolveOwn, own
	}
	ref, digest, err := resolve(ctx, image)
	if err != nil {
		return false, err
	}
	if !api.NamesRegistry(ref) { // the cluster's own: it must not be lost with one coordinator
		there, err := c.dep.Images.HasManifest(ctx, api.Repository(ref), digest)
		if err != nil {
			return false, err
		}
		if !there {
			return false, api.Invalid("image", "push it again", "the registry has no "+api.Repository(ref)+"@"+digest)
		}
	}
	rev, err := p.Revision(name, digest)
	if err != nil {
		return false, err
	}
	now := time.Now()
	f := store.Function{Name: name, Revision: rev, Sequence: uint64(now.UnixMilli()), Plain: &p, ImageRef: ref, ImageDigest: digest,
		Resources: settings.Resources, UpdatedAt: now.Unix(), CreatedAt: now.Unix(), Scale: scale}
	if old != nil {
		if old.Revision == rev && old.ImageRef == ref && old.Next == nil {
			return false, nil
		}
		f.Sequence, f.CreatedAt = max(f.Sequence, old.Newest()+1), old.CreatedAt
	}
	f = c.follow(old, f)
	version, err := c.dep.Store.PutFunction(ctx, f, expected)
	if err != nil {
		return false, err
	}
	if err := c.dep.Cache.Wait(ctx, version); err != nil {
		return false, api.Wrap(api.CodeUnavailable, err, "stored, but not yet visible here")
	}
	c.log.Info("plain function stored", "function", name, "revision", rev, "image", ref+"@"+digest)
	c.followed(old, &f)
	return old == nil, nil
}

// putPlain is putFunction of a plain function, which has no owner: who may deploy
// may deploy it.
func (c *Coordinator) putPlain(name api.FunctionName, rec api.Revision) (*api.FunctionStatus, error) {
	if len(rec.Descriptor) > 0 {
		return nil, api.Invalid("plain", "send a descriptor or a plain function", "there are both")
	}
	if _, err := c.PutPlain(c.life, name, rec.Plain.Function); err != nil {
		return nil, err
	}
	r, err := c.routeOf(name)
	if err != nil {
		return nil, err
	}
	st := c.statusOf(r.rec, nil)
	return &st, nil
}

// resolveTimeout bounds a deployment: registries far away are asked.
const resolveTimeout = 30 * time.Second

// DeletePlain removes a plain function. CodeNotFound if there is none of that
// name; CodeConflict says that it is a sealed one.
func (c *Coordinator) DeletePlain(ctx context.Context, name api.FunctionName) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	old, err := c.dep.Store.GetFunction(ctx, name)
	if err != nil {
		return err
	}
	if old.Plain == nil {
		return sealedName(name)
	}
	version, err := c.dep.Store.DeleteFunction(ctx, name, old.Version)
	if err != nil {
		return err
	}
	if err := c.dep.Cache.Wait(ctx, version); err != nil {
		return api.Wrap(api.CodeUnavailable, err, "removed, but not yet gone here")
	}
	c.log.Info("plain function removed", "function", name)
	c.forgetHistory(name)
	c.spawn(func() { c.retire(name) })
	return nil
}

func sealedName(name api.FunctionName) error {
	e := api.Errorf(api.CodeConflict, "%s is a sealed function", name.Short())
	e.Field, e.Remedy = "name", "its owner changes and removes it with faasd-sec; choose another name or namespace"
	return e
}

// plainFunction refuses what was sealed for a function that cannot open it.
func plainFunction(name api.FunctionName) error {
	e := api.Errorf(api.CodeMediaType, "%q is a plain function and takes no sealed request", name.Short())
	e.Field, e.Remedy = "Content-Type", "send the request as it is; or deploy the function sealed: faasd-sec deploy"
	return e
}

// newPlainRoute is newRoute of a plain function.
func newPlainRoute(rec *store.Function) (*route, error) {
	s, err := rec.Plain.Settle()
	if err != nil {
		return nil, api.Wrap(api.CodeInternal, err, "a stored plain function does not parse")
	}
	target := string(rec.Name) + "?rev=" + rec.Revision + "&seq=" + strconv.FormatUint(rec.Sequence, 10)
	r := &route{
		rec: rec, name: rec.Name, hex: rec.Revision, target: target, invoke: api.NodePathPlain + target, limits: s.Resources, plain: &s,
		request: placement.Request{Revision: rec.Revision, Image: rec.ImageDigest, Resources: s.Resources.Add(api.AgentOverhead()),
			Require: s.Require, Archs: s.Archs},
		bound: s.Read + s.Write + s.Exec + s.Start + 2*time.Second,
	}
	r.unbound = &demand{request: r.request}
	return r, nil
}
