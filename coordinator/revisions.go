package coordinator

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/store"
)

// revisionsOf lists what serves of a function, the current revision first, and
// after that its history.
func (c *Coordinator) revisionsOf(path string) ([]api.RevisionStatus, error) {
	name, err := api.ParseFunctionName(path)
	if err != nil {
		return nil, err
	}
	r, err := c.routeOf(name)
	if err != nil {
		return nil, err
	}
	list := servingStatus(r.rec, c.looked())
	past, err := c.past(c.life, name)
	if err != nil {
		return nil, err
	}
	for _, f := range past {
		if !serves(r.rec, f.Revision) {
			list = append(list, revisionStatus(f, api.RevisionPast))
		}
	}
	return list, nil
}

// past is a function's history, the latest first.
func (c *Coordinator) past(ctx context.Context, name api.FunctionName) ([]*store.Function, error) {
	h := c.history()
	if h == nil {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	return h.Revisions(ctx, name)
}

func revisionStatus(f *store.Function, state string) api.RevisionStatus {
	return api.RevisionStatus{Revision: f.Revision, Sequence: f.Sequence, Image: f.ImageRef + "@" + f.ImageDigest, UpdatedAt: f.UpdatedAt,
		State: state, Descriptor: f.Descriptor, ImageRef: f.ImageRef, BundleRef: f.BundleRef}
}

// servingStatus describes the revisions that serve.
func servingStatus(rec *store.Function, n *census) []api.RevisionStatus {
	list := []api.RevisionStatus{revisionStatus(rec, api.RevisionCurrent)}
	if rec.Next != nil {
		list = append(list, revisionStatus(rec.Next, api.RevisionStarting))
	}
	list[0].Percent = 100
	for _, b := range rec.Beside {
		state := api.RevisionBeside
		if b.Until > 0 {
			state = api.RevisionDraining
		}
		s := revisionStatus(b.Function, state)
		s.Percent = b.Percent
		list[0].Percent -= b.Percent
		list = append(list, s)
	}
	for i := range list {
		if n != nil {
			sum := n.sum(list[i].Revision)
			list[i].Replicas = sum.Ready + sum.Starting
		}
	}
	return list
}

// serveRollback serves POST /v1/functions/NAME/rollback.
func (c *Coordinator) serveRollback(ctx *fasthttp.RequestCtx, path string) error {
	name, err := api.ParseFunctionName(path)
	if err != nil {
		return err
	}
	var to api.Rollback
	if err := c.ownerSays(ctx, name, &to); err != nil {
		return err
	}
	return c.rollBack(c.life, name, to.Revision)
}

// rollBack makes a former revision of a plain function follow the current one. ""
// is the one before. A sealed function's descriptors count up, and nobody takes an
// older one: its owner signs the old content anew.
func (c *Coordinator) rollBack(ctx context.Context, name api.FunctionName, revision string) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	old, err := c.dep.Store.GetFunction(ctx, name)
	if err != nil {
		return err
	}
	if old.Plain == nil {
		e := api.Errorf(api.CodeConflict, "%s is a sealed function", name.Short())
		e.Field, e.Remedy = "name", "its owner goes back with faasd-sec rollback, which signs the old content anew"
		return e
	}
	past, err := c.past(ctx, name)
	if err != nil {
		return err
	}
	to, err := choosePast(past, old.Revision, revision)
	if err != nil {
		return err
	}
	now := time.Now()
	f := *to.Alone()
	f.Sequence, f.UpdatedAt = max(uint64(now.UnixMilli()), old.Newest()+1), now.Unix()
	f = c.follow(old, f)
	version, err := c.dep.Store.PutFunction(ctx, f, old.Version)
	if err != nil {
		return err
	}
	if err := c.dep.Cache.Wait(ctx, version); err != nil {
		return api.Wrap(api.CodeUnavailable, err, "stored, but not yet visible here")
	}
	c.log.Info("rolled back", "function", name, "from", old.Revision, "to", to.Revision)
	c.followed(old, &f)
	return nil
}

// choosePast finds a former revision by the beginning of its digest; "" is the
// latest that is not the current one.
func choosePast(past []*store.Function, current, revision string) (found *store.Function, err error) {
	for _, f := range past {
		if f.Revision == current || !strings.HasPrefix(f.Revision, revision) {
			continue
		}
		if revision == "" {
			return f, nil
		}
		if found != nil {
			return nil, api.Invalid("revision", "write more of its digits", fmt.Sprintf("%q is the beginning of several", revision))
		}
		found = f
	}
	if found == nil {
		e := api.Errorf(api.CodeNotFound, "there is no such former revision")
		e.Field, e.Remedy = "revision", "faasd-sec rollback NAME --list shows those that are kept"
		return nil, e
	}
	return found, nil
}
