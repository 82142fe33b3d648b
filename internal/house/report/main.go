// Command report prints how the packages of this module are built: the figures on
// which arch_test.go sets bounds. Run it in the module's directory:
//
//	go run ./internal/house/report        the table, and the largest knot of each package
//	go run ./internal/house/report -v     with each local that shadows a name, each file's edges, and the locks
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/holdfast-cache/holdfast/internal/house"
)

func main() {
	verbose := flag.Bool("v", false, "list the locals that shadow a name, and the files that each file uses")
	dir := flag.String("C", ".", "the module's directory")
	flag.Parse()
	patterns := flag.Args()
	if len(patterns) == 0 {
		patterns = []string{".", "./internal/..."}
	}
	packages, err := house.Load(*dir, patterns...)
	if err == nil {
		err = report(os.Stdout, packages, *verbose)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func report(w io.Writer, packages []*house.Package, verbose bool) error {
	figures := make([]house.Figures, len(packages))
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "package\tfiles\tcode\tlongest file\tedges a file\tknot\tby calls\tshadows\twhat/who per 100\tmain type")
	for i, p := range packages {
		f := p.Measure()
		figures[i] = f
		fmt.Fprintf(table, "%s\t%d\t%d\t%d %s\t%.2f\t%d\t%d\t%d\t%.2f\t%s: %d methods in %d files\n",
			p.Path, f.Files, f.Code, f.Longest, f.LongestFile, f.EdgesPerFile(), len(f.Knot), len(f.CallKnot),
			len(f.Shadows), f.PronounsPer100(), f.MainType, f.MainTypeMethods, f.MainTypeFiles)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for i, p := range packages {
		f := figures[i]
		if len(f.Knot) > 0 {
			fmt.Fprintf(w, "\n%s, the knot: %s\n", p.Path, strings.Join(f.Knot, " "))
		}
		if len(f.CallKnot) > 0 {
			fmt.Fprintf(w, "%s, by calls: %s\n", p.Path, strings.Join(f.CallKnot, " "))
		}
		if !verbose {
			continue
		}
		for _, s := range f.Shadows {
			fmt.Fprintf(w, "%s: %s shadows a name of the package\n", s.At, s.Name)
		}
		edges := house.Edges(p.Uses(), false)
		for _, file := range p.Files {
			if to := edges[file.Name]; len(to) > 0 {
				fmt.Fprintf(w, "%s uses %d: %s\n", file.Name, len(to), strings.Join(to, " "))
			}
		}
	}
	if verbose {
		printLocks(w, packages)
	}
	return nil
}

// printLocks prints the order of the locks and the other things done under them.
func printLocks(w io.Writer, packages []*house.Package) {
	fmt.Fprintln(w, "\nWhile a lock is held:")
	for _, h := range house.Locks(packages) {
		switch h.Kind {
		case house.TakesLock:
			fmt.Fprintf(w, "%s > %s: %s\n", h.Lock, h.Does, h.By)
		case house.CallsOut:
			fmt.Fprintf(w, "%s, calls %s: %s\n", h.Lock, h.Does, h.By)
		default:
			fmt.Fprintf(w, "%s, %s: %s\n", h.Lock, h.Does, h.By)
		}
	}
}
