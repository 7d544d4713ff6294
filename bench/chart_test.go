package main

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// elements parses a picture and counts its elements; it fails on anything that
// is not well-formed, or a coordinate that is no number.
func elements(t *testing.T, svg string) map[string]int {
	t.Helper()
	out := map[string]int{}
	d := xml.NewDecoder(strings.NewReader(svg))
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatalf("not well-formed: %v\n%s", err, svg)
		}
		if e, ok := tok.(xml.StartElement); ok {
			out[e.Name.Local]++
			for _, a := range e.Attr {
				if strings.Contains(a.Value, "NaN") || strings.Contains(a.Value, "Inf") {
					t.Fatalf("%s of %s is %q", a.Name.Local, e.Name.Local, a.Value)
				}
			}
		}
	}
}

func TestAChartDrawsItsSeries(t *testing.T) {
	c := chart{title: "a < b & c", x: axis{label: "x", log: true}, y: axis{label: "y"}, series: []series{
		{name: "one", colour: 1, dots: true, points: [][2]float64{{1, 10}, {100, 2000}}},
		{name: "two", colour: 9, dash: true, points: [][2]float64{{3, 7}, {50, 900}}},
	}}
	svg := c.svg()
	e := elements(t, svg)
	if e["svg"] != 1 || e["polyline"] != 2 || e["circle"] != 2 {
		t.Errorf("it has %v", e)
	}
	for _, want := range []string{"a &lt; b &amp; c", "prefers-color-scheme:dark", ">one<", ">two<", "s c1 dash"} {
		if !strings.Contains(svg, want) {
			t.Errorf("no %q in it", want)
		}
	}
}

func TestAChartOfOnePointOrNoneIsStillAPicture(t *testing.T) {
	for _, log := range []bool{false, true} {
		for _, points := range [][][2]float64{nil, {{5, 5}}, {{0, 0}}} {
			elements(t, chart{x: axis{log: log}, y: axis{log: log}, series: []series{{points: points}}}.svg())
		}
	}
}

func TestAxesAreMarkedAtRoundValues(t *testing.T) {
	for _, c := range []struct {
		a    axis
		want []float64
	}{
		{axis{min: 0, max: 100}, []float64{0, 20, 40, 60, 80, 100}},
		{axis{min: 0, max: 7}, []float64{0, 1, 2, 3, 4, 5, 6, 7}},
		{axis{log: true, min: 1, max: 50}, []float64{1, 2, 5, 10, 20, 50}},
		{axis{log: true, min: 1, max: 100_000}, []float64{1, 10, 100, 1000, 10_000, 100_000}},
		{axis{min: 1, max: 64, ticks: []float64{1, 64}}, []float64{1, 64}},
	} {
		got := c.a.marks()
		if !slices.EqualFunc(got, c.want, func(a, b float64) bool { return math.Abs(a-b) < 1e-6*b+1e-9 }) {
			t.Errorf("%+v is marked at %v, want %v", c.a, got, c.want)
		}
	}
}

func TestLogarithmicAxesEndAtMarks(t *testing.T) {
	a := axis{log: true, min: 3.3, max: 77}
	a.round()
	if a.min != 2 || a.max != 100 {
		t.Errorf("3.3 to 77 became %v to %v", a.min, a.max)
	}
	if got := a.at(a.max); math.Abs(got-1) > 1e-9 || a.at(a.min) != 0 {
		t.Errorf("its end is at %v", got)
	}
}

func TestBarsStack(t *testing.T) {
	svg := stackedBars("title", "us", []bar{{"sealed", []part{{"a", 10}, {"b", 20}}}, {"plain", []part{{"a", 5}}}})
	if e := elements(t, svg); e["rect"] != 3+2 { // pieces and the legend
		t.Errorf("it has %v", e)
	}
	if !strings.Contains(svg, ">30.0<") {
		t.Errorf("the sum of a bar is not told:\n%s", svg)
	}
}

func TestPlotsComeWithTheirRows(t *testing.T) {
	r := newReport("m", io.Discard)
	if got := r.plots(); len(got) != 0 {
		t.Errorf("%d plots of nothing", len(got))
	}
	for i := range 3 {
		rate := fmt.Sprint(250 << i)
		r.add("floor/openloop/two-hop/1KiB/r"+rate, "us", "", []float64{10, 20})
		r.add("openloop/sealed/1KiB/r"+rate, "us", "floor/openloop/two-hop/1KiB/r"+rate, []float64{30, 50})
	}
	for _, conns := range []string{"1", "16"} {
		r.add("throughput/floor/two-hop/1KiB/c"+conns, "req/s", "", []float64{1000})
		r.add("throughput/sealed/1KiB/c"+conns, "req/s", "", []float64{500})
	}
	r.add("cold/runc-floor/go", "ms", "", []float64{60, 70, 80})
	r.add("cold/pool-hit/go", "ms", "cold/runc-floor/go", []float64{5, 6, 7})
	r.add("cpu/agent", "us/call", "", []float64{50})
	plots := r.plots()
	if len(plots) != 4 {
		t.Fatalf("%d plots", len(plots))
	}
	doc := filepath.Join(t.TempDir(), "figures.md")
	if err := os.WriteFile(doc, []byte(markBegin+"\n"+markEnd+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := r.document(doc); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range plots {
		elements(t, p.svg)
		if !strings.Contains(string(text), "(figures/"+p.file+")") {
			t.Errorf("%s is not shown in\n%s", p.file, text)
		}
		if _, err := os.Stat(filepath.Join(filepath.Dir(doc), "figures", p.file)); err != nil {
			t.Error(err)
		}
	}
}
