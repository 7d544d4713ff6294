package main

import (
	"math"
	"slices"
)

// quantile is the q-th quantile of sorted samples by the nearest rank: the
// smallest sample such that at least q of all are not above it. It is always a
// value that was measured. No samples give NaN.
func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	rank := int(math.Ceil(q * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// ascending is a sorted copy.
func ascending(samples []float64) []float64 {
	s := slices.Clone(samples)
	slices.Sort(s)
	return s
}

// ratio of a median to its floor's, nil where there is none.
func ratio(median, floor float64) *float64 {
	if floor == 0 || math.IsNaN(floor) || math.IsNaN(median) {
		return nil
	}
	r := median / floor
	return &r
}

// curvePoints is how many quantiles describe a distribution in a plot.
const curvePoints = 200

// curve is a distribution as evenly spaced quantiles, from the smallest sample
// to the largest.
func curve(sorted []float64) []float64 {
	if len(sorted) <= curvePoints {
		return sorted
	}
	out := make([]float64, 0, curvePoints+1)
	for i := range curvePoints + 1 {
		out = append(out, quantile(sorted, float64(i)/curvePoints))
	}
	return out
}
