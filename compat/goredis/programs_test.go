package programs

import (
	"context"
	"testing"

	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/go-redis/v9"
)

// A program uses one library on a client of go-redis.
type program struct {
	library string
	// usual does what programs do with the library, and records it. It gets the number of
	// the run: the second finds what the first left behind.
	usual func(t *testing.T, rdb *redis.Client, r *record, run int)
	// inOutage prepares the operations of the table of outages.
	inOutage func(t *testing.T, open connect) []operation
}

// An operation is called over and over while Redis goes away and comes back.
type operation struct {
	name string
	call func(context.Context) error
	// alone is set where the result is due to Redis alone. Such an operation fails in an
	// outage; the others are answered.
	alone bool
	// after, if it is not nil, is what must hold in the end.
	after func(t *testing.T)
}

var programs = []program{
	{"asynq", asynqUsual, asynqInOutage},
	{"redislock", redislockUsual, redislockInOutage},
	{"redsync", redsyncUsual, redsyncInOutage},
	{"scs", scsUsual, scsInOutage},
	{"ulule/limiter", ululeUsual, ululeInOutage},
	{"throttled", throttledUsual, throttledInOutage},
	{"redis_rate", redisRateUsual, redisRateInOutage},
	{"go-redis/cache", goRedisCacheUsual, goRedisCacheInOutage},
}

func TestEachProgramSeesTheSameOnAPlainClientAndOnOneWithACache(t *testing.T) {
	for _, p := range programs {
		t.Run(p.library, func(t *testing.T) {
			t.Parallel() // they mostly wait
			theirs, ours := redistest.Start(t), redistest.Start(t)
			connected, cache := attached(t, ours, calm)
			bare, rdb := plain(t, theirs)(), connected()
			want, got := &record{}, &record{}
			for run := range 2 {
				p.usual(t, bare, want, run)
				p.usual(t, rdb, got, run)
			}
			if len(want.lines) < 20 {
				t.Errorf("the program recorded only %q", want.lines)
			}
			sameLines(t, "the program saw", got.lines, want.lines)
			sameLines(t, "the server has", contents(ours), contents(theirs))
			if s := cache.Stats(); s.BreakerOpens > 0 || s.JournalKeys > 0 {
				t.Errorf("a healthy Redis was taken for one that is away: %+v", s)
			}
		})
	}
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}
