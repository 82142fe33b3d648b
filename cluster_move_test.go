package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// versioned is a key whose values are numbers that grow, deletes included.
type versioned struct {
	key   string
	last  int64        // of its writer alone; negative for a delete
	floor atomic.Int64 // no read that begins now may return an older version
}

// traffic is a load on a cluster that knows what may be read: writers of keys
// that nobody else writes, readers of all keys, and another client that writes
// keys which the Cache only reads.
type traffic struct {
	own, theirs []*versioned
	writing     sync.RWMutex // held by who must not be written beside
	calls       latencies
	stop        func()
}

const (
	writers    = 4
	ownEach    = 6
	foreign    = 12
	callPause  = time.Millisecond
	writePause = 2 * time.Millisecond
)

// startTraffic begins the load on c. grace is how long after it was acknowledged
// a foreign write may be unseen.
func startTraffic(t *testing.T, r *redistest.Cluster, c *holdfast.Cache, name string, grace time.Duration) *traffic {
	t.Helper()
	ctx := context.Background()
	tr := &traffic{}
	for i := range writers * ownEach {
		tr.own = append(tr.own, &versioned{key: fmt.Sprint(name, " own:", i)})
	}
	for i := range foreign {
		tr.theirs = append(tr.theirs, &versioned{key: fmt.Sprint(name, " theirs:", i)})
	}
	read := func(k *versioned) (version int64, found bool) {
		floor := k.floor.Load()
		var v []byte
		var err error
		tr.calls.time(func() { v, err = c.Get(ctx, k.key) })
		switch {
		case errors.Is(err, holdfast.ErrMiss):
			return 0, false
		case err != nil:
			t.Errorf("get %s: %v", k.key, err)
			return 0, false
		}
		version, err = strconv.ParseInt(string(v), 10, 64)
		if err != nil || version < floor {
			t.Errorf("%s: read version %q after %d", k.key, v, floor)
		}
		return version, true
	}
	stopOwn := load(t, writers, func(g, i int) {
		tr.writing.RLock()
		k := tr.own[g*ownEach+i%ownEach]
		version := max(k.last, -k.last) + 1
		var err error
		if i%4 == 3 {
			k.last = -version
			tr.calls.time(func() { err = c.Delete(ctx, k.key) })
		} else {
			k.last = version
			tr.calls.time(func() { err = c.Set(ctx, k.key, strconv.AppendInt(nil, version, 10), 0) })
		}
		if err != nil {
			t.Errorf("write of %s: %v", k.key, err)
		}
		k.floor.Store(version)
		if got, found := read(k); found && got != k.last {
			t.Errorf("%s: read back %d, wrote %d", k.key, got, k.last)
		}
		tr.writing.RUnlock()
		time.Sleep(writePause)
	})
	stopReads := load(t, writers, func(g, i int) {
		read(tr.own[(g*7+i)%len(tr.own)])
		read(tr.theirs[(g*5+i)%len(tr.theirs)])
		time.Sleep(callPause)
	})
	settled := make([]int64, foreign) // acknowledged a round ago
	began := make([]time.Time, foreign)
	stopForeign := load(t, 1, func(_, i int) {
		k := tr.theirs[i%foreign]
		if time.Since(began[i%foreign]) < grace {
			time.Sleep(writePause)
			return
		}
		tr.writing.RLock()
		defer tr.writing.RUnlock()
		k.floor.Store(settled[i%foreign])
		k.last++
		err := setElsewhere(r, k.key, strconv.FormatInt(k.last, 10))
		if began[i%foreign] = time.Now(); err == nil {
			settled[i%foreign] = k.last
		}
	})
	tr.stop = sync.OnceFunc(func() {
		stopForeign()
		stopOwn()
		stopReads()
	})
	t.Cleanup(tr.stop)
	return tr
}

// setElsewhere is what any other client does: it asks somebody, and goes where it
// is sent. It may be called from any goroutine.
func setElsewhere(r *redistest.Cluster, key, value string) error {
	node, asking := r.Nodes()[home(key)], false
	for range 16 {
		do := node.Do
		if asking {
			do = node.Asking
		}
		_, err := do("SET", key, value)
		var refused redistest.ReplyError
		if err != nil && !errors.As(err, &refused) {
			node = r.Nodes()[(slices.Index(r.Nodes(), node)+1)%len(r.Nodes())]
			continue
		}
		if err == nil {
			return nil
		}
		to := strings.Fields(err.Error())
		if asking = to[0] == "ASK"; len(to) != 3 || !asking && to[0] != "MOVED" {
			return err
		}
		node = r.Nodes()[slices.IndexFunc(r.Nodes(), func(s *redistest.Server) bool { return s.Addr() == to[2] })]
	}
	return errors.New("sent from one to the other")
}

