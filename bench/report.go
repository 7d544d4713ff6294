package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// row is one measured quantity with the floor it is compared with.
type row struct {
	Name        string   `json:"name"`
	Unit        string   `json:"unit"`
	N           int      `json:"n"`
	Min         float64  `json:"min"`
	Median      float64  `json:"median"`
	P99         float64  `json:"p99"`
	Floor       string   `json:"floor"`        // name of the floor's row, "" for none
	FloorMedian *float64 `json:"floor_median"` // null without a floor
	Ratio       *float64 `json:"ratio"`        // median / floor_median, of times and of rates
}

// results is the file of one run.
type results struct {
	Machine string `json:"machine"`
	Rows    []row  `json:"rows"`
}

// note says of a row, or of a group of rows by a pattern, why it is not there.
type note struct {
	Row string `json:"row"`
	Why string `json:"why"`
}

// report collects the rows of one run. It is not safe for concurrent use.
type report struct {
	results
	absent []note               // what this machine or this version cannot measure
	failed []note               // what should have been measured
	curves map[string][]float64 // row -> its distribution, for plots
	places map[string]string    // row -> its section
	place  string               // section of the rows that are added now
	out    io.Writer            // told each row as it comes
}

func newReport(machine string, out io.Writer) *report {
	return &report{results: results{Machine: machine, Rows: []row{}}, curves: map[string][]float64{}, places: map[string]string{}, out: out}
}

// add puts samples in as a row. Its floor may be added later.
func (r *report) add(name, unit, floor string, samples []float64) {
	if len(samples) == 0 {
		r.fail(name, errors.New("no samples"))
		return
	}
	s := ascending(samples)
	w := row{Name: name, Unit: unit, N: len(s), Min: s[0], Median: quantile(s, 0.5), P99: quantile(s, 0.99), Floor: floor}
	r.Rows = append(r.Rows, w)
	r.curves[name], r.places[name] = curve(s), r.place
	fmt.Fprintf(r.out, "%-46s %10s %10s %10s %-6s n=%d\n", name, num(w.Min), num(w.Median), num(w.P99), unit, w.N)
}

func (r *report) fail(name string, err error) {
	r.failed = append(r.failed, note{Row: name, Why: err.Error()})
	fmt.Fprintf(r.out, "%-46s FAILED: %v\n", name, err)
}

// leave notes why a row is not there, once.
func (r *report) leave(name, why string) {
	n := note{Row: name, Why: why}
	if !slices.Contains(r.absent, n) {
		r.absent = append(r.absent, n)
		fmt.Fprintf(r.out, "%-46s absent: %s\n", name, why)
	}
}

// compare fills in the floors. A floor that was never measured fails its row.
func (r *report) compare() {
	medians := map[string]float64{}
	for _, w := range r.Rows {
		medians[w.Name] = w.Median
	}
	for i, w := range r.Rows {
		if w.Floor == "" {
			continue
		}
		m, ok := medians[w.Floor]
		if !ok {
			r.fail(w.Name, fmt.Errorf("its floor %s was not measured", w.Floor))
			continue
		}
		r.Rows[i].FloorMedian, r.Rows[i].Ratio = &m, ratio(w.Median, m)
	}
}

// err is nil if no row failed.
func (r *report) err() error {
	if len(r.failed) == 0 {
		return nil
	}
	names := make([]string, len(r.failed))
	for i, f := range r.failed {
		names[i] = f.Row
	}
	return fmt.Errorf("%d rows failed: %s", len(names), strings.Join(names, ", "))
}

// Files of a run in its output directory.
const (
	fileResults = "results.json"
	fileExtra   = "extra.json" // what results.json has no place for
	fileTable   = "results.md"
)

// extra is what tables and plots need beside the rows.
type extra struct {
	Absent []note               `json:"absent"`
	Failed []note               `json:"failed"`
	Curves map[string][]float64 `json:"curves"` // evenly spaced quantiles
	Places map[string]string    `json:"places"` // row -> section
}

// write puts the run's files into dir.
func (r *report) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	if err := writeJSON(filepath.Join(dir, fileResults), r.results); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(dir, fileExtra), extra{r.absent, r.failed, r.curves, r.places}); err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, fileTable), []byte(r.markdown()))
}

// readReport reads what write wrote.
func readReport(dir string) (*report, error) {
	r := newReport("", io.Discard)
	var x extra
	for name, into := range map[string]any{fileResults: &r.results, fileExtra: &x} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, fmt.Errorf("read results: %w", err)
		}
		if err := json.Unmarshal(b, into); err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
	}
	r.absent, r.failed, r.curves, r.places = x.Absent, x.Failed, x.Curves, x.Places
	return r, nil
}

func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(path), err)
	}
	return replaceFile(path, append(b, '\n'))
}

// replaceFile writes a file whole or not at all.
func replaceFile(path string, b []byte) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, b, 0o644); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
