package holdfast_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// outageKind is one way for Redis to go away and to come back. The stories of the
// journal are told of each.
//
// Others can reach Redis before we can: meanwhile makes it so, and back has to work
// with and without it. After back, the site is as it was before away, so that an
// outage can follow another.
type outageKind struct {
	name  string
	start func(s *site)

	away      func(s *site)
	meanwhile func(s *site)
	back      func(s *site)

	empty bool // it comes back without its data
	same  bool // it is the same process: what is missing then, somebody deleted
	quick bool // one of the two that stand for all where that is enough
}

// site is where a story plays: one address, and who is behind it.
type site struct {
	t    *testing.T
	kind outageKind

	way     *redistest.Proxy  // the address
	master  *redistest.Server // who is there, and who will be
	replica *redistest.Server // nil where the kind needs none
	others  *redistest.Server // whom everybody else asks

	met bool // meanwhile was called in this outage
}

// durable has a server that is killed come back with all that it acknowledged: a
// write to the file that the kernel has is as good as one on the disk.
var durable = []string{"--appendonly", "yes", "--appendfsync", "no"}

var outageKinds = []outageKind{
	{
		name: "killed and back with its data", quick: true,
		start: func(s *site) { s.alone(durable...) },
		away:  func(s *site) { s.master.Kill() },
		meanwhile: func(s *site) {
			s.way.SetMode(redistest.Cut)
			s.master.Restart()
		},
		back: func(s *site) {
			if !s.met {
				s.master.Restart()
			}
			s.way.SetMode(redistest.Pass)
		},
	},
	{
		name: "killed and back empty", empty: true,
		start: func(s *site) { s.alone() },
		away:  func(s *site) { s.master.Kill() },
		meanwhile: func(s *site) {
			s.way.SetMode(redistest.Cut)
			s.master.RestartEmpty()
		},
		back: func(s *site) {
			if !s.met {
				s.master.RestartEmpty()
			}
			s.way.SetMode(redistest.Pass)
		},
	},
	{
		name: "stopped and continued", same: true, quick: true,
		start: func(s *site) { s.alone() },
		away:  func(s *site) { s.master.Pause() },
		meanwhile: func(s *site) {
			// What we sent until here runs now; what we send from here on later.
			s.way.SetMode(redistest.Hang)
			s.master.Resume()
		},
		back: func(s *site) {
			if !s.met {
				s.master.Resume()
			}
			s.way.SetMode(redistest.Pass)
		},
	},
	{
		name: "stopped and continued, the connection cut", same: true,
		start: func(s *site) { s.alone() },
		away:  func(s *site) { s.master.Pause() },
		meanwhile: func(s *site) {
			s.way.SetMode(redistest.Cut)
			s.master.Resume()
		},
		back: func(s *site) {
			if !s.met {
				s.way.CutAll() // what was sent there runs all the same
				s.master.Resume()
			}
			s.way.SetMode(redistest.Pass)
		},
	},
	{
		name: "a replica and promoted again", same: true,
		start:     func(s *site) { s.pair() },
		away:      func(s *site) { s.handOver(s.master, s.replica) },
		meanwhile: func(*site) {},
		back:      func(s *site) { s.handOver(s.replica, s.master) },
	},
	{
		name:      "moved to the promoted replica",
		start:     func(s *site) { s.pair() },
		away:      func(s *site) { s.handOver(s.master, s.replica); s.swap() },
		meanwhile: func(*site) {},
		back:      func(s *site) { s.way.SetBackend(s.master.Addr()) },
	},
	{
		name:  "moved to the promoted replica of one that died",
		start: func(s *site) { s.pair() },
		away: func(s *site) {
			if !s.replica.Running() { // it died in the last outage
				s.replica.Restart("--replicaof", fmt.Sprint("127.0.0.1 ", s.master.Port()))
				s.master.AwaitReplicas(1)
			}
			s.inStep(s.master, s.replica)
			s.master.Kill()
			s.replica.MustDo("REPLICAOF", "NO", "ONE")
			s.swap()
		},
		meanwhile: func(*site) {},
		back:      func(s *site) { s.way.SetBackend(s.master.Addr()) },
	},
	{
		name: "refusing writes for want of replicas", same: true,
		start: func(s *site) { s.alone() },
		away:  func(s *site) { s.master.MustDo("CONFIG", "SET", "min-replicas-to-write", "1") },
		meanwhile: func(s *site) {
			s.way.SetMode(redistest.Hang)
			s.master.MustDo("CONFIG", "SET", "min-replicas-to-write", "0")
		},
		back: func(s *site) {
			if !s.met {
				s.master.MustDo("CONFIG", "SET", "min-replicas-to-write", "0")
			}
			s.way.SetMode(redistest.Pass)
		},
	},
}

// story is told of an outage.
type story func(t *testing.T, ctx context.Context, s *site)

// eachOutage tells the story of each kind of outage, one after the other; where
// redis is not required, of two.
func eachOutage(t *testing.T, tell story) {
	eachKind(t, func(outageKind) bool { return true }, false, tell)
}

// outagesAtOnce is eachOutage for stories that wait for most of their time and
// measure none of it.
func outagesAtOnce(t *testing.T, tell story) {
	eachKind(t, func(outageKind) bool { return true }, true, tell)
}

