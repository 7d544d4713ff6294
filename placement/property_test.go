package placement

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
	"pgregory.net/rapid"
)

var (
	genRevision = rapid.SampledFrom([]string{"", "r1", "r2", "r3"})
	genImage    = rapid.SampledFrom([]string{"", "i1", "i2", "i3"})
	genLabel    = rapid.MapOfN(rapid.SampledFrom([]string{"zone", "disk"}), rapid.SampledFrom([]string{"a", "b"}), 0, 2)
)

func genResources(top int64) *rapid.Generator[api.Resources] {
	return rapid.Custom(func(t *rapid.T) api.Resources {
		return api.Resources{
			CPU:    rapid.Int64Range(0, top).Draw(t, "cpu"),
			Memory: rapid.Int64Range(0, top).Draw(t, "memory"),
			PIDs:   rapid.Int64Range(0, top).Draw(t, "pids"),
			// Most ask for none of these, and some nodes have none.
			Scratch: rapid.SampledFrom([]int64{0, 0, top / 3, top}).Draw(t, "scratch"),
			Ingress: rapid.SampledFrom([]int64{0, 0, top / 3, top}).Draw(t, "ingress"),
			Egress:  rapid.SampledFrom([]int64{0, 0, top / 3, top}).Draw(t, "egress"),
			Ports:   rapid.SampledFrom([]int64{0, 0, top / 3, top}).Draw(t, "ports"),
			Cores:   rapid.SampledFrom([]int64{0, 0, top / 3, top}).Draw(t, "cores"),
		}
	})
}

func genView(most int) *rapid.Generator[*api.ClusterView] {
	return rapid.Custom(func(t *rapid.T) *api.ClusterView {
		v := &api.ClusterView{}
		for i := range rapid.IntRange(0, most).Draw(t, "nodes") {
			id := fmt.Sprintf("n%03d", i)
			roles := []string{api.RoleNode}
			if rapid.IntRange(0, 9).Draw(t, "role") == 0 {
				roles = []string{api.RoleCoordinator}
			}
			n := api.NodeView{Meta: api.NodeMeta{
				ID: id, Roles: roles, Arch: rapid.SampledFrom([]string{"amd64", "amd64", "arm64"}).Draw(t, "arch"),
				Tier: rapid.SampledFrom([]string{"node-key", "tpm"}).Draw(t, "tier"), Labels: genLabel.Draw(t, "labels"),
				Capacity: genResources(100).Draw(t, "capacity"),
			}}
			if rapid.IntRange(0, 9).Draw(t, "loaded") > 0 {
				n.Load = api.NodeLoad{
					Node: id, Epoch: 1, Seq: 1, Free: genResources(100).Draw(t, "free"),
					InFlight: rapid.IntRange(0, 50).Draw(t, "inflight"),
					Pooled:   rapid.IntRange(0, 3).Draw(t, "pooled"),
					Draining: rapid.IntRange(0, 9).Draw(t, "draining") == 0,
					Warm:     rapid.MapOfN(rapid.SampledFrom([]string{"r1", "r2", "r3"}), rapid.IntRange(0, 3), 0, 2).Draw(t, "warm"),
					Hosts:    rapid.SliceOfN(rapid.SampledFrom([]string{"r1", "r2", "r3"}), 0, 2).Draw(t, "hosts"),
					Images:   rapid.SliceOfN(rapid.SampledFrom([]string{"i1", "i2", "i3"}), 0, 2).Draw(t, "images"),
				}
			}
			v.Nodes = append(v.Nodes, n)
		}
		return v
	})
}

