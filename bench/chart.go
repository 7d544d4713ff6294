package main

import (
	"math"
	"strconv"
)

// axis maps values to a stretch of pixels.
type axis struct {
	label    string
	log      bool
	min, max float64
	ticks    []float64 // nil chooses them
}

// series is one line of a chart.
type series struct {
	name   string
	colour int
	dash   bool
	dots   bool
	points [][2]float64
}

// chart is lines over two axes.
type chart struct {
	title  string
	x, y   axis
	series []series
}

// Margins of a chart in pixels; the legend is to the right.
const (
	chartWidth, chartHeight = 760, 380
	left, right, top, below = 64, 210, 54, 48
)

// fit widens an axis to values.
func (a *axis) fit(v float64) {
	if a.log && v <= 0 {
		return
	}
	if a.min == 0 && a.max == 0 {
		a.min, a.max = v, v
	}
	a.min, a.max = min(a.min, v), max(a.max, v)
}

// at is the place of v between 0 and 1.
func (a axis) at(v float64) float64 {
	if a.log {
		if v <= 0 || a.min <= 0 || a.max <= a.min {
			return 0
		}
		return math.Log(v/a.min) / math.Log(a.max/a.min)
	}
	if a.max <= a.min {
		return 0
	}
	return (v - a.min) / (a.max - a.min)
}

// marks are round values on the axis.
func (a axis) marks() []float64 {
	if a.ticks != nil {
		return a.ticks
	}
	if a.max <= a.min || a.log && a.min <= 0 {
		return []float64{a.min}
	}
	var out []float64
	if a.log {
		steps := []float64{1, 2, 5}
		if a.max/a.min > 1000 {
			steps = []float64{1}
		}
		for e := math.Floor(math.Log10(a.min)); e <= math.Ceil(math.Log10(a.max)); e++ {
			for _, s := range steps {
				if v := s * math.Pow(10, e); v >= a.min*0.999 && v <= a.max*1.001 {
					out = append(out, v)
				}
			}
		}
		return out
	}
	step := math.Pow(10, math.Floor(math.Log10((a.max-a.min)/4)))
	for _, s := range []float64{5, 2, 1} {
		if (a.max-a.min)/(step*s) >= 4 {
			step *= s
			break
		}
	}
	for i := math.Ceil(a.min/step - 1e-9); i*step <= a.max*(1+1e-9); i++ {
		out = append(out, i*step+0) // the sum makes -0 of the first one 0
	}
	return out
}

// round widens an axis to its next mark, a logarithmic one at both ends.
func (a *axis) round() {
	if !a.log {
		if m := a.marks(); len(m) > 1 && m[len(m)-1] < a.max {
			a.max = 2*m[len(m)-1] - m[len(m)-2]
		}
		return
	}
	if a.min <= 0 {
		return
	}
	for _, end := range []struct {
		v  *float64
		up bool
	}{{&a.min, false}, {&a.max, true}} {
		e := math.Pow(10, math.Floor(math.Log10(*end.v)))
		best := e
		for _, s := range []float64{1, 2, 5, 10} {
			if end.up && s*e >= *end.v*0.999 {
				best = s * e
				break
			}
			if !end.up && s*e <= *end.v*1.001 {
				best = s * e
			}
		}
		*end.v = best
	}
}

func tick(v float64) string {
	if v >= 1e6 {
		return strconv.FormatFloat(v/1e6, 'g', 4, 64) + "M"
	}
	if v >= 10_000 && math.Mod(v, 1000) == 0 {
		return strconv.FormatFloat(v/1000, 'g', 4, 64) + "k"
	}
	return strconv.FormatFloat(v, 'g', 4, 64)
}

