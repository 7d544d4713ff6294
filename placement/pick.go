package placement

import (
	"fmt"
	"slices"

	"github.com/faasd-sec/faasd-sec/api"
)

// Pick holds every node of the view against the request and returns the best.
// It is exact and costs time proportional to the number of nodes; see Index for
// the hot path. It changes nothing and is safe for concurrent use.
func Pick(view *api.ClusterView, req Request, w Weights) Decision {
	defer func() { req = Request{} }() // as in Index.Pick
	s := scan{nodes: view.Nodes, need: req.compile(), w: w}
	for i := range view.Nodes {
		s.look(i, idHash(view.Nodes[i].Meta.ID))
	}
	return s.d
}

// scan is one decision in the making.
type scan struct {
	nodes []api.NodeView
	need  needs
	w     Weights
	d     Decision
}

// look holds one node against the request.
func (s *scan) look(i int, id uint64) {
	n := &s.nodes[i]
	s.d.Scanned++
	reason, refused := s.excludes(n)
	if refused {
		s.refuse(n, reason)
		return
	}
	pending := 0
	if s.need.Pending != nil {
		pending = max(0, s.need.Pending(i))
	}
	warm := s.need.revision != "" && n.Load.Warm[s.need.revision] > pending
	if !warm {
		if s.need.Apart && s.hosts(n, i) {
			s.refuse(n, ReasonApart)
			return
		}
		if reason, refused := lacks(s.need.Resources, n.Load.Free); refused {
			s.refuse(n, reason)
			return
		}
	}
	s.rank(i, id, warm, pending)
}

// excludes runs the filters that a warm slot cannot overrule.
func (s *scan) excludes(n *api.NodeView) (Reason, bool) {
	if r, refused := standing(n); refused {
		return r, true
	}
	if len(s.need.Exclude) > 0 && slices.Contains(s.need.Exclude, n.Meta.ID) {
		return ReasonExcluded, true
	}
	if s.need.Arch != "" && s.need.Arch != n.Meta.Arch || len(s.need.Archs) > 0 && !slices.Contains(s.need.Archs, n.Meta.Arch) {
		return ReasonArch, true
	}
	if len(s.need.Tiers) > 0 && !slices.Contains(s.need.Tiers, n.Meta.Tier) {
		return ReasonTier, true
	}
	for _, l := range s.need.labels {
		if v, ok := n.Meta.Labels[l.key]; !ok || v != l.value {
			return ReasonLabel, true
		}
	}
	for i := range s.need.Require {
		if !meets(n.Meta.Labels, &s.need.Require[i]) {
			return ReasonLabel, true
		}
	}
	return 0, false
}

// standing are the filters that do not depend on the request.
func standing(n *api.NodeView) (Reason, bool) {
	switch {
	case !slices.Contains(n.Meta.Roles, api.RoleNode):
		return ReasonNotNode, true
	case n.Load.Draining:
		return ReasonDraining, true
	case n.Load.Epoch == 0 && n.Load.Seq == 0:
		return ReasonNoLoad, true
	}
	return 0, false
}

// meets holds one condition against a node's labels. An operator that nobody
// knows is met by none.
func meets(labels map[string]string, r *api.Requirement) bool {
	v, there := labels[r.Key]
	switch r.Op {
	case api.OpEquals:
		return there && v == r.Value
	case api.OpDiffers:
		return !there || v != r.Value
	case api.OpExists:
		return there
	case api.OpAbsent:
		return !there
	}
	return false
}

// hosts reports whether node i has a sandbox of the function, as far as is known.
func (s *scan) hosts(n *api.NodeView, i int) bool {
	f := s.need.function
	return f != "" && (n.Load.Warm[f] > 0 || slices.Contains(n.Load.Hosts, s.need.host)) ||
		s.need.revision != "" && n.Load.Warm[s.need.revision] > 0 ||
		s.need.Hosting != nil && s.need.Hosting(i)
}

func lacks(need, free api.Resources) (Reason, bool) {
	switch {
	case need.CPU > free.CPU:
		return ReasonCPU, true
	case need.Memory > free.Memory:
		return ReasonMemory, true
	case need.PIDs > free.PIDs:
		return ReasonPIDs, true
	case need.Scratch > free.Scratch:
		return ReasonScratch, true
	case need.Ingress > free.Ingress:
		return ReasonIngress, true
	case need.Egress > free.Egress:
		return ReasonEgress, true
	case need.Ports > free.Ports:
		return ReasonPorts, true
	case need.Cores > free.Cores:
		return ReasonCores, true
	}
	return 0, false
}