// genRequest draws a request; pending goes by node ID, so that it follows a node
// to another place in the view.
func genRequest() *rapid.Generator[Request] {
	return rapid.Custom(func(t *rapid.T) Request {
		return Request{
			Revision: genRevision.Draw(t, "revision"), Image: genImage.Draw(t, "image"),
			Resources: genResources(60).Draw(t, "need"),
			Arch:      rapid.SampledFrom([]string{"", "amd64", "arm64"}).Draw(t, "arch"),
			Tiers:     rapid.SliceOfN(rapid.SampledFrom([]string{"node-key", "tpm"}), 0, 2).Draw(t, "tiers"),
			Labels:    rapid.MapOfN(rapid.Just("zone"), rapid.SampledFrom([]string{"a", "b"}), 0, 1).Draw(t, "labels"),
			Exclude:   rapid.SliceOfN(rapid.SampledFrom([]string{"n000", "n001", "n002"}), 0, 2).Draw(t, "exclude"),
			Needs:     rapid.SampledFrom([]string{"", "", "r2", "k1"}).Draw(t, "needs"), Apart: rapid.Bool().Draw(t, "apart"),
			Archs:   rapid.SliceOfN(rapid.SampledFrom([]string{"amd64", "arm64"}), 0, 2).Draw(t, "archs"),
			Require: rapid.SliceOfN(genRequirement, 0, 2).Draw(t, "require"),
			Seed:    rapid.Uint64().Draw(t, "seed"), Limit: rapid.IntRange(0, 6).Draw(t, "limit"),
		}
	})
}

var genRequirement = rapid.Custom(func(t *rapid.T) api.Requirement {
	return api.Requirement{Key: rapid.SampledFrom([]string{"zone", "disk"}).Draw(t, "key"),
		Op: rapid.SampledFrom([]string{"=", "!=", "exists", "!exists", "~"}).Draw(t, "op"), Value: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "value")}
})

func withPending(r Request, v *api.ClusterView) Request {
	r.Pending = func(i int) int { return int(idHash(v.Nodes[i].Meta.ID) % 4) }
	return r
}

// fits is written apart from the filters it checks.
func fits(v *api.ClusterView, r Request, i int) bool {
	n := v.Nodes[i]
	ok := slices.Contains(n.Meta.Roles, "node") && !n.Load.Draining && n.Load.Epoch > 0 &&
		!slices.Contains(r.Exclude, n.Meta.ID) &&
		(r.Arch == "" || r.Arch == n.Meta.Arch) &&
		(len(r.Tiers) == 0 || slices.Contains(r.Tiers, n.Meta.Tier))
	ok = ok && (len(r.Archs) == 0 || slices.Contains(r.Archs, n.Meta.Arch))
	for _, c := range r.Require {
		v, there := n.Meta.Labels[c.Key]
		switch c.Op {
		case "=":
			ok = ok && there && v == c.Value
		case "!=":
			ok = ok && !(there && v == c.Value)
		case "exists":
			ok = ok && there
		case "!exists":
			ok = ok && !there
		default:
			ok = false
		}
	}
	if r.Apart && !warmAt(v, r, i) {
		ok = ok && (r.Revision == "" || n.Load.Warm[r.Revision] == 0 && !slices.Contains(n.Load.Hosts, r.Revision)) && n.Load.Warm[keyOf(r)] == 0
	}
	for k, want := range r.Labels {
		ok = ok && n.Meta.Labels[k] == want
	}
	return ok && (warmAt(v, r, i) || r.Resources.Lacks(n.Load.Free) == "")
}

func warmAt(v *api.ClusterView, r Request, i int) bool {
	return keyOf(r) != "" && v.Nodes[i].Load.Warm[keyOf(r)] > r.Pending(i)
}

func keyOf(r Request) string {
	if r.Needs != "" {
		return r.Needs
	}
	return r.Revision
}

