package coordinator

import (
	"fmt"
	"math"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/store"
)

// split is a plain function with its calls divided.
func split(t *testing.T, percent map[string]int) (*store.Function, *route) {
	t.Helper()
	f := &store.Function{Name: "f.ns", Revision: "aa11", Sequence: 3, Plain: &api.Plain{}}
	past := []*store.Function{{Name: "f.ns", Revision: "bb22", Sequence: 2, Plain: &api.Plain{}}, {Name: "f.ns", Revision: "bc33", Sequence: 1, Plain: &api.Plain{}}}
	if err := divide(f, past, percent); err != nil {
		t.Fatal(err)
	}
	r := &route{rec: f, whole: f, hex: f.Revision}
	for _, b := range f.Beside {
		r.others = append(r.others, &route{rec: b.Function, whole: f, hex: b.Function.Revision})
	}
	return f, r
}

func TestCallsAreDividedAsSaidAndTheSameIdComesToTheSameRevision(t *testing.T) {
	for _, want := range []map[string]int{{"aa11": 90, "bb22": 10}, {"aa11": 50, "bb22": 50}, {"aa11": 1, "bb22": 99}, {"aa11": 20, "bb22": 30, "bc33": 50}, {"bb22": 100}} {
		f, r := split(t, want)
		got := map[string]int{}
		const calls = 5000
		for i := range calls {
			id := fmt.Sprintf("call-%d", i)
			rev := r.share(id).hex
			got[rev]++
			if again := r.share(id).hex; again != rev {
				t.Fatalf("%s came to %s, and then to %s", id, rev, again)
			}
		}
		for rev := range got {
			if off := math.Abs(float64(got[rev])*100/calls - float64(want[rev])); off > 2 {
				t.Errorf("%v: %s has %d of %d calls", want, rev, got[rev], calls)
			}
		}
		if want["aa11"] > 0 && f.Revision != "aa11" {
			t.Errorf("%v: %s is current", want, f.Revision)
		}
	}
}

func TestARevisionWithoutAShareDrains(t *testing.T) {
	f, _ := split(t, map[string]int{"bb": 100})
	if f.Revision != "bb22" || len(f.Beside) != 1 || f.Beside[0].Until == 0 || f.Beside[0].Function.Revision != "aa11" || f.Highest != 3 {
		t.Errorf("%+v", f)
	}
}

func TestWrongSharesAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		percent map[string]int
		field   string
		sealed  bool
	}{
		"not all":     {map[string]int{"aa": 50}, "percent", false},
		"too much":    {map[string]int{"aa": 101}, "percent.aa", false},
		"unknown":     {map[string]int{"ff": 100}, "percent.ff", false},
		"ambiguous":   {map[string]int{"b": 100}, "percent.b", false},
		"twice":       {map[string]int{"aa": 50, "aa11": 50}, "percent.aa11", false},
		"for nothing": {map[string]int{"": 100}, "percent.", false},
		"sealed":      {map[string]int{"aa": 100}, "statement", true},
	} {
		f := &store.Function{Name: "f.ns", Revision: "aa11", Plain: &api.Plain{}}
		if c.sealed {
			f.Plain = nil
		}
		past := []*store.Function{{Revision: "bb22", Plain: &api.Plain{}}, {Revision: "bc33", Plain: &api.Plain{}}}
		err := divide(f, past, c.percent)
		e, ok := err.(*api.Error)
		if !ok || e.Field != c.field || e.Remedy == "" || f.Revision != "aa11" {
			t.Errorf("%s: %v", name, err)
		}
	}
}
