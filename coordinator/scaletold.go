package coordinator

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/store"
)

// ServeDemand tells another coordinator what this one alone knows of the demand for
// a function. Its caller made sure that it is a coordinator that asks.
func (c *Coordinator) ServeDemand(ctx *fasthttp.RequestCtx) {
	name, err := api.ParseFunctionName(strings.TrimPrefix(string(ctx.Path()), api.GatewayPathDemand))
	if err != nil {
		c.problem(ctx, err)
		return
	}
	c.reply(ctx, c.told(name))
}

// told is what this coordinator says of a function.
func (c *Coordinator) told(name api.FunctionName) *api.Told {
	waiting := c.queue.byFunction()[name].calls
	t := &api.Told{Waiting: &waiting, Controls: c.scaler.controls.Load()}
	if v, ok := c.scaler.wanted.Load(name); ok && t.Controls {
		// What was decided of another record is not what is wanted now.
		if f := c.dep.Cache.Get(name); f != nil && f.Version == v.(decided).version {
			all := v.(decided).all
			t.Wanted = &all
		}
	}
	return t
}

// parseTold reads what another coordinator told.
func parseTold(b []byte) (*api.Told, error) {
	t := &api.Told{}
	if err := json.Unmarshal(b, t); err != nil {
		return nil, api.Wrap(api.CodeInvalid, err, "the demand does not parse")
	}
	sound := func(n *int) bool { return n != nil && *n >= 0 && *n <= maxTold }
	if !sound(t.Waiting) || t.Wanted != nil && !(t.Controls && sound(t.Wanted)) {
		return nil, api.Invalid("demand", fmt.Sprintf("tell how many wait, and who controls how many are wanted, 0 to %d", maxTold), "a number is missing, too large or not its to tell")
	}
	return t, nil
}

// demandOf asks all coordinators at once what a function is to have and what waits
// for it, for waitsTimeout at most. Who controls needs not be known for that: it
// says so. What one of them did not tell makes no part of a number, but leaves the
// number out.
func (c *Coordinator) demandOf(rec *store.Function) *api.Demand {
	said := map[string]*api.Told{c.dep.Watching.ID: c.told(rec.Name)}
	var mu sync.Mutex
	var wg sync.WaitGroup
	var mute []string
	for _, v := range c.otherCoordinators(c.dep.Mesh.Snapshot()) {
		if c.others == nil {
			mute = append(mute, v.Meta.ID+" is not asked by this coordinator, which was started as the only one")
			continue
		}
		p := c.others.get(v)
		wg.Go(func() {
			t, err := c.askDemand(p, rec.Name)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				mute = append(mute, muteness(p.id, err))
				return
			}
			said[p.id] = t
		})
	}
	wg.Wait()
	slices.Sort(mute)
	_, managed := policyOf(rec)
	return sumDemand(said, mute, managed)
}

func (c *Coordinator) askDemand(p *peer, name api.FunctionName) (*api.Told, error) {
	ctx, cancel := context.WithTimeout(c.life, waitsTimeout)
	defer cancel()
	b, err := c.ask(ctx, p, http.MethodGet, api.GatewayPathDemand+string(name), nil)
	if err != nil {
		return nil, err
	}
	return parseTold(b)
}

// muteness says of a coordinator why it told nothing. What it sent instead is in no
// text that strangers read.
func muteness(id string, err error) string {
	switch api.CodeOf(err) {
	case api.CodeNotFound:
		return id + " is of a release that does not tell"
	case api.CodeInvalid:
		return id + " tells what makes no sense"
	}
	return id + " does not answer"
}

// sumDemand adds up what coordinators said, by their ids; mute is why others said
// nothing. The number that is wanted is that of the one that controls: with two of
// them it is not known. With none, a coordinator may not be seen from here, and what
// waits is not known either.
func sumDemand(said map[string]*api.Told, mute []string, managed bool) *api.Demand {
	d := &api.Demand{OnDemand: !managed}
	waiting, why := 0, slices.Clone(mute)
	var control []*api.Told
	for _, t := range said {
		waiting += *t.Waiting
		if t.Controls {
			control = append(control, t)
		}
	}
	if len(mute) == 0 && len(control) > 0 {
		d.Waiting = &waiting
	}
	switch {
	case len(control) == 0 && len(mute) == 0:
		why = append(why, "none of the coordinators that are seen from here controls replicas just now")
	case !managed || len(control) == 0:
	case len(control) == 1 && control[0].Wanted != nil:
		d.Wanted = control[0].Wanted
	case len(control) == 1:
		why = append(why, "nothing is decided since the function changed")
	default:
		why = append(why, "two coordinators say that they control replicas")
	}
	d.Unknown = strings.Join(why, "; ")
	return d
}

// otherCoordinators are those of the members that are not this one.
func (c *Coordinator) otherCoordinators(view *api.ClusterView) []api.NodeView {
	var all []api.NodeView
	for _, v := range view.Nodes {
		if v.Meta.ID != c.dep.Watching.ID && slices.Contains(v.Meta.Roles, api.RoleCoordinator) {
			all = append(all, v)
		}
	}
	return all
}
