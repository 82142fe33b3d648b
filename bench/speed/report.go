package main

import (
	"fmt"
	"io"
	"math"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-cache/holdfast/bench/stats"
)

// describe returns the head of the report: of which build it is, and on which machine.
func describe(p *plan) (string, error) {
	commit := "unknown"
	if out, err := exec.Command("git", "rev-parse", "--short=12", "HEAD").Output(); err == nil {
		commit = strings.TrimSpace(string(out))
		if out, err := exec.Command("git", "status", "--porcelain").Output(); err != nil || len(out) > 0 {
			commit += " with uncommitted changes"
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Commit %s, %s, GOMAXPROCS %d, redis-server %s, %s.\n", commit, runtime.Version(), runtime.GOMAXPROCS(0), serverVersion(), turnsOf(p))
	if info, ok := debug.ReadBuildInfo(); ok {
		var peers []string
		for _, d := range info.Deps {
			if slices.Contains(peerModules, d.Path) {
				peers = append(peers, d.Path+" "+d.Version)
			}
		}
		fmt.Fprintf(&b, "\nPeers: %s.\n", strings.Join(peers, ", "))
	}
	b.WriteString("\nEach figure is the median of the turns. A ratio is the median of the turns' ratios to the baseline, with its 95% interval " +
		"if there are several turns; below 1 is less than the baseline.\n")
	return b.String(), nil
}

var peerModules = []string{
	"github.com/Yiling-J/theine-go", "github.com/dgraph-io/ristretto/v2", "github.com/eko/gocache/lib/v4", "github.com/go-redis/cache/v9",
	"github.com/maypok86/otter/v2", "github.com/redis/go-redis/v9", "github.com/redis/rueidis", "github.com/viccon/sturdyc",
}

func turnsOf(p *plan) string {
	if p.quick {
		return "a quick run, whose figures say nothing"
	}
	return fmt.Sprintf("%d turns", p.turns)
}

// write writes the tables of a row: one for each line.
func (r *result) write(w io.Writer) {
	fmt.Fprintf(w, "\n## %s: %s\n\n%s\n", r.row.name, r.row.title, r.row.about)
	for _, line := range r.lines() {
		if line != "" {
			fmt.Fprintf(w, "\n### %s\n", line)
		}
		r.writeLine(w, line)
	}
	for _, f := range r.failed {
		fmt.Fprintf(w, "\nFailed: %s\n", f)
	}
}

func (r *result) lines() []string {
	var lines []string
	for _, p := range r.points {
		if !slices.Contains(lines, p.Line) {
			lines = append(lines, p.Line)
		}
	}
	return lines
}

// places returns the points of a line.
func (r *result) places(line string) []point {
	var of []point
	for _, p := range r.points {
		if p.Line == line {
			of = append(of, p)
		}
	}
	return of
}

func (r *result) writeLine(w io.Writer, line string) {
	columns := r.columns(line)
	head := []string{r.row.axis, "contender"}
	for _, f := range columns {
		head = append(head, f.title)
		if f.compared {
			head = append(head, f.title+" to "+r.row.baseline)
		}
	}
	fmt.Fprintf(w, "\n| %s |\n|%s\n", strings.Join(head, " | "), strings.Repeat("---|", len(head)))
	for _, p := range r.places(line) {
		for _, c := range r.row.contenders {
			cells := []string{strconv.Itoa(p.X), c.name}
			for _, f := range columns {
				cells = append(cells, f.unit.format(r.values(c.name, p, f.id)))
				if f.compared {
					cells = append(cells, formatRatios(r.ratios(c.name, p, f.id)))
				}
			}
			fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | "))
		}
	}
}

// columns returns the figures that the samples of a line have.
func (r *result) columns(line string) []figure {
	var all []figure
	for _, f := range figures {
		has := func(p point) bool {
			return slices.ContainsFunc(r.row.contenders, func(c contender) bool { return len(r.values(c.name, p, f.id)) > 0 })
		}
		if slices.ContainsFunc(r.places(line), has) {
			all = append(all, f)
		}
	}
	return all
}

// values returns a figure of all turns that have it.
func (r *result) values(contender string, p point, id string) []float64 {
	var all []float64
	for _, turn := range r.found[contender] {
		if v, ok := turn[p].Figures[id]; ok {
			all = append(all, v)
		}
	}
	return all
}

// ratios returns a figure's ratios to the baseline of the same turn.
func (r *result) ratios(contender string, p point, id string) []float64 {
	var all []float64
	base := r.found[r.row.baseline]
	for i, turn := range r.found[contender] {
		if i >= len(base) {
			break
		}
		v, ok := turn[p].Figures[id]
		b, of := base[i][p].Figures[id]
		if ok && of && b > 0 {
			all = append(all, v/b)
		}
	}
	return all
}

func formatRatios(all []float64) string {
	if len(all) == 0 {
		return ""
	}
	if len(all) == 1 {
		return fmt.Sprintf("%.3f", all[0])
	}
	low, high := stats.Interval(all)
	return fmt.Sprintf("%.3f (%.3f-%.3f)", stats.Median(all), low, high)
}

// unit is how a figure is printed.
type unit int

const (
	nanoseconds unit = iota
	byteCount
	count
	fraction
)

// format returns the median, or "" where there is none.
func (u unit) format(all []float64) string {
	if len(all) == 0 {
		return ""
	}
	v := stats.Median(all)
	switch u {
	case nanoseconds:
		for _, step := range []struct {
			size float64
			name string
		}{{1e9, "s"}, {1e6, "ms"}, {1e3, "µs"}} {
			if v >= step.size {
				return strconv.FormatFloat(v/step.size, 'g', 3, 64) + " " + step.name
			}
		}
		return strconv.FormatFloat(v, 'f', 0, 64) + " ns"
	case byteCount:
		return strconv.FormatFloat(v, 'f', 0, 64) + " B"
	case fraction:
		return strconv.FormatFloat(v, 'f', 3, 64)
	}
	return strconv.FormatFloat(math.Round(v*10)/10, 'f', -1, 64)
}
