package main

import (
	"fmt"
	"html"
	"math"
	"strconv"
	"strings"

	"github.com/holdfast-cache/holdfast/bench/stats"
)

// chart is a plot: lines over at least three places of the axis, else bars.
type chart struct {
	file, title string
	axis, value string   // names of the axes
	places      []string // on the axis
	series      []series
	unit        unit
}

// series is one contender: at each place a median and its 95% interval, or NaN.
type series struct {
	name           string
	mid, low, high []float64
}

// charts returns a plot for each line of the row.
func (r *result) charts() []chart {
	var all []chart
	for _, line := range r.lines() {
		f := r.drawn(line)
		c := chart{file: r.row.name, title: r.row.title, axis: r.row.axis, value: f.title, unit: f.unit}
		if line != "" {
			notWord := func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') }
			c.file += "-" + strings.Join(strings.FieldsFunc(strings.ToLower(line), notWord), "-")
			c.title += ": " + line
		}
		places := r.places(line)
		for _, p := range places {
			c.places = append(c.places, strconv.Itoa(p.X))
		}
		for _, of := range r.row.contenders {
			s, some := series{name: of.name}, false
			for _, p := range places {
				mid, low, high := math.NaN(), math.NaN(), math.NaN()
				if values := r.values(of.name, p, f.id); len(values) > 0 {
					some, mid = true, stats.Median(values)
					low, high = stats.Interval(values)
				}
				s.mid, s.low, s.high = append(s.mid, mid), append(s.low, low), append(s.high, high)
			}
			if some {
				c.series = append(c.series, s)
			}
		}
		if len(c.series) > 0 {
			all = append(all, c)
		}
	}
	return all
}

// drawn returns the figure of a line that is drawn.
func (r *result) drawn(line string) figure {
	columns := r.columns(line)
	for _, id := range r.row.plot {
		for _, f := range columns {
			if f.id == id {
				return f
			}
		}
	}
	return figure{}
}

// colours are told apart by most people; holdfast, which comes first in most rows, has a
// strong one.
var colours = [...]string{"#c0392b", "#1f77b4", "#2ca02c", "#ff9f1c", "#7b4fa3", "#8c564b", "#17becf", "#555555", "#e377c2", "#a5a81d"}

func colour(i int) string { return colours[i%len(colours)] }

// canvas writes the elements of an SVG picture.
type canvas struct{ strings.Builder }

func newCanvas(width, height float64, title string) *canvas {
	c := &canvas{}
	fmt.Fprintf(c, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" width="%.0f" height="%.0f" font-family="sans-serif" font-size="12">`+"\n",
		width, height, width, height)
	fmt.Fprintf(c, `<rect width="%.0f" height="%.0f" fill="white"/>`+"\n", width, height)
	c.text(width/2, 22, "middle", title)
	return c
}

func (c *canvas) line(x1, y1, x2, y2 float64, stroke string, width float64) {
	fmt.Fprintf(c, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-width="%.1f"/>`+"\n", x1, y1, x2, y2, stroke, width)
}

func (c *canvas) rect(x, y, width, height float64, paint string) {
	fmt.Fprintf(c, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/>`+"\n", x, y, width, height, paint)
}

func (c *canvas) text(x, y float64, anchor, s string) {
	fmt.Fprintf(c, `<text x="%.1f" y="%.1f" text-anchor="%s">%s</text>`+"\n", x, y, anchor, html.EscapeString(s))
}

func (c *canvas) end() []byte {
	c.WriteString("</svg>\n")
	return []byte(c.String())
}

func (c chart) svg() []byte {
	if len(c.places) < 3 {
		return c.bars()
	}
	return c.lines()
}

