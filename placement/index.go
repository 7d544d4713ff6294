package placement

import (
	"cmp"
	"slices"
	"sync"

	"github.com/faasd-sec/faasd-sec/api"
)

// DefaultSample is how many nodes without a warm slot an Index looks at before
// it is content with what it has.
const DefaultSample = 128

// Index answers requests over one view without looking at every node. Make one
// for each view that is published and share it freely: what it shows never
// changes, and the lists it keeps are made when first asked for, so that a
// revision nobody calls costs nothing.
type Index struct {
	view   *api.ClusterView
	order  []int32  // nodes by ID
	hashes []uint64 // of the IDs, by position in the view
	sample int
	warm   sync.Map // revision key -> []int32, nodes that report a free slot
	images *hints   // nodes that have an image
}

// hints are lists by key that later indices may go on using. They say where to
// look first, and what is found there is judged by the view of the moment.
type hints struct {
	lists sync.Map // image key -> []int32
	views int      // how many have used them
}

// hintViews is for how many views hints are used. Views follow each other within
// a second at the most while anything changes, and images are pulled in seconds.
const hintViews = 32

// NewIndex reads the view once. sample is how many nodes of a kind a request
// looks at before it is content; 0 or less means DefaultSample.
func NewIndex(view *api.ClusterView, sample int) *Index {
	if sample <= 0 {
		sample = DefaultSample
	}
	x := &Index{
		view: view, sample: sample, images: &hints{views: 1},
		order: make([]int32, len(view.Nodes)), hashes: make([]uint64, len(view.Nodes)),
	}
	for i := range view.Nodes {
		x.order[i] = int32(i)
		x.hashes[i] = idHash(view.Nodes[i].Meta.ID)
	}
	byID := func(a, b int32) int { return cmp.Compare(view.Nodes[a].Meta.ID, view.Nodes[b].Meta.ID) }
	if !slices.IsSortedFunc(x.order, byID) {
		slices.SortFunc(x.order, byID)
	}
	return x
}

// Next is an index of the view that follows x's. Where the nodes are the same it
// takes from x what does not depend on their loads, and hints that do little.
func (x *Index) Next(view *api.ClusterView) *Index {
	if len(view.Nodes) != len(x.view.Nodes) {
		return NewIndex(view, x.sample)
	}
	for i := range view.Nodes {
		if view.Nodes[i].Meta.ID != x.view.Nodes[i].Meta.ID {
			return NewIndex(view, x.sample)
		}
	}
	next := &Index{view: view, sample: x.sample, order: x.order, hashes: x.hashes}
	if next.images = x.images; x.images.views < hintViews {
		next.images = &hints{views: x.images.views + 1}
		x.images.lists.Range(func(k, l any) bool { next.images.lists.Store(k, l); return true })
	} else {
		next.images = &hints{views: 1}
	}
	return next
}

// list is the nodes that match, remembered under key. Two callers may make it at
// the same time; they make the same.
func (x *Index) list(lists *sync.Map, key string, match func(*api.NodeLoad) bool) []int32 {
	if key == "" {
		return nil
	}
	if l, ok := lists.Load(key); ok {
		return l.([]int32)
	}
	var l []int32
	for _, i := range x.order {
		if n := &x.view.Nodes[i]; match(&n.Load) {
			if _, refused := standing(n); !refused {
				l = append(l, i)
			}
		}
	}
	lists.Store(key, l)
	return l
}

// View is what the index was made of.
func (x *Index) View() *api.ClusterView { return x.view }

// Pick is the package's Pick with shortcuts, none of which lets an unfit node
// through. In a cluster of no more nodes than the sample the answer is that of
// the exact Pick. In a larger one:
//
// It looks at the nodes with a warm slot first, a sample of them, and all of them
// if the sample has too few whose slots are not used up. If these fill the limit
// and the weights put any warm node before any other it stops.
//
// Then it looks at nodes that have the image and at nodes at large, a sample of
// each in an order drawn from the seed, and stops when the limit is reached. A
// candidate is then the best of a random sample rather than of all. That loses
// little, since the 3 best of 128 are all in the best twentieth with a
// probability above 0.95, and it keeps coordinators from agreeing on one node.
//
// If that left the limit unfilled it looks at all nodes, so that a request is
// refused only when none fits.
func (x *Index) Pick(req Request, w Weights) Decision {
	s := scan{nodes: x.view.Nodes, need: req.compile(), w: w}
	if len(x.order) <= x.sample {
		for _, i := range x.order {
			s.look(int(i), x.hashes[i])
		}
		return s.d
	}
	seen := &seen{}
	revision, image := s.need.revision, s.need.image
	warm := x.list(&x.warm, revision, func(l *api.NodeLoad) bool { return l.Warm[revision] > 0 })
	s.walk(x, warm, x.sample, seen)
	if !s.full() || !s.worst().Warm {
		s.walk(x, warm, len(warm), seen)
	}
	if s.full() && s.worst().Warm && s.worst().Score >= w.coldCeiling() {
		return s.d
	}
	s.walk(x, x.list(&x.images.lists, image, func(l *api.NodeLoad) bool { return slices.Contains(l.Images, image) }), x.sample, seen)
	s.walk(x, x.order, x.sample, seen)
	if !s.full() {
		s.walk(x, x.order, len(x.order), seen)
	}
	return s.d
}

// walk looks at up to n nodes of list, from a place and with a stride drawn from
// the seed, skipping those seen before.
func (s *scan) walk(x *Index, list []int32, n int, seen *seen) {
	if len(list) == 0 {
		return
	}
	at := mix(s.need.Seed) % uint64(len(list))
	step := stride(mix(s.need.Seed+1), uint64(len(list)))
	for range min(n, len(list)) {
		i := list[at]
		if seen.add(i, len(x.order)) {
			s.look(int(i), x.hashes[i])
		}
		at = (at + step) % uint64(len(list))
	}
}

// stride is a step below n that visits all of 0..n-1: one that shares no
// divisor with n.
func stride(r, n uint64) uint64 {
	if n < 3 {
		return 1
	}
	for step := 1 + r%(n-1); ; step = 1 + step%(n-1) {
		if gcd(step, n) == 1 {
			return step
		}
	}
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