// twoOutages is for what hardly depends on the kind of outage.
func twoOutages(t *testing.T, tell story) {
	eachKind(t, func(k outageKind) bool { return k.quick }, true, tell)
}

func eachKind(t *testing.T, want func(outageKind) bool, atOnce bool, tell story) {
	ctx := begin(t)
	for _, kind := range outageKinds {
		if !want(kind) || !kind.quick && !redistest.Full(t) {
			continue
		}
		t.Run(kind.name, func(t *testing.T) {
			if atOnce {
				t.Parallel()
			}
			tell(t, ctx, newSite(t, kind))
		})
	}
}

func newSite(t *testing.T, kind outageKind) *site {
	t.Helper()
	s := &site{t: t, kind: kind}
	kind.start(s)
	s.others = s.master
	s.way = redistest.NewProxy(t, s.master.Addr())
	return s
}

func (s *site) alone(args ...string) { s.master = redistest.Start(s.t, args...) }

func (s *site) pair() { s.master, s.replica = replicated(s.t) }

// options are those of a client of the site. It looks for Redis more often than by
// default, for the tests' sake.
func (s *site) options() holdfast.Options {
	o := at(s.way.Addr())
	o.Breaker.MaxBackoff = 200 * time.Millisecond
	return o
}

// open makes a client of the site that has reached Redis.
func (s *site) open(o holdfast.Options) *holdfast.Cache {
	s.t.Helper()
	c := open(s.t, o)
	ready(s.t, c)
	return c
}

// leaves takes Redis away, and returns when the client has noticed.
func (s *site) leaves(c *holdfast.Cache) {
	s.t.Helper()
	s.kind.away(s)
	s.met = false
	redistest.WaitFor(s.t, patience, "the client to notice", func() bool {
		_, _ = c.Get(context.Background(), "nobody's") // a call on a server that hangs
		return c.Health().State != holdfast.Up
	})
}

// meets lets others reach Redis while we cannot.
func (s *site) meets(f func(r *redistest.Server)) {
	s.t.Helper()
	if !s.met {
		s.kind.meanwhile(s)
		s.met = true
	}
	f(s.others)
}

// returns gives Redis back, and returns when the client is up. It makes no calls.
func (s *site) returns(c *holdfast.Cache) {
	s.t.Helper()
	s.kind.back(s)
	waitState(s.t, c, holdfast.Up)
	s.others = s.master
}

// swap is after a promotion: the replica is the master from here on.
func (s *site) swap() {
	s.master, s.replica = s.replica, s.master
	s.others = s.master
}

// handOver has two servers change places without losing what was acknowledged:
// the old one holds writes back until the next one has everything. (FAILOVER does
// the same and takes seconds.)
func (s *site) handOver(from, to *redistest.Server) {
	s.t.Helper()
	s.inStep(from, to)
	promote(s.t, to, from)
	from.MustDo("CLIENT", "UNPAUSE")
	redistest.WaitFor(s.t, patience, "the hand-over", func() bool {
		return strings.Contains(from.MustDo("ROLE"), "\nconnected\n")
	})
	s.others = to
}

// inStep has the master hold writes back, and waits until the replica has
// everything. WAIT would not do: a server that is paused asks its replicas nothing.
func (s *site) inStep(master, replica *redistest.Server) {
	s.t.Helper()
	offset := func(srv *redistest.Server, field string) string {
		_, rest, _ := strings.Cut(srv.MustDo("INFO", "replication"), field+":")
		n, _, _ := strings.Cut(rest, "\r")
		return n
	}
	master.MustDo("CLIENT", "PAUSE", "60000", "WRITE")
	redistest.WaitFor(s.t, patience, "the replica to be in step", func() bool {
		return offset(master, "master_repl_offset") == offset(replica, "slave_repl_offset")
	})
}

// heldAt returns what a server holds for the keys, as somebody else sees it.
func heldAt(r *redistest.Server, keys []string) map[string]string {
	all := make(map[string]string, len(keys))
	for len(keys) > 0 {
		n := min(500, len(keys))
		reply := r.MustDo(append([]string{"MGET"}, keys[:n]...)...)
		for i, v := range strings.Split(reply, "\n") {
			all[keys[i]] = v
		}
		keys = keys[n:]
	}
	return all
}

const nothing = "(nil)"

// mismatches reports the keys of which a server holds something else than the one
// value that is right.
func mismatches(t *testing.T, r *redistest.Server, when string, want map[string]string) {
	t.Helper()
	keys := make([]string, 0, len(want))
	for key := range want {
		keys = append(keys, key)
	}
	wrong := 0
	for key, got := range heldAt(r, keys) {
		if got != want[key] {
			if wrong++; wrong <= 5 {
				t.Errorf("%s: %s is %.40q, want %.40q", when, key, got, want[key])
			}
		}
	}
	if wrong > 5 {
		t.Errorf("%s: %d of %d keys are wrong", when, wrong, len(want))
	}
}

// named makes n keys of a name.
func named(name string, n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprint(name, ":", i)
	}
	return keys
}

// all gives each key the one value.
func all(keys []string, value string) map[string][]byte {
	items := make(map[string][]byte, len(keys))
	for _, key := range keys {
		items[key] = []byte(value)
	}
	return items
}