func (c chart) lines() []byte {
	const left, top, width, height, legend = 80.0, 40.0, 560.0, 320.0, 220.0
	pic := newCanvas(left+width+legend, top+height+60, c.title)
	s := c.scale()
	x := func(place int) float64 { return left + width*float64(place)/float64(len(c.places)-1) }
	y := func(v float64) float64 { return top + height*(1-s.part(v)) }
	for _, v := range s.ticks() {
		pic.line(left, y(v), left+width, y(v), "#dddddd", 1)
		pic.text(left-6, y(v)+4, "end", c.unit.format([]float64{v}))
	}
	for i, place := range c.places {
		pic.text(x(i), top+height+18, "middle", place)
	}
	pic.text(left+width/2, top+height+42, "middle", c.axis)
	value := c.value
	if s.log {
		value += ", logarithmic"
	}
	pic.text(left, top-6, "middle", value)
	for i, one := range c.series {
		last := -1
		for p, v := range one.mid {
			if math.IsNaN(v) {
				continue
			}
			pic.line(x(p), y(one.low[p]), x(p), y(one.high[p]), colour(i), 1)
			pic.rect(x(p)-2.5, y(v)-2.5, 5, 5, colour(i))
			if last >= 0 {
				pic.line(x(last), y(one.mid[last]), x(p), y(v), colour(i), 2)
			}
			last = p
		}
		at := top + 18*float64(i)
		pic.rect(left+width+20, at, 12, 12, colour(i))
		pic.text(left+width+38, at+10, "start", one.name)
	}
	return pic.end()
}

func (c chart) bars() []byte {
	const left, top, width, thick = 220.0, 60.0, 460.0, 20.0
	rows := len(c.places) * (len(c.series) + 1)
	pic := newCanvas(left+width+100, top+thick*float64(rows)+10, c.title)
	pic.text(left, 44, "start", c.value)
	s := c.scale()
	s.low, s.log = 0, false
	y := top
	for p, place := range c.places {
		if len(c.places) > 1 {
			pic.text(left-8, y+12, "end", c.axis+": "+place)
		}
		y += thick
		for i, one := range c.series {
			pic.text(left-8, y+12, "end", one.name)
			if v := one.mid[p]; !math.IsNaN(v) {
				pic.rect(left, y, width*s.part(v), thick-5, colour(i))
				pic.line(left+width*s.part(one.low[p]), y+7.5, left+width*s.part(one.high[p]), y+7.5, "black", 1)
				pic.text(left+width*s.part(one.high[p])+6, y+12, "start", c.unit.format([]float64{v}))
			}
			y += thick
		}
	}
	return pic.end()
}

// scale maps values to an axis.
type scale struct {
	low, high float64
	log       bool
}

// scale begins at zero, or is logarithmic where the values differ by more than 20 times.
func (c chart) scale() scale {
	least, most := math.Inf(1), 0.0
	for _, s := range c.series {
		for p := range s.mid {
			if !math.IsNaN(s.mid[p]) {
				least, most = min(least, s.low[p]), max(most, s.high[p])
			}
		}
	}
	switch {
	case most <= 0:
		return scale{0, 1, false}
	case least > 0 && most > 20*least:
		return scale{math.Pow(10, math.Floor(math.Log10(least))), most * 1.05, true}
	}
	return scale{0, most * 1.05, false}
}

// part returns where v is on the axis, from 0 to 1.
func (s scale) part(v float64) float64 {
	if s.log {
		return math.Log(v/s.low) / math.Log(s.high/s.low)
	}
	return (v - s.low) / (s.high - s.low)
}

// ticks are round numbers: about five, or one, two and five times a power of ten.
func (s scale) ticks() []float64 {
	var all []float64
	if s.log {
		for power := s.low; power <= s.high; power *= 10 {
			for _, v := range []float64{power, 2 * power, 5 * power} {
				if v <= s.high {
					all = append(all, v)
				}
			}
		}
		return all
	}
	rough := (s.high - s.low) / 5
	step := math.Pow(10, math.Floor(math.Log10(rough)))
	for _, times := range []float64{1, 2, 5, 10} {
		if step*times >= rough {
			step *= times
			break
		}
	}
	for v := 0.0; v <= s.high; v += step {
		all = append(all, v)
	}
	return all
}