// rank scores a node that fits and keeps it if it is among the best so far.
func (s *scan) rank(i int, id uint64, warm bool, pending int) {
	n := &s.nodes[i]
	cores := max(1, float64(n.Meta.Capacity.CPU)/1000)
	p := Parts{
		Load:   cores / (cores + float64(max(0, n.Load.InFlight))),
		Spread: cores / (cores + float64(pending)),
		Noise:  noise(s.need.Seed, id),
		Image:  1, // until it is known to be missing
	}
	pooled := !warm && n.Load.Pooled > pending
	if warm || pooled {
		p.Pooled = 1
	}
	if warm {
		p.Warm, p.Fit, p.Room = 1, 1, 1
	} else {
		p.Fit = fill(&s.need.Resources, &n.Load.Free, &n.Meta.Capacity)
		p.Room = 1 - p.Fit
	}
	score := s.w.score(p)
	if s.full() && score < s.worst().Score {
		return // not even with the image; saves searching the list of images
	}
	if !warm && s.need.image != "" && !slices.Contains(n.Load.Images, s.need.image) {
		p.Image = 0
		score = s.w.score(p)
	}
	s.keep(Candidate{Index: i, ID: n.Meta.ID, Warm: warm, Pooled: pooled, Score: score, Parts: p})
}

// fill is how full the node is with the new sandbox in it, in 0..1: the mean
// over CPU, memory, and what else is asked for beside pids, of one less the share
// that remains free.
func fill(need, free, capacity *api.Resources) float64 {
	sum := share(free.CPU-need.CPU, capacity.CPU) + share(free.Memory-need.Memory, capacity.Memory)
	if need.Scratch|need.Ingress|need.Egress|need.Ports|need.Cores == 0 {
		return sum / 2
	}
	parts := 2.0
	for _, p := range [...]struct{ need, free, capacity int64 }{
		{need.Scratch, free.Scratch, capacity.Scratch}, {need.Ingress, free.Ingress, capacity.Ingress},
		{need.Egress, free.Egress, capacity.Egress}, {need.Ports, free.Ports, capacity.Ports},
		{need.Cores, free.Cores, capacity.Cores},
	} {
		if p.need > 0 {
			sum += share(p.free-p.need, p.capacity)
			parts++
		}
	}
	return sum / parts
}

func share(left, capacity int64) float64 {
	if capacity <= 0 {
		return 0
	}
	return min(1, max(0, 1-float64(left)/float64(capacity)))
}

func (s *scan) full() bool        { return len(s.d.Candidates) >= s.need.limit }
func (s *scan) worst() *Candidate { return &s.d.Candidates[len(s.d.Candidates)-1] }

// keep inserts c in order; the list stays as short as the limit, so insertion
// beats a heap for any limit worth having.
func (s *scan) keep(c Candidate) {
	at, _ := slices.BinarySearchFunc(s.d.Candidates, c, compare)
	if at >= s.need.limit {
		return
	}
	if s.d.Candidates == nil {
		s.d.Candidates = make([]Candidate, 0, min(s.need.limit, len(s.nodes)))
	}
	if s.full() {
		copy(s.d.Candidates[at+1:], s.d.Candidates[at:])
		s.d.Candidates[at] = c
		return
	}
	s.d.Candidates = slices.Insert(s.d.Candidates, at, c)
}

// compare puts the higher score first and, at equal scores, the smaller ID, so
// that the outcome does not depend on the order of looking.
func compare(a, b Candidate) int {
	switch {
	case a.Score > b.Score:
		return -1
	case a.Score < b.Score:
		return 1
	case a.ID < b.ID:
		return -1
	case a.ID > b.ID:
		return 1
	}
	return 0
}

func (s *scan) refuse(n *api.NodeView, r Reason) {
	s.d.Refused[r]++
	if len(s.d.Refusals) < s.need.Explain {
		refusal := Refusal{ID: n.Meta.ID, Reason: r}
		if !s.need.Terse {
			refusal.Detail = s.detail(n, r)
		}
		s.d.Refusals = append(s.d.Refusals, refusal)
	}
}

