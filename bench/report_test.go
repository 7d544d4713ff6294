package main

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// example is a run with a floor, a time, a rate and a row that is not there.
func example() *report {
	r := newReport("a machine", io.Discard)
	r.place = "warm"
	r.add("warm/x", "us", "floor/x", []float64{30, 10, 20}) // before its floor
	r.add("floor/x", "us", "", []float64{10, 10, 5})
	r.add("throughput/x", "req/s", "throughput/floor/x", []float64{100})
	r.add("throughput/floor/x", "req/s", "", []float64{400})
	r.place = "cold"
	r.leave("cold/y", "no y here")
	r.leave("cold/y", "no y here")
	return r
}

func TestRowsCompareWithFloorsOfTheSameRun(t *testing.T) {
	r := example()
	r.compare()
	w, ok := r.named("warm/x")
	if !ok || w.N != 3 || w.Min != 10 || w.Median != 20 || w.P99 != 30 {
		t.Errorf("the row is %+v", w)
	}
	if w.FloorMedian == nil || *w.FloorMedian != 10 || w.Ratio == nil || *w.Ratio != 2 {
		t.Errorf("compared to %v, ratio %v", w.FloorMedian, w.Ratio)
	}
	if w, _ := r.named("throughput/x"); w.Ratio == nil || *w.Ratio != 0.25 {
		t.Errorf("a rate's ratio is %v", w.Ratio)
	}
	if err := r.err(); err != nil {
		t.Error(err)
	}
	if len(r.absent) != 1 {
		t.Errorf("a reason was noted %d times", len(r.absent))
	}
}

func TestAMissingFloorFailsItsRow(t *testing.T) {
	r := newReport("m", io.Discard)
	r.add("warm/x", "us", "floor/x", []float64{1})
	r.compare()
	if err := r.err(); err == nil || !strings.Contains(err.Error(), "warm/x") {
		t.Errorf("the run ends with %v", err)
	}
}

func TestNoSamplesFailTheRow(t *testing.T) {
	r := newReport("m", io.Discard)
	r.add("warm/x", "us", "", nil)
	if r.err() == nil || len(r.Rows) != 0 {
		t.Errorf("rows %v, error %v", r.Rows, r.err())
	}
}

func TestTheResultFileHasItsKeysAndNoOthers(t *testing.T) {
	dir := t.TempDir()
	r := example()
	r.compare()
	if err := r.write(dir); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, fileResults))
	if err != nil {
		t.Fatal(err)
	}
	var file map[string]json.RawMessage
	var rows []map[string]any
	if err := errors.Join(json.Unmarshal(b, &file), json.Unmarshal(file["rows"], &rows)); err != nil {
		t.Fatal(err)
	}
	if len(file) != 2 || file["machine"] == nil {
		t.Errorf("the file has %d keys", len(file))
	}
	want := []string{"floor", "floor_median", "median", "min", "n", "name", "p99", "ratio", "unit"}
	for _, w := range rows {
		var keys []string
		for k := range w {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		if !slices.Equal(keys, want) {
			t.Errorf("%v has keys %v", w["name"], keys)
		}
		if w["floor"] == "" && (w["ratio"] != nil || w["floor_median"] != nil) {
			t.Errorf("%v has no floor and a ratio: %v", w["name"], w)
		}
	}
	again, err := readReport(dir)
	if err != nil {
		t.Fatal(err)
	}
	if again.markdown() != r.markdown() {
		t.Errorf("read back it reads\n%s\ninstead of\n%s", again.markdown(), r.markdown())
	}
}

func TestTheTableSaysWhatIsBetterAndWhatIsMissing(t *testing.T) {
	r := example()
	r.compare()
	r.fail("idle/z", errors.New("it\nbroke"))
	text := r.markdown()
	for _, want := range []string{
		"| warm/x | us | lower | 3 | 10.0 | 20.0 | 30.0 | 1.50 | floor/x | 10.0 | **2.00** |",
		"| throughput/x | req/s | higher | 1 | 100.0 | 100.0 | 100.0 |  | throughput/floor/x | 400.0 | **0.25** |",
		"- `cold/y`: no y here", "- `idle/z`: it broke", "### warm",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no line %q in\n%s", want, text)
		}
	}
}

func TestUnitsSayWhatIsBetter(t *testing.T) {
	for unit, higher := range map[string]bool{"us": false, "ms": false, "MiB": false, "us/call": false, "B/member/s": false, "req/s": true, "MB/s": true, "1/s": true} {
		if higherIsBetter(unit) != higher {
			t.Errorf("%s: higher is better is %v", unit, !higher)
		}
	}
}

func TestADocumentKeepsWhatIsAroundTheMarks(t *testing.T) {
	doc := "# Title\n\n" + markBegin + "\nold\n" + markEnd + "\n\ntail\n"
	got, err := between(doc, "new\n")
	if err != nil {
		t.Fatal(err)
	}
	if want := "# Title\n\n" + markBegin + "\n\nnew\n\n" + markEnd + "\n\ntail\n"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if twice, err := between(got, "new"); err != nil || twice != got {
		t.Errorf("a second time it became\n%s (%v)", twice, err)
	}
	for _, bad := range []string{"", markBegin, markEnd + markBegin} {
		if _, err := between(bad, "x"); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestGoBenchmarkLinesAreParsed(t *testing.T) {
	s := goSamples{}
	out := "goos: linux\nBenchmarkSeal/append/1KiB-2   \t  10\t 6500 ns/op\t 157.5 MB/s\nBenchmarkSeal/append/1KiB-2 9 7000 ns/op 150 MB/s\nPASS\n"
	if err := s.parse(out); err != nil {
		t.Fatal(err)
	}
	if got := s.get("BenchmarkSeal/append/1KiB", "MB/s"); !slices.Equal(got, []float64{157.5, 150}) {
		t.Errorf("got %v", got)
	}
	if err := s.parse("BenchmarkX 1 abc ns/op"); err == nil {
		t.Error("a value that is no number was taken")
	}
}

func TestSeriesThroughput(t *testing.T) {
	if got := inSeries([]float64{100, 100}, []float64{100, 300}); got[0] != 50 || got[1] != 75 {
		t.Errorf("got %v", got)
	}
}