// verify ends the load and holds the Cache and the nodes to what was written.
func (tr *traffic) verify(t *testing.T, r *redistest.Cluster, c *holdfast.Cache, timeout time.Duration) {
	t.Helper()
	tr.stop()
	waitState(t, c, holdfast.Up)
	drain(t, c)
	settled(t, c)
	for _, k := range tr.own {
		want := ""
		if k.last > 0 {
			want = fmt.Sprint(k.last)
		}
		if v, err := c.Get(context.Background(), k.key); err == nil && string(v) != want {
			t.Errorf("get %s: %q, last written %q", k.key, v, want)
		}
		switch got := r.NodeFor(k.key).MustDo("GET", k.key); {
		case want == "" && got != "(nil)":
			t.Errorf("%s was deleted and its owner has %q", k.key, got)
		case want != "" && got != want && (got != "(nil)" || c.Stats().Superseded == 0):
			t.Errorf("%s at its owner is %q, last written %q", k.key, got, want)
		}
	}
	for _, k := range tr.theirs {
		var got, want string
		defer func() {
			if t.Failed() {
				t.Logf("%s is %q, and %q at its owner", k.key, got, want)
			}
		}()
		redistest.WaitFor(t, patience, "the last foreign write of "+k.key, func() bool {
			v, err := c.Get(context.Background(), k.key)
			got, want = fmt.Sprintf("%s, %v", v, err), r.NodeFor(k.key).MustDo("GET", k.key)
			return err == nil && string(v) == want || errors.Is(err, holdfast.ErrMiss) && want == "(nil)"
		})
	}
	tr.calls.within(t, 0.999, timeout+slack())
	// The invalidation that goes with a key's move may overtake a write to its new
	// place. Then nothing is known of what a journaled write replaces, and it is
	// given up: that is safe, and counted.
	if st := c.Stats(); st.Superseded > 3 || st.Rejected != 0 || st.Refused != 0 || st.Downgraded != 0 {
		t.Errorf("writes that nobody disputed: %+v", st)
	}
}

// followsForeignWrites has another client write keys at their owners, now, and
// waits for the Cache to see each.
func followsForeignWrites(t *testing.T, r *redistest.Cluster, c *holdfast.Cache, keys []string) {
	t.Helper()
	for round := range 3 {
		for _, key := range keys {
			want := fmt.Sprint("round ", round)
			r.NodeFor(key).MustDo("SET", key, want)
			waitLookup(t, c, key, holdfast.Remote, want)
			waitLookup(t, c, key, holdfast.Local, want)
		}
	}
}

func TestSlotsMoveUnderTrafficAndNobodyNotices(t *testing.T) {
	begin(t)
	r := redistest.StartCluster(t, 3, 0)
	var d dials
	o := inCluster(r.Addrs()...)
	o.Redis.DialCtxFn = d.dial
	c := open(t, o)
	ready(t, c)
	dialed := map[string]int{}
	for _, addr := range r.Addrs() {
		dialed[addr] = d.to(addr).Attempts()
	}
	tr := startTraffic(t, r, c, "move", time.Second)
	slots := map[int]*redistest.Server{}
	for _, k := range append(slices.Clone(tr.own), tr.theirs...) {
		slots[redistest.Slot(k.key)] = r.Nodes()[home(k.key)]
	}
	if testing.Short() {
		for len(slots) > 8 {
			delete(slots, slices.Min(slices.Collect(maps.Keys(slots))))
		}
	}
	for slot, from := range slots {
		r.MoveSlot(slot, r.Nodes()[(slices.Index(r.Nodes(), from)+1)%3])
	}
	for slot, from := range slots {
		r.MoveSlot(slot, from)
	}
	tr.verify(t, r, c, o.Timeout)
	st := c.Stats()
	t.Logf("%d slots there and back: %d fills discarded, %d journaled, %d timeouts, %d stream losses, slowest call %v",
		len(slots), st.FillsDiscarded, st.Journaled, st.Timeouts, st.StreamLosses, tr.calls.quantile(1))
	for _, node := range r.Nodes() {
		if n := d.to(node.Addr()).Attempts() - dialed[node.Addr()]; n != 0 {
			t.Errorf("%d dials to %s: moving slots is no reason to dial", n, node.Addr())
		}
	}

	// A node that has lost all of its slots is none that anybody needs.
	tr = startTraffic(t, r, c, "evict", time.Second)
	retired := r.Nodes()[2]
	r.Evict(retired, r.Nodes()[0])
	redistest.WaitFor(t, patience, "the retired node to be left", func() bool { return connections(retired) == 0 })
	t.Logf("a node retired: %d journaled, %d superseded, %d fills discarded", c.Stats().Journaled-st.Journaled, c.Stats().Superseded-st.Superseded, c.Stats().FillsDiscarded-st.FillsDiscarded)
	tr.verify(t, r, c, o.Timeout)
	if h := c.Health(); len(h.Shards) != 2 || h.State != holdfast.Up {
		t.Errorf("health without the retired node: %+v", h)
	}
	retired.Kill()
	keys := append(keysAt(2, 5, "after:"), keysAt(0, 5, "after:")...)
	followsForeignWrites(t, r, c, keys)
	if h := c.Health(); h.State != holdfast.Up {
		t.Errorf("health after the retired node is gone: %+v", h)
	}
	for _, node := range r.Nodes()[:2] {
		if n := connections(node); n != 1 {
			t.Errorf("%d connections to %s", n, node.Addr())
		}
	}
}

