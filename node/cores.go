package node

import (
	"slices"

	"github.com/faasd-sec/faasd-sec/cgroups"
)

// coreTable says which of the cores that are lent who has. The node's mutex guards
// it. How many are free is the ledger's to say: each that somebody has is counted
// there, so that whoever it admits finds as many here.
type coreTable struct {
	lent cgroups.CPUs
	held map[int]*sandbox
}

func newCoreTable(lent cgroups.CPUs) coreTable {
	return coreTable{lent: lent, held: map[int]*sandbox{}}
}

// take gives n cores to s, for which the ledger has just reserved them: the highest
// that are free, since a machine has more to do on its first ones.
func (t *coreTable) take(s *sandbox, n int) {
	for _, core := range slices.Backward(t.lent) {
		if n == 0 {
			break
		}
		if t.held[core] == nil {
			t.held[core] = s
			s.cores = append(s.cores, core)
			n--
		}
	}
	slices.Sort(s.cores)
}

// adopt gives s the cores that it had in an earlier life of the daemon, even those
// that are not lent today. It reports whether nobody else has any of them.
func (t *coreTable) adopt(s *sandbox, cores []int) bool {
	for i, core := range cores {
		if t.held[core] != nil || slices.Contains(cores[:i], core) {
			return false
		}
	}
	for _, core := range cores {
		t.held[core] = s
	}
	s.cores = cores
	return true
}

// release takes all cores from s.
func (t *coreTable) release(s *sandbox) {
	for _, core := range s.cores {
		if t.held[core] == s {
			delete(t.held, core)
		}
	}
	s.cores = nil
}