func checkDecision(t *rapid.T, v *api.ClusterView, r Request, d Decision) {
	fitting := 0
	for i := range v.Nodes {
		if fits(v, r, i) {
			fitting++
		}
	}
	limit := r.Limit
	if limit == 0 {
		limit = DefaultLimit
	}
	if len(d.Candidates) != min(limit, fitting) {
		t.Fatalf("%d candidates, %d nodes fit, limit %d", len(d.Candidates), fitting, limit)
	}
	for k, c := range d.Candidates {
		if v.Nodes[c.Index].Meta.ID != c.ID || !fits(v, r, c.Index) || warmAt(v, r, c.Index) != c.Warm ||
			c.Pooled != (!c.Warm && v.Nodes[c.Index].Load.Pooled > r.Pending(c.Index)) {
			t.Fatalf("candidate %+v is not what the view says", c)
		}
		if k > 0 && compare(d.Candidates[k-1], c) >= 0 {
			t.Fatalf("candidates %d and %d are out of order or equal", k-1, k)
		}
	}
	if d.Refused.Total() > d.Scanned || (len(d.Candidates) == 0 && d.Scanned != len(v.Nodes)) {
		t.Fatalf("refused %d of %d, looked at %d", d.Refused.Total(), len(v.Nodes), d.Scanned)
	}
}

func TestCandidatesFitAndAreOrdered(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := genView(12).Draw(t, "view")
		r := withPending(genRequest().Draw(t, "request"), v)
		d := Pick(v, r, DefaultWeights())
		checkDecision(t, v, r, d)
		if d.Scanned != len(v.Nodes) {
			t.Fatalf("looked at %d of %d nodes", d.Scanned, len(v.Nodes))
		}
		best := -1.0
		for i := range v.Nodes { // nothing that fits was better than the worst candidate
			if fits(v, r, i) && !slices.ContainsFunc(d.Candidates, func(c Candidate) bool { return c.Index == i }) {
				s := Pick(&api.ClusterView{Nodes: v.Nodes[i : i+1]}, shifted(r, i), DefaultWeights())
				best = max(best, s.Candidates[0].Score)
			}
		}
		if best > 0 && best > d.Candidates[len(d.Candidates)-1].Score {
			t.Fatalf("left out a node of score %v", best)
		}
	})
}

func shifted(r Request, by int) Request {
	pending := r.Pending
	r.Pending = func(i int) int { return pending(i + by) }
	return r
}

func TestSameInputSameAnswerWhateverTheOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := genView(12).Draw(t, "view")
		plain := genRequest().Draw(t, "request")
		first := Pick(v, withPending(plain, v), DefaultWeights())
		if again := Pick(v, withPending(plain, v), DefaultWeights()); !reflect.DeepEqual(first, again) {
			t.Fatalf("first %+v, then %+v", first, again)
		}
		mixed := &api.ClusterView{Nodes: rapid.Permutation(v.Nodes).Draw(t, "order")}
		other := Pick(mixed, withPending(plain, mixed), DefaultWeights())
		sameButForIndex(t, first, other)
		sample := rapid.IntRange(1, 4).Draw(t, "sample")
		a := NewIndex(v, sample).Pick(withPending(plain, v), DefaultWeights())
		b := NewIndex(mixed, sample).Pick(withPending(plain, mixed), DefaultWeights())
		sameButForIndex(t, a, b)
	})
}

func sameButForIndex(t *rapid.T, a, b Decision) {
	for _, d := range []*Decision{&a, &b} {
		d.Candidates = slices.Clone(d.Candidates)
		for i := range d.Candidates {
			d.Candidates[i].Index = 0
		}
	}
	if !reflect.DeepEqual(a, b) {
		t.Fatalf("the order of nodes changed the answer: %+v, %+v", a, b)
	}
}

