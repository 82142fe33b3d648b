package bench

import (
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/bench/worker"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// patient is a budget that a busy machine does not use up: here it is not measured,
// but counted.
const patient = 10 * time.Second

func TestAFleetWithLeasesLoadsAColdKeyAboutOnce(t *testing.T) {
	server := redistest.Start(t)
	f := startFleet(t, 3, worker.Setup{Peer: holdfastLeased, Addr: server.Addr(), Budget: patient})
	o := outcome{}
	for _, key := range []string{"a", "b", "c", "d", "e", "f"} {
		// The source is slow, so that without leases all three would ask it.
		o.add(f.stampede(t, worker.Order{Key: key, Callers: callers, Takes: 300 * time.Millisecond, Patience: time.Minute}, nil))
	}
	if o.answered != o.calls {
		t.Errorf("%d of %d callers got the value: %s", o.answered, o.calls, o.failure)
	}
	// A lease is a courtesy: one key in two may cost a second load.
	if o.loads < o.rounds || o.loads > o.rounds*3/2 {
		t.Errorf("%d loads of %d keys by 3 processes", o.loads, o.rounds)
	}
	t.Logf("%d loads of %d keys by 3 processes", o.loads, o.rounds)
}

func TestEachPeerLoadsAKeyAndHasItForOthers(t *testing.T) {
	for _, peer := range peers() {
		t.Run(peer, func(t *testing.T) {
			if peer == libraryLeases {
				redistest.Long(t) // it is built first
			}
			works(t, peer)
		})
	}
}

// works has one process load a key, and a second one find it in Redis.
func works(t *testing.T, peer string) {
	server := redistest.Start(t)
	f := startFleet(t, 2, worker.Setup{Peer: peer, Addr: server.Addr(), Budget: patient})
	ask := func(p *process) worker.Report {
		t.Helper()
		p.order(t, worker.Order{Key: "k", Callers: callers, Takes: 10 * time.Millisecond, Patience: time.Minute})
		r := p.report(t)
		if r.Answered != callers || len(r.Took) != callers {
			t.Fatalf("%d of %d callers got the value: %s", r.Answered, callers, r.Failure)
		}
		return r
	}
	// A caller who is held up may find it gone from a flight and not yet elsewhere.
	if r := ask(f[0]); r.Loads < 1 || r.Loads > 4 {
		t.Errorf("%d loads for %d callers", r.Loads, callers)
	}
	redistest.WaitFor(t, time.Minute, "the value in Redis", func() bool { return server.MustDo("EXISTS", "k") == "1" })
	server.MustDo("CONFIG", "RESETSTAT")
	if r := ask(f[1]); r.Loads != 0 {
		t.Errorf("%d loads of what Redis has", r.Loads)
	}
	if n := commands(t, server); n == 0 {
		t.Error("Redis was not asked")
	}
}

func TestEachCacheAnswersItsHitsItself(t *testing.T) {
	keys := []string{"a", "b", "c"}
	all, local := warmHits(t, keys)
	for _, h := range all {
		for _, key := range keys {
			if err := h.get(key); err != nil {
				t.Errorf("%s: %v", h.name, err)
			}
		}
	}
	local(t)
}

func TestWithoutRedisEachProcessLoadsAKeyOnceAndAnswers(t *testing.T) {
	o := run(t, scenario{50 * time.Millisecond, killed, time.Minute}, 2, holdfastLeased, 3)
	if o.answered != o.calls {
		t.Errorf("%d of %d callers got the value: %s", o.answered, o.calls, o.failure)
	}
	if o.loads != 2*o.rounds {
		t.Errorf("%d loads of %d keys by 2 processes", o.loads, o.rounds)
	}
}

func TestAFleetWhoseRedisIsLostDuringALoadAnswersAllAndGoesOn(t *testing.T) {
	// The second round needs Redis back in all processes.
	o := run(t, scenario{50 * time.Millisecond, vanishes, time.Minute}, 3, holdfastLeased, 2)
	if o.answered != o.calls || o.calls != 2*3*callers {
		t.Errorf("%d of %d callers got the value: %s", o.answered, o.calls, o.failure)
	}
	if o.loads < o.rounds || o.loads > 3*o.rounds {
		t.Errorf("%d loads of %d keys by 3 processes", o.loads, o.rounds)
	}
}
