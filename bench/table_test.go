package bench

import (
	"fmt"
	"io"
	"regexp"
	"slices"
	"time"
)

// tables is what the benchmarks of this run have found, for the end.
var tables struct {
	stampedes []*outcome
	hits      []hitOutcome
}

// keep takes an outcome into the tables, in the place of an earlier one of the same:
// a benchmark is run more than once.
func keep(o *outcome) {
	same := func(k *outcome) bool {
		return k.scenario == o.scenario && k.processes == o.processes && k.peer == o.peer
	}
	if i := slices.IndexFunc(tables.stampedes, same); i >= 0 {
		tables.stampedes[i] = o
		return
	}
	tables.stampedes = append(tables.stampedes, o)
}

func printTables(w io.Writer) {
	var last scenario
	for _, o := range tables.stampedes {
		if o.scenario != last {
			last = o.scenario
			printHead(w, o)
		}
		printRow(w, o)
	}
	if len(tables.hits) > 0 {
		fmt.Fprintf(w, "\nA hit in the process, %d keys of %d bytes:\n\n", hitKeys, len(hitValue()))
		fmt.Fprintln(w, "| goroutines | hit | ns | ratio to `Cache.Get` | allocations |\n|---|---|---|---|---|")
	}
	for _, h := range tables.hits {
		fmt.Fprintf(w, "| %d | %s | %.0f | %.2f | %.0f |\n", h.goroutines, h.name, h.ns, h.ratio, h.allocs)
	}
}

func printHead(w io.Writer, o *outcome) {
	s := o.scenario
	fmt.Fprintf(w, "\nRedis %s, a source that takes %v, %d callers a process that wait for %v, %d keys:\n\n",
		s.trouble, s.takes, callers, s.patience, o.rounds)
	if s.trouble == none {
		fmt.Fprintln(w, "| processes | cache | loads a key | p50 | p99 | Redis commands a key | answered |\n|---|---|---|---|---|---|---|")
		return
	}
	fmt.Fprintln(w, "| processes | cache | loads a key and process | p50 | p99 | answered |\n|---|---|---|---|---|---|")
}

func printRow(w io.Writer, o *outcome) {
	fmt.Fprintf(w, "| %d | %s | ", o.processes, o.peer)
	if o.scenario.trouble == none {
		fmt.Fprintf(w, "%.2f | %s | %s | %.0f", o.loadsPerKey(), ms(o.percentile(50)), ms(o.percentile(99)), o.commandsPerKey())
	} else {
		fmt.Fprintf(w, "%.2f | %s | %s", o.loadsPerKey()/float64(o.processes), ms(o.percentile(50)), ms(o.percentile(99)))
	}
	fmt.Fprintf(w, " | %.0f%%", 100*o.answeredPart())
	if o.failure != "" {
		fmt.Fprintf(w, " (%.60s)", address.ReplaceAllString(o.failure, "redis"))
	}
	fmt.Fprintln(w, " |")
}

// address is one of the loopback interface: the port differs from run to run.
var address = regexp.MustCompile(`127\.0\.0\.1:\d+`)

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", d.Seconds()*1000) }
