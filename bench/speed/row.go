package main

// A row is one comparison: the same work by several contenders.
type row struct {
	name, title string
	about       string         // how it is measured
	axis        string         // the meaning of point.X
	baseline    string         // a contender
	plot        []string       // ids: of each line the first figure that it has is drawn
	redis       bool           // it needs a redis-server
	preset      func(*job) int // how many keys Redis has beforehand; nil: none
	huge        bool
	turns       int // at most; 0: no limit of its own
	contenders  []contender
}

// contender is one side of a comparison. measure runs in a process of its own.
type contender struct {
	name    string
	measure func(*job) ([]sample, error)
}

// job is the order that a process gets.
type job struct {
	Row, Contender string
	Addr           string // of Redis
	Quick          bool
}

// size is n, or a fiftieth of it and no more than 20,000 in a quick run.
func (j *job) size(n int) int {
	if j.Quick && n > 0 {
		return min(max(n/50, 1), 20_000)
	}
	return n
}

// point is a place in the table of a row.
type point struct {
	Line string // a row may measure several things
	X    int    // callers, or the capacity
}

// sample has the figures that one process found at a point, by the ids in figures.
type sample struct {
	point
	Figures map[string]float64
}

// figure describes a column.
type figure struct {
	id, title string
	unit      unit
	compared  bool // the table has its ratio to the baseline
}

var figures = [...]figure{
	{"hits", "hit ratio", fraction, true},
	{"time", "time/op", nanoseconds, true},
	{"cpu", "CPU/op", nanoseconds, true},
	{"p50", "p50", nanoseconds, false},
	{"p99", "p99", nanoseconds, false},
	{"allocs", "allocs/op", count, false},
	{"collection", "CPU of a collection", nanoseconds, true},
	{"heap", "heap", byteCount, true},
	{"kept", "entries kept", count, false},
	{"answered", "reads answered", fraction, false},
}

// rows returns all rows, in the order of the report.
func rows() []row {
	all := hitRows()
	all = append(all, fillRows()...)
	all = append(all, clientHitRow())
	all = append(all, replyRows()...)
	all = append(all, remoteRows()...)
	all = append(all, outageRow())
	return append(all, ratioRows()...)
}
