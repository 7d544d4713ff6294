package main

import (
	"slices"
	"testing"
)

func TestTheFirstCoordinatorIsAskedLastWhereItIsGone(t *testing.T) {
	for _, c := range []struct{ live, want []string }{
		{nil, []string{"first"}},
		{[]string{"b", "first", "c"}, []string{"first", "b", "c"}},
		{[]string{"b", "c"}, []string{"b", "c", "first"}},
	} {
		if got := firstAhead(slices.Clone(c.live), "first"); !slices.Equal(got, c.want) {
			t.Errorf("%v: %v", c.live, got)
		}
	}
}
