package main

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

func TestQuantilesAreNearestRanks(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(i + 1)
	}
	for _, c := range []struct {
		name    string
		samples []float64
		q, want float64
	}{
		{"one sample is every quantile", []float64{7}, 0.99, 7},
		{"the lower middle of an even number", []float64{1, 2, 3, 4}, 0.5, 2},
		{"the middle of an odd number", []float64{1, 2, 3}, 0.5, 2},
		{"99 of a hundred are not above the 99th", hundred, 0.99, 99},
		{"the largest of fewer than a hundred", hundred[:99], 0.99, 99},
		{"one more than a hundred", append([]float64{0.5}, hundred...), 0.99, 99},
		{"0 is the smallest", hundred, 0, 1},
		{"1 is the largest", hundred, 1, 100},
	} {
		if got := quantile(c.samples, c.q); got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
	if !math.IsNaN(quantile(nil, 0.5)) {
		t.Error("no samples have a median")
	}
}

func TestAQuantileSplitsTheSamples(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := ascending(rapid.SliceOfN(rapid.Float64Range(0, 1e9), 1, 300).Draw(t, "samples"))
		q := rapid.Float64Range(0.001, 1).Draw(t, "q")
		v, below, upTo := quantile(s, q), 0, 0
		for _, x := range s {
			if x < v {
				below++
			}
			if x <= v {
				upTo++
			}
		}
		need := q * float64(len(s))
		if float64(upTo) < need-1e-6 || float64(below) >= need+1e-6 {
			t.Fatalf("%v of %d samples: %d below, %d not above %v", q, len(s), below, upTo, v)
		}
	})
}

func TestRatios(t *testing.T) {
	if r := ratio(3, 2); r == nil || *r != 1.5 {
		t.Errorf("3 to 2 is %v", r)
	}
	if r := ratio(3, 0); r != nil {
		t.Errorf("a ratio to nothing is %v", *r)
	}
	if r := ratio(math.NaN(), 2); r != nil {
		t.Errorf("a ratio of no median is %v", *r)
	}
}

func TestCurvesKeepTheEnds(t *testing.T) {
	var s []float64
	for i := range 1000 {
		s = append(s, float64(i))
	}
	c := curve(s)
	if len(c) != curvePoints+1 || c[0] != 0 || c[len(c)-1] != 999 {
		t.Errorf("%d points from %v to %v", len(c), c[0], c[len(c)-1])
	}
	if got := curve(s[:3]); len(got) != 3 {
		t.Errorf("three samples became %d points", len(got))
	}
}
