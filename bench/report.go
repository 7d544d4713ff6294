package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// row is one measured quantity with the floor it is compared with.
type row struct {
	Name        string  `json:"name"`
	Unit        string  `json:"unit"`
	N           int     `json:"n"`
	Min         float64 `json:"min"`
	Median      float64 `json:"median"`
	P99         float64 `json:"p99"`
	Floor       string  `json:"floor,omitempty"` // name of the floor's row
	FloorMedian float64 `json:"floor_median,omitempty"`
	Ratio       float64 `json:"ratio,omitempty"` // median / floor_median
}

type report struct {
	Machine string `json:"machine"`
	Rows    []row  `json:"rows"`
}

// add puts samples in as a row.
func (r *report) add(name, unit, floor string, samples []float64) {
	s := slices.Clone(samples)
	slices.Sort(s)
	if len(s) == 0 {
		return
	}
	w := row{Name: name, Unit: unit, N: len(s), Min: s[0], Median: quantile(s, 0.5), P99: quantile(s, 0.99), Floor: floor}
	for _, f := range r.Rows {
		if f.Name == floor && f.Median != 0 {
			w.FloorMedian, w.Ratio = f.Median, w.Median/f.Median
		}
	}
	r.Rows = append(r.Rows, w)
	fmt.Fprintf(os.Stderr, "%-34s %10.1f %10.1f %10.1f %-6s n=%d", name, w.Min, w.Median, w.P99, unit, w.N)
	if w.Ratio != 0 {
		fmt.Fprintf(os.Stderr, "  %.2f x %s", w.Ratio, floor)
	}
	fmt.Fprintln(os.Stderr)
}

// quantile of sorted samples, by the nearest rank.
func quantile(s []float64, q float64) float64 {
	i := int(q*float64(len(s)) + 0.5)
	return s[min(max(i-1, 0), len(s)-1)]
}

func (r *report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n| row | unit | n | min | median | p99 | floor | ratio |\n|---|---|---|---|---|---|---|---|\n", r.Machine)
	for _, w := range r.Rows {
		ratio := ""
		if w.Ratio != 0 {
			ratio = fmt.Sprintf("%.2f", w.Ratio)
		}
		fmt.Fprintf(&b, "| %s | %s | %d | %s | %s | %s | %s | %s |\n", w.Name, w.Unit, w.N, num(w.Min), num(w.Median), num(w.P99), w.Floor, ratio)
	}
	return b.String()
}

func num(v float64) string {
	switch {
	case v >= 1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func (r *report) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "results.json"), append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "results.md"), []byte(r.markdown()), 0o644)
}
