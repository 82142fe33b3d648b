package bench

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/bench/worker"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

const (
	// callers is how many goroutines of each process ask for the key.
	callers = 64
	// budget is how long one exchange with Redis may take: holdfast's default, and
	// what a careful program gives the others.
	budget = 50 * time.Millisecond
	// outageRounds bounds the rounds without Redis: some peers take all the time that
	// a caller has. It is more than the failures that open holdfast's circuit.
	outageRounds = 10
	// vanishRounds is for those in which it is lost each time.
	vanishRounds = 5
)

// trouble is what becomes of Redis: before the first round, or in each.
type trouble string

const (
	none     trouble = "up"
	killed   trouble = "killed"
	stopped  trouble = "hung"
	vanishes trouble = "killed during the load"
)

// scenario is a stampede: what the source is like, what Redis is like, and how long a
// caller waits at most.
type scenario struct {
	takes    time.Duration
	trouble  trouble
	patience time.Duration
}

func scenarios() []scenario {
	return []scenario{
		{50 * time.Millisecond, none, 5 * time.Second},
		{time.Millisecond, none, 5 * time.Second},
		{50 * time.Millisecond, killed, time.Second},
		{50 * time.Millisecond, stopped, time.Second},
		{50 * time.Millisecond, vanishes, 4 * time.Second},
	}
}

func (s scenario) String() string { return fmt.Sprintf("redis=%s/source=%v", s.trouble, s.takes) }

// outcome is what came of the rounds of a scenario.
type outcome struct {
	scenario  scenario
	processes int
	peer      string

	rounds, loads, calls, answered, commands int
	took                                     []time.Duration
	failure                                  string
}

func (o *outcome) add(reports []worker.Report) {
	o.rounds++
	for _, r := range reports {
		o.loads += r.Loads
		o.calls += len(r.Took)
		o.answered += r.Answered
		o.took = append(o.took, r.Took...)
		if r.Failure != "" {
			o.failure = r.Failure
		}
	}
}

func (o *outcome) loadsPerKey() float64 { return float64(o.loads) / float64(o.rounds) }

func (o *outcome) answeredPart() float64 { return float64(o.answered) / float64(o.calls) }

func (o *outcome) commandsPerKey() float64 { return float64(o.commands) / float64(o.rounds) }

// percentile needs took sorted.
func (o *outcome) percentile(p int) time.Duration { return o.took[(len(o.took)-1)*p/100] }

// BenchmarkStampede is a key that nobody has, which 64 callers of each process ask for
// at once; each iteration is a new key. ns/op says nothing.
//
//	go test -run '^$' -bench Stampede -benchtime 40x
func BenchmarkStampede(b *testing.B) {
	for _, s := range scenarios() {
		for _, n := range []int{1, 3, 10} {
			for _, peer := range peers() {
				b.Run(fmt.Sprintf("%v/processes=%d/%s", s, n, peer), func(b *testing.B) {
					o := run(b, s, n, peer, b.N)
					keep(o)
					b.ReportMetric(0, "ns/op")
					b.ReportMetric(o.loadsPerKey(), "loads/key")
					b.ReportMetric(100*o.answeredPart(), "answered-%")
					b.ReportMetric(o.percentile(50).Seconds()*1000, "p50-ms")
					b.ReportMetric(o.percentile(99).Seconds()*1000, "p99-ms")
					if s.trouble == none {
						b.ReportMetric(o.commandsPerKey(), "redis-cmds/key")
					} else {
						b.ReportMetric(o.loadsPerKey()/float64(n), "loads/key/process")
					}
				})
			}
		}
	}
}

// run carries out a scenario on a fleet and a server of its own.
func run(tb testing.TB, s scenario, processes int, peer string, rounds int) *outcome {
	tb.Helper()
	server := redistest.Start(tb)
	f := startFleet(tb, processes, worker.Setup{Peer: peer, Addr: server.Addr(), Budget: budget})
	switch s.trouble {
	case none:
		server.MustDo("CONFIG", "RESETSTAT")
	case killed:
		rounds = min(rounds, outageRounds)
		server.Kill()
	case stopped:
		rounds = min(rounds, outageRounds)
		server.Pause()
	case vanishes:
		rounds = min(rounds, vanishRounds)
	}
	o := &outcome{scenario: s, processes: processes, peer: peer}
	for i := range rounds {
		order := worker.Order{
			Key: fmt.Sprintf("cold:%d", i), Callers: callers, Takes: s.takes, Patience: s.patience,
		}
		if s.trouble != vanishes {
			o.add(f.stampede(tb, order, nil))
			continue
		}
		if i > 0 {
			server.Restart()
			f.reconnected(tb, server)
		}
		o.add(f.stampede(tb, order, server.Kill))
	}
	if s.trouble == none {
		o.commands = commands(tb, server)
	}
	slices.Sort(o.took)
	return o
}
