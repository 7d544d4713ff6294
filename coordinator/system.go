package coordinator

import (
	"context"
	"net/url"
	"sort"
	"sync/atomic"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/coordinator/openfaas"
	"github.com/faasd-sec/faasd-sec/store"
)

// system is this coordinator as the adapter of OpenFaaS's API sees it.
type system struct{ *Coordinator }

func (c *Coordinator) newSystem(cfg openfaas.Config) *openfaas.Handler {
	s := system{c}
	dep := openfaas.Deps{Functions: s, Scaler: s, Namespaces: c, Editor: c, Logs: s, ReadBody: readBody, Origin: origin, Log: c.log}
	if c.dep.Secrets != nil {
		dep.Secrets = c.dep.Secrets
	}
	return openfaas.New(c.life, cfg, dep)
}

// Functions implements openfaas.Functions.
func (s system) Functions(namespace string) []openfaas.Function {
	var out []openfaas.Function
	n := s.looked()
	for name, f := range s.dep.Cache.Snapshot().Functions {
		if name.Namespace() == namespace {
			out = append(out, s.observe(f, n))
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// Function implements openfaas.Functions.
func (s system) Function(_ context.Context, name api.FunctionName, usage bool) (openfaas.Function, error) {
	r, err := s.routeOf(name)
	if err != nil {
		return openfaas.Function{}, err
	}
	f := s.observe(r.rec, s.looked())
	if !usage {
		return f, nil
	}
	f.Usage = &openfaas.Usage{}
	err = s.statuses(url.Values{api.QueryFunction: {string(name)}}, "", func(_ api.NodeView, st *api.NodeStatus, _ error) {
		if st == nil {
			return // what other nodes say is better than nothing
		}
		for _, t := range st.Tasks {
			f.Usage.CPU += t.Usage.CPU
			f.Usage.Memory += t.Usage.Memory
		}
	})
	return f, err
}

func (s system) observe(f *store.Function, n *census) openfaas.Function {
	st := s.statusOf(f, n)
	if f.Next != nil && f.Next.Plain != nil {
		st.Plain, st.UpdatedAt = f.Next.Plain, f.Next.UpdatedAt // what was deployed last, also before it serves
	}
	return openfaas.Function{FunctionStatus: st, Invocations: s.callsOf(f.Name).Load(), Desired: s.scaler.desired(f, st.Replicas), Available: st.Available}
}

// PutPlain implements openfaas.Functions. As with OpenFaaS, a function that says
// nothing of it has a replica before the first call, and keeps one.
func (s system) PutPlain(ctx context.Context, name api.FunctionName, p api.Plain, host string) (created bool, err error) {
	always := api.DefaultScale()
	always.Zero = false
	return s.putPlainFrom(ctx, name, p, plainSource{host: host, scale: &always})
}

// ScaleFunction implements openfaas.Scaler.
func (s system) ScaleFunction(ctx context.Context, name api.FunctionName, n int) error {
	return s.setReplicas(ctx, name, n)
}

// callsOf is the counter of a function's invocations.
func (c *Coordinator) callsOf(name api.FunctionName) *atomic.Uint64 {
	v, ok := c.calls.Load(name)
	if !ok {
		v, _ = c.calls.LoadOrStore(name, &atomic.Uint64{})
	}
	return v.(*atomic.Uint64)
}
