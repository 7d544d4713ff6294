package node

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/cgroups"
)

// pinned asks for cores; of each more of the processor the sandboxes are others.
func pinned(cores, cpu int64) api.Needs {
	return api.Needs{Resources: api.Resources{Cores: cores, CPU: cpu}}
}

func TestEachCoreIsOfOneSandboxAndAfterACrashStill(t *testing.T) {
	w := newWorld(t, lends)
	f := w.known("f")
	for _, cpu := range []int64{101, 102} {
		if code, _ := w.ask(f, pinned(1, cpu)); code != "ok" {
			t.Fatal(code)
		}
	}
	had := map[string][]int{}
	check := func() {
		t.Helper()
		var all []int
		for _, s := range w.fleet() {
			if got := w.net.on[s.id].Cores; len(s.cores) != 1 || !slices.Equal(got, s.cores) || s.rev.slots != 1 {
				t.Errorf("%v, %v are pinned to, %d slots", s.cores, got, s.rev.slots)
			}
			if was, ok := had[s.id]; ok && !slices.Equal(was, s.cores) {
				t.Errorf("%v, it had %v", s.cores, was)
			}
			had[s.id] = s.cores
			all = append(all, s.cores...)
		}
		slices.Sort(all)
		if want := []int{5, 7}; !slices.Equal(all, want) {
			t.Errorf("cores %v, want %v", all, want)
		}
		if r, needed, _ := w.held(); r != needed || r.Cores != 2 {
			t.Errorf("reserved %+v, held %+v", r, needed)
		}
	}
	check()
	w.crash()
	if len(had) != 2 {
		t.Fatalf("%v", had)
	}
	check()
	// Who needs more than are free has those that are idle.
	if code, _ := w.ask(f, pinned(3, 103)); code != "ok" {
		t.Error(code)
	}
	if fleet := w.fleet(); len(fleet) != 1 || !slices.Equal(fleet[0].cores, []int{4, 5, 7}) {
		t.Errorf("%d sandboxes", len(fleet))
	}
	if code, refused := w.ask(f, pinned(4, 104)); code != "no_room" || !refused {
		t.Errorf("more than are lent: %s", code)
	}
	w.empty()
	if r, _, _ := w.held(); r != (api.Resources{}) || len(w.n.cores.held) != 0 {
		t.Errorf("reserved %+v, %v", r, w.n.cores.held)
	}
}

// Whatever the order of giving, giving back and finding again, nobody shares a core,
// and who the count admits finds as many as it asked for.
func TestCoresAreNeverShared(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lent := cgroups.CPUs(rapid.SliceOfNDistinct(rapid.IntRange(0, 12), 0, 8, rapid.ID).Draw(t, "lent"))
		slices.Sort(lent)
		table, count := newCoreTable(lent), ledger{capacity: api.Resources{Cores: int64(len(lent))}}
		var live []*sandbox
		for range rapid.IntRange(0, 30).Draw(t, "steps") {
			s := &sandbox{}
			switch rapid.IntRange(0, 2).Draw(t, "step") {
			case 0:
				n := rapid.IntRange(0, 4).Draw(t, "n")
				if count.reserve(api.Resources{Cores: int64(n)}) == "" {
					if table.take(s, n); len(s.cores) != n || !lent.Has(s.cores) {
						t.Fatalf("%v of %d", s.cores, n)
					}
					live = append(live, s)
				}
			case 1: // with cores that are not lent any more, too
				cores := rapid.SliceOfN(rapid.IntRange(0, 15), 0, 3).Draw(t, "had")
				if table.adopt(s, cores) {
					count.force(api.Resources{Cores: int64(len(cores))})
					live = append(live, s)
				}
			case 2:
				if len(live) > 0 {
					i := rapid.IntRange(0, len(live)-1).Draw(t, "gone")
					count.release(api.Resources{Cores: int64(len(live[i].cores))})
					table.release(live[i])
					live = slices.Delete(live, i, i+1)
				}
			}
			var all []int
			for _, s := range live {
				all = append(all, s.cores...)
			}
			slices.Sort(all)
			if len(slices.Compact(slices.Clone(all))) != len(all) || len(table.held) != len(all) {
				t.Fatalf("shared: %v, held %v", all, table.held)
			}
		}
	})
}