// detail says in words what r means for n. It runs only for refusals that are
// listed.
func (s *scan) detail(n *api.NodeView, r Reason) string {
	need, free := s.need.Resources, n.Load.Free
	switch r {
	case ReasonNotNode:
		return fmt.Sprintf("has the roles %q, not %q", n.Meta.Roles, api.RoleNode)
	case ReasonDraining:
		return "is draining and takes no new work"
	case ReasonNoLoad:
		return "has not told yet what it has free"
	case ReasonExcluded:
		return "was excluded by the request"
	case ReasonApart:
		return "runs a sandbox of the function already, which is to have no second one there"
	case ReasonArch:
		if len(s.need.Archs) > 0 && !slices.Contains(s.need.Archs, n.Meta.Arch) {
			return fmt.Sprintf("is %q, the function needs one of %q", n.Meta.Arch, s.need.Archs)
		}
		return fmt.Sprintf("is %q, the function needs %q", n.Meta.Arch, s.need.Arch)
	case ReasonTier:
		return fmt.Sprintf("gives evidence of type %q, the function needs one of %q", n.Meta.Tier, s.need.Tiers)
	case ReasonLabel:
		return s.missing(n)
	case ReasonCPU:
		return fmt.Sprintf("has %d of %d millicores free, a sandbox needs %d", free.CPU, n.Meta.Capacity.CPU, need.CPU)
	case ReasonMemory:
		return fmt.Sprintf("has %d of %d bytes of memory free, a sandbox needs %d", free.Memory, n.Meta.Capacity.Memory, need.Memory)
	case ReasonPIDs:
		return fmt.Sprintf("has %d of %d pids free, a sandbox needs %d", free.PIDs, n.Meta.Capacity.PIDs, need.PIDs)
	}
	for _, c := range []struct {
		reason         Reason
		what           string
		free, all, ask int64
	}{
		{ReasonScratch, "bytes of scratch space", free.Scratch, n.Meta.Capacity.Scratch, need.Scratch},
		{ReasonIngress, "bit/s inwards", free.Ingress, n.Meta.Capacity.Ingress, need.Ingress},
		{ReasonEgress, "bit/s outwards", free.Egress, n.Meta.Capacity.Egress, need.Egress},
		{ReasonPorts, "ports", free.Ports, n.Meta.Capacity.Ports, need.Ports},
		{ReasonCores, "cores to pin to", free.Cores, n.Meta.Capacity.Cores, need.Cores},
	} {
		if r == c.reason {
			return fmt.Sprintf("has %d of %d %s free, a sandbox needs %d", c.free, c.all, c.what, c.ask)
		}
	}
	return ""
}

// missing names the label that refused n, the smallest one if there are more.
func (s *scan) missing(n *api.NodeView) string {
	labels := slices.Clone(s.need.labels)
	slices.SortFunc(labels, func(a, b label) int {
		if a.key < b.key {
			return -1
		}
		return 1
	})
	for _, l := range labels {
		if v, ok := n.Meta.Labels[l.key]; !ok {
			return fmt.Sprintf("has no label %q, the function needs %q", l.key, l.value)
		} else if v != l.value {
			return fmt.Sprintf("has label %q = %q, the function needs %q", l.key, v, l.value)
		}
	}
	for i := range s.need.Require {
		r := &s.need.Require[i]
		if meets(n.Meta.Labels, r) {
			continue
		}
		v, there := n.Meta.Labels[r.Key]
		switch {
		case r.Op == api.OpEquals && there:
			return fmt.Sprintf("has label %q = %q, the function needs %q", r.Key, v, r.Value)
		case r.Op == api.OpEquals:
			return fmt.Sprintf("has no label %q, the function needs %q", r.Key, r.Value)
		case r.Op == api.OpDiffers:
			return fmt.Sprintf("has label %q = %q, the function needs any other", r.Key, v)
		case r.Op == api.OpExists:
			return fmt.Sprintf("has no label %q, the function needs one", r.Key)
		case r.Op == api.OpAbsent:
			return fmt.Sprintf("has label %q = %q, the function needs none of it", r.Key, v)
		}
		return fmt.Sprintf("cannot meet a condition %q on label %q, which is not understood", r.Op, r.Key)
	}
	return ""
}
