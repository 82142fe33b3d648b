package main

import (
	"math"
	"strings"
	"testing"
)

func exactly(values ...float64) series { return series{mid: values, low: values, high: values} }

func TestAnAxisBeginsAtZeroUnlessValuesAreFarApart(t *testing.T) {
	near := chart{series: []series{exactly(50, 100), exactly(math.NaN(), 200)}}.scale()
	if near.log || near.low != 0 || near.high < 200 {
		t.Errorf("50 to 200: %+v", near)
	}
	if part := near.part(near.high / 4); math.Abs(part-0.25) > 1e-9 {
		t.Errorf("a quarter of the axis is at %v", part)
	}
	far := chart{series: []series{exactly(40, 5000)}}.scale()
	if !far.log || far.low != 10 || far.high < 5000 {
		t.Errorf("40 to 5000: %+v", far)
	}
	if d := far.part(400) - far.part(40); math.Abs(d-(far.part(4000)-far.part(400))) > 1e-9 {
		t.Error("decades differ in length")
	}
	for _, s := range []scale{near, far, {0, 0.93, false}, {0, 1, false}} {
		ticks := s.ticks()
		if len(ticks) < 3 || len(ticks) > 12 {
			t.Errorf("%+v has the ticks %v", s, ticks)
		}
		for _, v := range ticks {
			if p := s.part(v); p < -1e-9 || p > 1+1e-9 {
				t.Errorf("%v of %+v is at %v", v, s, p)
			}
		}
	}
	if none := (chart{series: []series{exactly(0, 0)}}).scale(); none.part(0) != 0 {
		t.Errorf("nothing but zero: %+v", none)
	}
}

func TestAPlotShowsEachValueAndNoMissingOne(t *testing.T) {
	c := chart{title: "a < b & c", axis: "callers", value: "time/op", places: []string{"1", "2", "8"}, series: []series{exactly(50, math.NaN(), 100), exactly(60, 70, 80)}}
	c.series[0].name, c.series[1].name = "one", "two"
	pic := c.svg()
	wellFormed(t, "lines", pic)
	s := string(pic)
	for _, want := range []string{"a &lt; b &amp; c", ">callers<", ">time/op<", ">one<", ">two<", ">8<"} {
		if !strings.Contains(s, want) {
			t.Errorf("no %s in the plot", want)
		}
	}
	// Five values and two signs in the legend.
	if n := strings.Count(s, "<rect") - 1; n != 7 {
		t.Errorf("%d squares", n)
	}
	if n := strings.Count(s, `stroke-width="2.0"`); n != 3 {
		t.Errorf("%d connections between values, want one over the gap and two", n)
	}

	c.places = c.places[:2]
	c.unit = nanoseconds
	pic = c.svg()
	wellFormed(t, "bars", pic)
	s = string(pic)
	if n := strings.Count(s, "<rect") - 1; n != 3 {
		t.Errorf("%d bars", n)
	}
	for _, want := range []string{"callers: 2", "50 ns", "60 ns", "70 ns"} {
		if !strings.Contains(s, want) {
			t.Errorf("no %s among the bars", want)
		}
	}
}

func TestEachLineOfARowHasAPlotOfTheFirstFigureThatItHas(t *testing.T) {
	r := result{row: row{name: "r", title: "R", plot: []string{"heap", "time"}, contenders: []contender{{name: "a"}}}, found: map[string][]map[point]sample{}}
	r.add("a", []sample{
		{point{"a put", 1}, map[string]float64{"time": 5, "cpu": 6}},
		{point{"Heap, an entry", 1}, map[string]float64{"heap": 400, "time": 1}},
	})
	all := r.charts()
	if len(all) != 2 || all[0].file != "r-a-put" || all[0].value != "time/op" || all[1].file != "r-heap-an-entry" || all[1].series[0].mid[0] != 400 {
		t.Errorf("%+v", all)
	}
}
