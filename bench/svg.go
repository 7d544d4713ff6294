package main

import (
	"fmt"
	"html"
	"strings"
)

// canvas writes an SVG picture that reads well on light and dark pages: colours
// are classes, and the style follows the reader's preference.
type canvas struct {
	b             strings.Builder
	width, height float64
}

const svgStyle = `
text{font:12px system-ui,sans-serif;fill:#24292f}
.title{font-size:15px;font-weight:600}
.small{font-size:11px}
.faint{fill:#57606a}
.grid{stroke:#d0d7de;stroke-width:1}
.axis{stroke:#57606a;stroke-width:1}
.s{fill:none;stroke-width:2}
.dash{stroke-dasharray:5 4}
.c0{stroke:#57606a}.f0{fill:#57606a}
.c1{stroke:#0550ae}.f1{fill:#0550ae}
.c2{stroke:#bc4c00}.f2{fill:#bc4c00}
.c3{stroke:#1a7f37}.f3{fill:#1a7f37}
.c4{stroke:#8250df}.f4{fill:#8250df}
.c5{stroke:#bf3989}.f5{fill:#bf3989}
.c6{stroke:#9a6700}.f6{fill:#9a6700}
.c7{stroke:#1b7c83}.f7{fill:#1b7c83}
@media (prefers-color-scheme:dark){
text{fill:#e6edf3}.faint{fill:#8d96a0}
.grid{stroke:#30363d}.axis{stroke:#8d96a0}
.c0{stroke:#8d96a0}.f0{fill:#8d96a0}
.c1{stroke:#58a6ff}.f1{fill:#58a6ff}
.c2{stroke:#f0883e}.f2{fill:#f0883e}
.c3{stroke:#3fb950}.f3{fill:#3fb950}
.c4{stroke:#bc8cff}.f4{fill:#bc8cff}
.c5{stroke:#f778ba}.f5{fill:#f778ba}
.c6{stroke:#d29922}.f6{fill:#d29922}
.c7{stroke:#39c5cf}.f7{fill:#39c5cf}
}
`

// colours is how many classes c0… and f0… there are.
const colours = 8

func newCanvas(width, height float64, title string) *canvas {
	c := &canvas{width: width, height: height}
	fmt.Fprintf(&c.b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %s %s" width="%s" height="%s" role="img" aria-label="%s">`+"\n",
		px(width), px(height), px(width), px(height), html.EscapeString(title))
	fmt.Fprintf(&c.b, "<title>%s</title><style>%s</style>\n", html.EscapeString(title), svgStyle)
	return c
}

// px prints a coordinate with a tenth of a pixel at most.
func px(v float64) string {
	return strings.TrimSuffix(fmt.Sprintf("%.1f", v), ".0")
}

func (c *canvas) line(class string, x1, y1, x2, y2 float64) {
	fmt.Fprintf(&c.b, `<line class="%s" x1="%s" y1="%s" x2="%s" y2="%s"/>`+"\n", class, px(x1), px(y1), px(x2), px(y2))
}

func (c *canvas) path(class string, points [][2]float64) {
	var p strings.Builder
	for i, at := range points {
		if i > 0 {
			p.WriteByte(' ')
		}
		p.WriteString(px(at[0]) + "," + px(at[1]))
	}
	fmt.Fprintf(&c.b, `<polyline class="%s" points="%s"/>`+"\n", class, p.String())
}

func (c *canvas) dot(class string, x, y float64) {
	fmt.Fprintf(&c.b, `<circle class="%s" cx="%s" cy="%s" r="3"/>`+"\n", class, px(x), px(y))
}

func (c *canvas) rect(class string, x, y, w, h float64, tip string) {
	fmt.Fprintf(&c.b, `<rect class="%s" x="%s" y="%s" width="%s" height="%s"><title>%s</title></rect>`+"\n",
		class, px(x), px(y), px(w), px(h), html.EscapeString(tip))
}

// text is anchored at its "start", "middle" or "end".
func (c *canvas) text(class, anchor string, x, y float64, s string) {
	fmt.Fprintf(&c.b, `<text class="%s" text-anchor="%s" x="%s" y="%s">%s</text>`+"\n", class, anchor, px(x), px(y), html.EscapeString(s))
}

func (c *canvas) String() string { return c.b.String() + "</svg>\n" }
