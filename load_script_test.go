package holdfast_test

import (
	"context"
	"fmt"
	"regexp"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// scriptCalls returns how often the server was sent EVAL and EVALSHA.
func scriptCalls(t testing.TB, s *redistest.Server) (eval, evalsha int) {
	t.Helper()
	stats := s.MustDo("INFO", "commandstats")
	count := func(command string) (calls, rejected int) {
		found := regexp.MustCompile(`cmdstat_` + command + `:calls=(\d+),.*rejected_calls=(\d+),`).FindStringSubmatch(stats)
		if found != nil {
			fmt.Sscan(found[1], &calls)
			fmt.Sscan(found[2], &rejected)
		}
		return calls, rejected
	}
	calls, rejected := count("eval")
	shaCalls, shaRejected := count("evalsha")
	return calls + rejected, shaCalls + shaRejected
}

// wantScripts asserts how often the server was sent EVAL and EVALSHA since the last time.
func wantScripts(t testing.TB, s *redistest.Server, when string, eval, evalsha int) {
	t.Helper()
	if gotEval, gotSha := scriptCalls(t, s); gotEval != eval || gotSha != evalsha {
		t.Errorf("%s: EVAL %d times and EVALSHA %d times, want %d and %d", when, gotEval, gotSha, eval, evalsha)
	}
	s.MustDo("CONFIG", "RESETSTAT")
}

// loadsKeys loads n cold keys, one after the other, and asserts that they are in Redis.
func loadsKeys(t testing.TB, c *holdfast.Cache, get func(key string) string, n int, prefix string) {
	t.Helper()
	for i := range n {
		key := fmt.Sprint(prefix, i)
		wantLoad(t, c, key, time.Hour, newSource("v"), "v")
		if got := get(key); got != "v" {
			t.Errorf("%s: redis holds %q", key, got)
		}
	}
}

func TestAServerIsSentTheTextOfAScriptOnce(t *testing.T) {
	begin(t)
	s := redistest.Start(t)
	o := at(s.Addr())
	o.Timeout = 5 * time.Second
	c := open(t, o)
	ready(t, c)
	get := func(key string) string { return s.MustDo("GET", key) }
	s.MustDo("CONFIG", "RESETSTAT")
	loadsKeys(t, c, get, 5, "first")
	wantScripts(t, s, "a new server", 1, 4)

	s.MustDo("SCRIPT", "FLUSH")
	loadsKeys(t, c, get, 3, "flushed")
	wantScripts(t, s, "after SCRIPT FLUSH", 1, 3)

	// A load that fails only releases its lease, by the same script.
	s.MustDo("SCRIPT", "FLUSH")
	for i := range 2 {
		if _, err := c.GetOrLoad(context.Background(), fmt.Sprint("fails", i), 0, func(context.Context) ([]byte, error) { return nil, errLoadFailed }); err == nil {
			t.Error("no error")
		}
	}
	wantScripts(t, s, "released leases", 1, 2)
	if left := s.MustDo("KEYS", "holdfast:lease:*"); left != "" {
		t.Errorf("leases are left: %s", left)
	}

	s.RestartEmpty()
	redistest.WaitFor(t, patience, "the new server", func() bool { return c.Check(context.Background()) == nil })
	s.MustDo("CONFIG", "RESETSTAT")
	loadsKeys(t, c, get, 3, "restarted")
	wantScripts(t, s, "after a restart", 1, 2)
	if st := c.Stats(); st.LoadErrors != 2 {
		t.Errorf("%d loads failed", st.LoadErrors)
	}
}

// Each item of a pipeline whose script was not known is sent again, and no other is.
func TestABatchSendsTheTextOfItsScripts(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	o := at(s.Addr())
	o.Timeout = 5 * time.Second
	c := open(t, o)
	ready(t, c)
	users := holdfast.NewTyped(c, holdfast.JSON[user]())
	batch := func(prefix string) {
		t.Helper()
		const n = 300 // two pipelines
		var keys []string
		for i := range n {
			key := fmt.Sprint(prefix, i)
			keys = append(keys, key)
			if i%2 == 0 {
				s.MustDo("SET", key, "no json") // replaced by the script; the others are set
			}
		}
		s.MustDo("CONFIG", "RESETSTAT")
		got, err := users.GetOrLoadMany(ctx, keys, time.Hour, func(_ context.Context, keys []string) (map[string]user, error) {
			m := map[string]user{}
			for _, key := range keys {
				m[key] = user{1, "ours"}
			}
			return m, nil
		})
		if err != nil || len(got) != n {
			t.Errorf("%d values, %v", len(got), err)
		}
		for _, key := range keys {
			if got := s.MustDo("GET", key); got != `{"ID":1,"Name":"ours"}` {
				t.Fatalf("%s: redis holds %q", key, got)
			}
		}
	}
	batch("cold")
	wantScripts(t, s, "a new server: the first pipeline, and the second", 128, 22)
	batch("warm")
	wantScripts(t, s, "the same server", 0, 150)
	s.MustDo("SCRIPT", "FLUSH")
	batch("flushed")
	wantScripts(t, s, "after SCRIPT FLUSH", 150, 150)
}

// A user who may run EVAL, and not EVALSHA, costs one try a connection.
func TestWithoutTheRightToEvalshaTheTextIsSent(t *testing.T) {
	begin(t)
	s := redistest.Start(t)
	for name, rights := range map[string][]string{"refused": {"-evalsha"}, "and SCRIPT": {"-evalsha", "-script"}} {
		s.MustDo(append([]string{"ACL", "SETUSER", "app", "reset", "on", ">secret", "~*", "&*", "+@all"}, rights...)...)
		o := at(s.Addr())
		o.Timeout = 5 * time.Second
		o.Redis.Username, o.Redis.Password = "app", "secret"
		c := open(t, o)
		ready(t, c)
		s.MustDo("CONFIG", "RESETSTAT")
		loadsKeys(t, c, func(key string) string { return s.MustDo("GET", key) }, 4, name)
		wantScripts(t, s, name, 4, 1)
		if st := c.Stats(); st.BreakerOpens != 0 || st.LoadErrors != 0 {
			t.Errorf("%s: %d loads failed, the circuit opened %d times", name, st.LoadErrors, st.BreakerOpens)
		}
	}
}

func TestEachNodeOfAClusterIsSentTheTextOnce(t *testing.T) {
	begin(t)
	r := redistest.StartCluster(t, 3, 0)
	o := inCluster(r.Addrs()...)
	o.Timeout = 5 * time.Second
	c := open(t, o)
	ready(t, c)
	get := func(key string) string { return r.NodeFor(key).MustDo("GET", key) }
	loadsKeys(t, c, get, 60, "warm") // the map is known from here on
	for _, flushed := range []bool{true, false} {
		for _, node := range r.Nodes() {
			if flushed {
				node.MustDo("SCRIPT", "FLUSH")
			}
			node.MustDo("CONFIG", "RESETSTAT")
		}
		loadsKeys(t, c, get, 60, fmt.Sprint("flushed", flushed))
		all := 0
		for _, node := range r.Nodes() {
			eval, evalsha := scriptCalls(t, node)
			if want := map[bool]int{true: 1}[flushed]; eval != want || evalsha == 0 {
				t.Errorf("flushed %v: a node was sent EVAL %d times and EVALSHA %d times", flushed, eval, evalsha)
			}
			all += evalsha
		}
		if all != 60 {
			t.Errorf("EVALSHA %d times for 60 loads", all)
		}
	}

	// A key that has moved already: the owner of the slot answers with ASK, the new one with
	// NOSCRIPT, and the text is sent behind an ASKING, too.
	const key = "{way}k"
	from, to := r.NodeFor(key), r.Nodes()[0]
	if from == to {
		to = r.Nodes()[1]
	}
	users := holdfast.NewTyped(c, holdfast.JSON[user](), holdfast.WithLoad(holdfast.LoadOptions{Lease: -1}))
	replaces := func(key string) {
		t.Helper()
		if _, err := users.GetOrLoad(context.Background(), key, time.Hour, func(context.Context) (user, error) { return user{1, "ours"}, nil }); err != nil {
			t.Error(err)
		}
	}
	before := 0 // a key of the new owner, so that it has run the script before
	for r.NodeFor(fmt.Sprint("other", before)) != to {
		before++
	}
	to.MustDo("SET", fmt.Sprint("other", before), "no json")
	replaces(fmt.Sprint("other", before))
	from.MustDo("SET", key, "no json")
	r.BeginMove(redistest.Slot(key), to).Keys(key)
	to.MustDo("SCRIPT", "FLUSH")
	to.MustDo("CONFIG", "RESETSTAT")
	replaces(key)
	wantScripts(t, to, "in a slot that moves", 1, 1)
	if got, err := to.Asking("GET", key); err != nil || got != `{"ID":1,"Name":"ours"}` {
		t.Errorf("in a slot that moves: %q, %v", got, err)
	}
}
