// Command speed measures holdfast beside other caches and other clients of Redis, and prints
// a Markdown table for each row: medians of turns, and ratios to the row's baseline in the
// same turn with their 95% intervals. With -svg it also draws each row.
//
//	cd bench && go run ./speed -svg ../docs | tee speed.md     # all rows but the huge ones
//	go run ./speed -huge -row hit-huge,fill-huge -n 5          # those with ten million keys
//	go run ./speed -row hit -contender holdfast,otter -n 21    # a part
//	go run ./speed -quick                                      # does it work? The figures say nothing.
//
// Each contender of a row has a process of its own in each turn, and the contenders take
// turns, so that all see the same machine. A row that needs Redis has a redis-server of its
// own, emptied before each process: the one in PATH, or HOLDFAST_REDIS_SERVER. The program
// runs on unix.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
)

func main() {
	if os.Getenv(jobVariable) != "" {
		os.Exit(work(os.Stdout, os.Stderr))
	}
	var p plan
	rowNames := flag.String("row", "", "`names` of the rows, with commas between; default: all")
	contenders := flag.String("contender", "", "`names` of the contenders, with commas between; default: all")
	flag.IntVar(&p.turns, "n", 11, "turns")
	flag.BoolVar(&p.quick, "quick", false, "one turn of few operations, as a test of the program")
	huge := flag.Bool("huge", false, "run the rows of ten million keys, too: they need several GB of memory")
	list := flag.Bool("list", false, "list the rows and their contenders")
	flag.StringVar(&p.svg, "svg", "", "write a plot of each row into this `directory`")
	flag.Parse()
	p.out, p.log = os.Stdout, os.Stderr
	err := p.choose(*rowNames, *contenders, *huge)
	switch {
	case flag.NArg() > 0 || p.turns < 1:
		flag.Usage()
		os.Exit(2)
	case err != nil:
	case *list:
		listRows(os.Stdout, p.rows)
	default:
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		err = p.run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "speed:", err)
		os.Exit(1)
	}
}

// choose sets the rows of the plan and their contenders from lists of names.
func (p *plan) choose(rowNames, contenders string, huge bool) error {
	want, wanted := split(rowNames), split(contenders)
	found := map[string]bool{}
	for _, r := range rows() {
		named := slices.Contains(want, r.name)
		if len(want) > 0 && !named || r.huge && !huge && !named {
			continue
		}
		if r.huge && !huge && named {
			return fmt.Errorf("row %s needs several GB of memory: say -huge", r.name)
		}
		found[r.name] = true
		if len(wanted) > 0 {
			r.contenders = slices.DeleteFunc(r.contenders, func(c contender) bool { return !slices.Contains(wanted, c.name) })
		}
		for _, c := range r.contenders {
			found[c.name] = true
		}
		if len(r.contenders) > 0 {
			p.rows = append(p.rows, r)
		}
	}
	for _, name := range append(want, wanted...) {
		if !found[name] {
			return fmt.Errorf("no row or contender %q among those chosen; -list lists them", name)
		}
	}
	return nil
}

func split(names string) []string {
	return strings.FieldsFunc(names, func(r rune) bool { return r == ',' })
}

func listRows(w io.Writer, chosen []row) {
	for _, r := range chosen {
		fmt.Fprintf(w, "%s: %s\n", r.name, r.title)
		for _, c := range r.contenders {
			mark := ""
			if c.name == r.baseline {
				mark = " (baseline)"
			}
			fmt.Fprintf(w, "\t%s%s\n", c.name, mark)
		}
	}
}