func TestIndexAgreesWithExactPick(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := genView(40).Draw(t, "view")
		r := withPending(genRequest().Draw(t, "request"), v)
		exact := Pick(v, r, DefaultWeights())
		if whole := NewIndex(v, 64).Pick(r, DefaultWeights()); !reflect.DeepEqual(whole, exact) {
			t.Fatalf("small cluster: index %+v, exact %+v", whole, exact)
		}
		// One that goes on from the index of another view of the same nodes, whose
		// hints are of that view.
		before := &api.ClusterView{Nodes: slices.Clone(genView(40).Draw(t, "before").Nodes)}
		for i := range before.Nodes {
			if i < len(v.Nodes) {
				before.Nodes[i].Meta.ID = v.Nodes[i].Meta.ID
			}
		}
		old := NewIndex(before, 3)
		old.Pick(withPending(r, before), DefaultWeights())
		for range rapid.SampledFrom([]int{0, 1, hintViews}).Draw(t, "views") {
			old = old.Next(before)
		}
		next := old.Next(v)
		after := next.Pick(r, DefaultWeights())
		checkDecision(t, v, r, after)
		if len(exact.Candidates) > 0 && exact.Candidates[0].Warm != after.Candidates[0].Warm {
			t.Fatalf("exact begins with %+v, the next index with %+v", exact.Candidates[0], after.Candidates[0])
		}
		if whole := NewIndex(before, 64).Next(v).Pick(r, DefaultWeights()); !reflect.DeepEqual(whole, exact) {
			t.Fatalf("small cluster: next index %+v, exact %+v", whole, exact)
		}
		sampled := NewIndex(v, 3).Pick(r, DefaultWeights())
		checkDecision(t, v, r, sampled)
		if len(exact.Candidates) > 0 && exact.Candidates[0].Warm != sampled.Candidates[0].Warm {
			t.Fatalf("exact begins with %+v, the sample with %+v", exact.Candidates[0], sampled.Candidates[0])
		}
	})
}

// TestPendingKeepsInvocationsApart places a burst on one view, as happens
// between two updates of gossip.
func TestPendingKeepsInvocationsApart(t *testing.T) {
	const nodes, burst = 20, 200
	v := uniform(nodes)
	for i := range 4 {
		v.Nodes[i].Load.Warm = map[string]int{"r1": 5}
	}
	x := NewIndex(v, 0)
	sent := make([]int, nodes)
	rng := rand.New(rand.NewPCG(1, 2))
	for k := range burst {
		d := x.Pick(Request{
			Revision: "r1", Resources: api.Resources{CPU: 100, Memory: 1, PIDs: 1},
			Pending: func(i int) int { return sent[i] }, Seed: rng.Uint64(),
		}, DefaultWeights())
		if k < 20 && !d.Candidates[0].Warm {
			t.Errorf("call %d went to cold %s while warm slots were free", k, d.Candidates[0].ID)
		}
		sent[d.Candidates[0].Index]++
	}
	if low, high := slices.Min(sent), slices.Max(sent); high > 2*burst/nodes || low < burst/nodes/2 {
		t.Errorf("%d calls over %d nodes went %v", burst, nodes, sent)
	}
}

// TestSeedsKeepCoordinatorsApart places one call each of many coordinators that
// know nothing of each other.
func TestSeedsKeepCoordinatorsApart(t *testing.T) {
	v := uniform(10)
	hit := make([]int, 10)
	for seed := range uint64(1000) {
		hit[Pick(v, Request{Seed: seed}, DefaultWeights()).Candidates[0].Index]++
	}
	if low, high := slices.Min(hit), slices.Max(hit); low < 60 || high > 140 {
		t.Errorf("1000 calls over 10 equal nodes went %v", hit)
	}
}

func TestWeightsThatAreNoWeightsAreRefused(t *testing.T) {
	if err := DefaultWeights().Validate(); err != nil {
		t.Error(err)
	}
	nan := 0.0
	nan /= nan
	for _, bad := range []Weights{{Warm: -1}, {Image: nan}, {Noise: 1 / (nan * 0)}} {
		if api.CodeOf(bad.Validate()) != api.CodeInvalid {
			t.Errorf("%+v passed", bad)
		}
	}
}

func TestSummaryNamesChoiceAndReasons(t *testing.T) {
	v := uniform(3)
	v.Nodes[1].Load.Draining = true
	got := Pick(v, Request{Limit: 1}, Weights{Fit: 1}).Summary()
	if want := "n00000 (cold, score 0.00), 1 candidates among 3 nodes; refused: 1 draining"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	got = Pick(v, Request{Arch: "s390x"}, DefaultWeights()).Summary()
	if want := "no candidate among 3 nodes: 1 draining, 2 arch"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := Pick(&api.ClusterView{}, Request{}, DefaultWeights()).Summary(); got != "no node in the mesh" {
		t.Errorf("got %q", got)
	}
}
