package main

import (
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
)

func TestWhatIsNotToldIsUnknownAndNotNone(t *testing.T) {
	n := func(n int) *int { return &n }
	for name, c := range map[string]struct {
		demand          *api.Demand
		wanted, waiting string
	}{
		"both":         {&api.Demand{Wanted: n(3), Waiting: n(0)}, "3 replicas", "0 calls, in all coordinators"},
		"on demand":    {&api.Demand{OnDemand: true, Waiting: n(7)}, "what calls need", "7 calls, in all coordinators"},
		"one is away":  {&api.Demand{Wanted: n(0), Unknown: "coordinator-2 does not answer"}, "0 replicas", "unknown: coordinator-2 does not answer"},
		"nobody":       {&api.Demand{Waiting: n(2), Unknown: "no coordinator controls"}, "unknown: no coordinator controls", "2 calls, in all coordinators"},
		"on demand, ?": {&api.Demand{OnDemand: true, Unknown: "x"}, "what calls need", "unknown: x"},
		"an old one":   {nil, "unknown: the gateway did not tell: it is of an older release, or busy", "unknown: the gateway did not tell: it is of an older release, or busy"},
		"no reason":    {&api.Demand{}, "unknown: the gateway did not tell why", "unknown: the gateway did not tell why"},
	} {
		if wanted, waiting := demandText(c.demand); wanted != c.wanted || waiting != c.waiting {
			t.Errorf("%s: %q, %q", name, wanted, waiting)
		}
	}
}