// svg draws the chart; axes without bounds fit the points.
func (c chart) svg() string {
	for _, s := range c.series {
		for _, p := range s.points {
			c.x.fit(p[0])
			c.y.fit(p[1])
		}
	}
	if !c.y.log {
		c.y.min = min(c.y.min, 0)
	}
	if c.x.log {
		c.x.round()
	}
	c.y.round()
	g := newCanvas(chartWidth, chartHeight, c.title)
	g.text("title", "start", left, 22, c.title)
	const x0, x1, y0, y1 = left, chartWidth - right, chartHeight - below, top
	x := func(v float64) float64 { return x0 + c.x.at(v)*(x1-x0) }
	y := func(v float64) float64 { return y0 - c.y.at(v)*(y0-y1) }
	for _, v := range c.y.marks() {
		g.line("grid", x0, y(v), x1, y(v))
		g.text("small faint", "end", x0-6, y(v)+4, tick(v))
	}
	for _, v := range c.x.marks() {
		g.line("grid", x(v), y0, x(v), y1)
		g.text("small faint", "middle", x(v), y0+16, tick(v))
	}
	g.line("axis", x0, y0, x1, y0)
	g.line("axis", x0, y0, x0, y1)
	g.text("faint", "middle", (x0+x1)/2, chartHeight-10, c.x.label)
	g.text("faint", "start", 8, y1-6, c.y.label)
	for i, s := range c.series {
		colour := strconv.Itoa(s.colour % colours)
		class := "s c" + colour
		if s.dash {
			class += " dash"
		}
		var at [][2]float64
		for _, p := range s.points {
			at = append(at, [2]float64{x(p[0]), y(p[1])})
		}
		g.path(class, at)
		if s.dots {
			for _, p := range at {
				g.dot("f"+colour, p[0], p[1])
			}
		}
		ly := float64(y1 + 8 + 20*i)
		g.line(class, x1+14, ly, x1+38, ly)
		g.text("small", "start", x1+44, ly+4, s.name)
	}
	return g.String()
}

// part is one piece of a bar.
type part struct {
	name  string
	value float64
}

// bar is one row of a stacked bar chart.
type bar struct {
	name  string
	parts []part
}

// stackedBars draws horizontal bars whose pieces add up; a piece keeps its
// colour in all of them.
func stackedBars(title, label string, bars []bar) string {
	var most float64
	colourOf := map[string]int{}
	var names []string
	for _, b := range bars {
		sum := 0.0
		for _, p := range b.parts {
			sum += p.value
			if _, ok := colourOf[p.name]; !ok {
				colourOf[p.name] = len(names) % colours
				names = append(names, p.name)
			}
		}
		most = max(most, sum)
	}
	const barHeight, gap, nameWidth = 34.0, 18.0, 120.0 // pixels
	height := top + float64(len(bars))*(barHeight+gap) + below + 24
	g := newCanvas(chartWidth, height, title)
	g.text("title", "start", 12, 22, title)
	a := axis{label: label, max: most}
	x := func(v float64) float64 { return nameWidth + a.at(v)*(chartWidth-nameWidth-70) }
	foot := top + float64(len(bars))*(barHeight+gap)
	for _, v := range a.marks() {
		g.line("grid", x(v), top, x(v), foot)
		g.text("small faint", "middle", x(v), foot+14, tick(v))
	}
	g.text("faint", "middle", chartWidth/2, foot+34, label)
	for i, b := range bars {
		y := top + float64(i)*(barHeight+gap)
		g.text("", "end", nameWidth-8, y+barHeight/2+4, b.name)
		sum := 0.0
		for _, p := range b.parts {
			from := x(sum)
			sum += p.value
			g.rect("f"+strconv.Itoa(colourOf[p.name]), from, y, x(sum)-from, barHeight, p.name+": "+num(p.value))
		}
		g.text("small", "start", x(sum)+6, y+barHeight/2+4, num(sum))
	}
	lx := 12.0
	for _, n := range names {
		g.rect("f"+strconv.Itoa(colourOf[n]), lx, height-18, 11, 11, n)
		g.text("small", "start", lx+16, height-8, n)
		lx += 32 + 6.5*float64(len(n))
	}
	return g.String()
}