// On the way a slot is in two places: keys that were moved are at the new owner,
// which serves only those who ask; keys that were not are still at the old one.
func TestASlotThatIsOnItsWay(t *testing.T) {
	ctx := begin(t)
	r := redistest.StartCluster(t, 3, 0)
	o := inCluster(r.Addrs()...)
	c := open(t, o)
	ready(t, c)
	from := r.NodeFor("{way}")
	to := r.Nodes()[(slices.Index(r.Nodes(), from)+1)%3]
	at := func(node *redistest.Server, key string) string {
		t.Helper()
		got, err := node.Asking("GET", key)
		if err != nil {
			t.Errorf("%s at %s: %v", key, node.Addr(), err)
		}
		return got
	}
	for i := range 5 {
		must(t, c.Set(ctx, fmt.Sprint("{way}moved", i), []byte("v"), time.Hour))
		must(t, c.Set(ctx, fmt.Sprint("{way}here", i), []byte("v"), time.Hour))
		waitLookup(t, c, fmt.Sprint("{way}moved", i), holdfast.Local, "v")
	}
	m := r.BeginMove(redistest.Slot("{way}"), to)
	m.Keys("{way}moved0", "{way}moved1", "{way}moved2", "{way}moved3", "{way}moved4")

	// A copy that came by ASK is not tracked by anybody, so it is not kept as
	// fresh: the foreign write that follows is seen at once.
	for range 3 {
		waitLookup(t, c, "{way}moved0", holdfast.Remote, "v")
	}
	if _, err := to.Asking("SET", "{way}moved0", "theirs", "EX", "3600"); err != nil {
		t.Fatal(err)
	}
	waitLookup(t, c, "{way}moved0", holdfast.Remote, "theirs")
	wantGet(t, c, "{way}here0", "v")
	wantGet(t, c, "{way}absent", "")
	got, err := c.GetMany(ctx, "{way}moved1", "{way}here1", "{way}absent", "elsewhere")
	if must(t, err); len(got) != 2 || string(got["{way}moved1"]) != "v" || string(got["{way}here1"]) != "v" {
		t.Errorf("a batch on the way: %q", got)
	}

	must(t, c.Set(ctx, "{way}moved1", []byte("new"), time.Hour))
	must(t, c.Set(ctx, "{way}here1", []byte("new"), time.Hour))
	must(t, c.Set(ctx, "{way}born", []byte("new"), time.Hour))
	must(t, c.SetMany(ctx, map[string][]byte{"{way}moved2": []byte("new"), "{way}here2": []byte("new"), "{way}born2": []byte("new")}, time.Hour))
	must(t, c.Delete(ctx, "{way}moved3", "{way}here3", "{way}absent"))
	for key, where := range map[string]*redistest.Server{
		"{way}moved1": to, "{way}moved2": to, "{way}born": to, "{way}born2": to, "{way}here1": from, "{way}here2": from,
	} {
		if got := at(where, key); got != "new" {
			t.Errorf("%s at %s is %q", key, where.Addr(), got)
		}
		wantGet(t, c, key, "new")
	}
	for _, key := range []string{"{way}moved3", "{way}here3"} {
		if got := at(to, key); got != "(nil)" {
			t.Errorf("%s was deleted and is %q", key, got)
		}
		wantGet(t, c, key, "")
	}
	for key, there := range map[string]bool{"{way}moved4": true, "{way}here4": true, "{way}added": false} {
		if added, err := c.Add(ctx, key, []byte("added"), time.Hour); err != nil || added == there {
			t.Errorf("add of %s on the way: %v, %v", key, added, err)
		}
		if d, err := c.TTL(ctx, key); err != nil || d < 59*time.Minute {
			t.Errorf("ttl of %s on the way: %v, %v", key, d, err)
		}
		if err := c.Touch(ctx, key, 2*time.Hour); err != nil {
			t.Errorf("touch of %s on the way: %v", key, err)
		}
	}
	if st := c.Stats(); st.Journaled != 0 || st.Timeouts != 0 || st.BreakerOpens != 0 || c.Health().State != holdfast.Up {
		t.Errorf("a slot on its way is no outage: %+v, %+v", st, c.Health())
	}
	m.AllKeys()
	m.End()
	for key, want := range map[string]string{
		"{way}moved0": "theirs", "{way}moved1": "new", "{way}here1": "new", "{way}born": "new", "{way}moved3": "", "{way}here0": "v", "{way}added": "added",
	} {
		if want != "" {
			waitLookup(t, c, key, holdfast.Remote, want)
		}
		wantGet(t, c, key, want)
	}
	followsForeignWrites(t, r, c, []string{"{way}moved0", "{way}here0", "{way}born"})
}

