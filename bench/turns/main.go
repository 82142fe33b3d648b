// Command turns compares two builds of the same benchmarks. It runs the two binaries in
// turns, so that both see the same machine, and prints for each benchmark the median of
// the ratios of the turns, new to old, with its 95% interval.
//
//	go test -c -o new.test .                      # in each of two clones
//	go run ./turns -bench 'LocalHit|RemoteGet|RemoteSet' -n 20 OLD/old.test NEW/new.test
//
// With -fail 1.02 it exits with 1 if a whole interval lies above that: the new build is
// slower. It runs as long as the benchmarks take.
package main

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"math"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/holdfast-cache/holdfast/bench/stats"
)

func main() {
	bench := flag.String("bench", ".", "`pattern` of the benchmarks")
	turns := flag.Int("n", 20, "turns")
	length := flag.String("benchtime", "300ms", "of each benchmark in a turn")
	limit := flag.Float64("fail", 0, "fail where a whole interval is above this `ratio`; 0: never")
	flag.Parse()
	if flag.NArg() != 2 || *turns < 2 {
		fmt.Fprintln(os.Stderr, "usage: turns [flags] OLD NEW, two test binaries; at least two turns")
		os.Exit(2)
	}
	var names []string
	ratios := map[string][]float64{}
	times := map[string][2][]float64{}
	for turn := range *turns {
		var took [2]map[string]float64
		for i := range 2 {
			i = (i + turn) % 2 // the binary that goes first alternates
			var order []string
			var err error
			if took[i], order, err = run(flag.Arg(i), *bench, *length); err != nil {
				fmt.Fprintln(os.Stderr, "turns:", err)
				os.Exit(1)
			}
			if names == nil {
				names = order
			}
		}
		for name, old := range took[0] {
			if next, ok := took[1][name]; ok {
				ratios[name] = append(ratios[name], next/old)
				both := times[name]
				both[0], both[1] = append(both[0], old), append(both[1], next)
				times[name] = both
			}
		}
		fmt.Fprintf(os.Stderr, "turn %d of %d\n", turn+1, *turns)
	}
	slower := false
	fmt.Printf("%-48s %10s %10s  %6s  %s\n", "benchmark", "old ns", "new ns", "ratio", "95% interval")
	for _, name := range names {
		if len(ratios[name]) == 0 {
			continue
		}
		low, high := stats.Interval(ratios[name])
		both := times[name]
		fmt.Printf("%-48s %10.1f %10.1f  %6.3f  %.3f to %.3f\n", name, stats.Median(both[0]), stats.Median(both[1]), stats.Median(ratios[name]), low, high)
		slower = slower || *limit > 0 && low > *limit
	}
	if slower {
		fmt.Printf("slower by more than %v\n", *limit)
		os.Exit(1)
	}
}

// run runs the benchmarks of one binary once, and returns ns per operation by name.
func run(binary, bench, length string) (took map[string]float64, order []string, err error) {
	cmd := exec.Command(binary, "-test.run", "^$", "-test.bench", bench, "-test.benchtime", length)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return nil, nil, fmt.Errorf("%s: %w\n%s", binary, err, out.String())
	}
	took = map[string]float64{}
	for lines := bufio.NewScanner(&out); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		for i := 2; i+1 < len(fields); i += 2 {
			if fields[i+1] != "ns/op" {
				continue
			}
			ns, err := strconv.ParseFloat(fields[i], 64)
			if err != nil || ns <= 0 || math.IsInf(ns, 0) {
				return nil, nil, fmt.Errorf("%s: no time in %q", binary, lines.Text())
			}
			took[fields[0]] = ns
			order = append(order, fields[0])
		}
	}
	return took, order, nil
}