// The journal's script goes where the key is, too, and the new place has never
// seen the script.
func TestAReplayFollowsAKeyThatIsOnItsWay(t *testing.T) {
	ctx := begin(t)
	r := redistest.StartCluster(t, 3, 0)
	o := inCluster(r.Addrs()...)
	o.Timeout = max(250*time.Millisecond, budget())
	o.Breaker.Failures = 1 // before the cluster has noticed anything
	c := open(t, o)
	ready(t, c)
	from := r.NodeFor("{way}")
	to := r.Nodes()[(slices.Index(r.Nodes(), from)+1)%3]
	for _, key := range []string{"{way}set", "{way}del", "{way}here", "{way}theirs"} {
		must(t, c.Set(ctx, key, []byte("before"), 0))
	}
	settled(t, c)
	m := r.BeginMove(redistest.Slot("{way}"), to)
	m.Keys("{way}set", "{way}del", "{way}theirs")
	from.Pause()
	for c.Health().State == holdfast.Up {
		c.Get(ctx, fmt.Sprint("{way}absent", time.Now().UnixNano()))
	}
	must(t, c.Set(ctx, "{way}set", []byte("ours"), 0))
	must(t, c.Set(ctx, "{way}here", []byte("ours"), 0))
	must(t, c.Set(ctx, "{way}born", []byte("ours"), 0))
	must(t, c.Set(ctx, "{way}theirs", []byte("ours"), 0))
	must(t, c.Delete(ctx, "{way}del"))
	if _, err := to.Asking("SET", "{way}theirs", "theirs"); err != nil {
		t.Fatal(err)
	}
	from.Resume()
	waitState(t, c, holdfast.Up)
	drain(t, c)
	for key, want := range map[string]string{"{way}del": "(nil)", "{way}born": "ours"} {
		if got, err := to.Asking("GET", key); err != nil || got != want {
			t.Errorf("%s after the replay is %q, %v", key, got, err)
		}
	}
	// The move of a key takes the local copy along, so that nothing is known of
	// what there was: then neither our value nor the one before may stay.
	if got, err := to.Asking("GET", "{way}set"); err != nil || got != "ours" && got != "(nil)" {
		t.Errorf("{way}set after the replay is %q, %v", got, err)
	}
	if got, err := to.Asking("GET", "{way}theirs"); err != nil || got == "ours" || got == "before" {
		t.Errorf("what another wrote is %q after the replay, %v", got, err)
	}
	if got, err := from.Do("GET", "{way}here"); err != nil || got != "ours" {
		t.Errorf("a key that has not moved is %q after the replay, %v; %+v", got, err, c.Stats())
	}
	if st := c.Stats(); st.Downgraded != 0 {
		t.Errorf("a server that does not know the script yet is none without scripts: %+v", st)
	}
	m.AllKeys()
	m.End()
	for key, want := range map[string]string{"{way}del": "", "{way}here": "ours", "{way}born": "ours"} {
		wantGet(t, c, key, want)
	}
}
