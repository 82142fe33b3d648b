package holdfast_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// many are that many keys, and items with a value each.
func many(n int) (keys []string, items map[string][]byte) {
	keys, items = make([]string, n), make(map[string][]byte, n)
	for i := range keys {
		keys[i] = fmt.Sprintf("key:%06d", i)
		items[keys[i]] = []byte(fmt.Sprint("value ", i))
	}
	return keys, items
}

// batchSize is 100,000 keys where the long tests run.
func batchSize(t *testing.T) int {
	if redistest.Full(t) {
		return 100_000
	}
	return 8_000
}

// withinAFew returns options with a budget within which no batch of that size is done, and
// which no pipeline needs, on a machine that is slow now, too. Where the long tests run,
// it is a quarter of what such a batch takes; else the network is slow.
func withinAFew(t *testing.T, s *redistest.Server, batch map[string][]byte) holdfast.Options {
	t.Helper()
	if len(batch) < 100_000 {
		p := redistest.NewProxy(t, s.Addr())
		p.SetLatency(16 * time.Millisecond) // 32 pipelines take 512ms
		o := at(p.Addr())
		o.Timeout = max(400*time.Millisecond, takes(t, o, batch)*3/4)
		return o
	}
	o := at(s.Addr())
	o.Timeout = max(200*time.Millisecond, takes(t, o, batch)/4)
	return o
}

// takes is how long a batch takes, now, that has all the time that it needs.
func takes(t *testing.T, o holdfast.Options, batch map[string][]byte) time.Duration {
	t.Helper()
	o.Timeout = patience
	c := open(t, o)
	ready(t, c)
	began := time.Now()
	must(t, c.SetMany(context.Background(), batch, time.Hour))
	return time.Since(began)
}

// SetMany of 100,000 keys was refused by a third, on a healthy Redis and with default
// options: the budget of one command was that of all of them, what was left when it ended
// went to the journal, and that was full.
func TestABatchOfAnySizeIsServedByAHealthyRedis(t *testing.T) {
	n := batchSize(t)
	ctx := undisturbed(t)
	s := redistest.Start(t)
	keys, items := many(n)
	o := withinAFew(t, s, items)
	writer, reader := open(t, o), open(t, o)
	ready(t, writer)
	ready(t, reader)
	healthy := func(step string, c *holdfast.Cache, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %.300v", step, err)
		}
		st := c.Stats()
		if st.Journaled != 0 || st.Refused != 0 || st.Downgraded != 0 || st.BreakerOpens != 0 {
			t.Fatalf("%s: stats %+v", step, st)
		}
	}
	healthy("SetMany", writer, writer.SetMany(ctx, items, time.Hour))
	if got := s.MustDo(append([]string{"EXISTS"}, keys...)...); got != fmt.Sprint(n) {
		t.Fatalf("after SetMany redis has %s of the keys", got)
	}
	found, err := reader.GetMany(ctx, keys...)
	healthy("GetMany", reader, err)
	if len(found) != n {
		t.Fatalf("GetMany found %d of %d", len(found), n)
	}
	loader := open(t, o)
	ready(t, loader)
	var loads atomic.Int64
	half := append(keys[n/2:n:n], keysNamed("other", n/2)...)
	found, err = loader.GetOrLoadMany(ctx, half, time.Hour, func(_ context.Context, keys []string) (map[string][]byte, error) {
		loads.Add(int64(len(keys)))
		loaded := make(map[string][]byte, len(keys))
		for _, key := range keys {
			loaded[key] = []byte("loaded")
		}
		return loaded, nil
	})
	healthy("GetOrLoadMany", loader, err)
	if len(found) != n || loads.Load() != int64(n/2) {
		t.Fatalf("GetOrLoadMany found %d of %d and loaded %d of %d", len(found), n, loads.Load(), n/2)
	}
	if got := s.MustDo("EXISTS", "other:000000", fmt.Sprintf("other:%06d", n/2-1)); got != "2" {
		t.Fatalf("what was loaded was not stored: %s of 2", got)
	}
	healthy("Delete", writer, writer.Delete(ctx, keys...))
	if got := s.MustDo("EXISTS", keys[0], keys[n/2], keys[n-1]); got != "0" {
		t.Fatalf("%s of 3 deleted keys are there", got)
	}
}

// commandsOf builds n commands.
func commandsOf(b rueidis.Builder, n int, args func(i int) []string) []rueidis.Completed {
	cmds := make([]rueidis.Completed, n)
	for i := range cmds {
		cmds[i] = b.Arbitrary(args(i)...).Build()
	}
	return cmds
}

func keysNamed(prefix string, n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprintf("%s:%06d", prefix, i)
	}
	return keys
}

// The drop-in client's batches are those of the Cache.
func TestABatchOfAnySizeThroughTheClientIsServedByAHealthyRedis(t *testing.T) {
	redistest.Long(t)
	n := batchSize(t)
	ctx := undisturbed(t)
	s := redistest.Start(t)
	keys, items := many(n)
	o := withinAFew(t, s, items)
	c := open(t, o)
	ready(t, c)
	cl := c.Client()
	mset := cl.B().Mset().KeyValue()
	for _, key := range keys {
		mset = mset.KeyValue(key, "v")
	}
	must(t, cl.Do(ctx, mset.Build()).Error())
	other := open(t, o)
	ready(t, other)
	values, err := other.Client().Do(ctx, cl.B().Mget().Key(keys...).Build()).ToArray()
	must(t, err)
	for i, v := range values {
		if got, err := v.ToString(); err != nil || got != "v" {
			t.Fatalf("MGET: %s is %q, %v", keys[i], got, err)
		}
	}
	// What is passed on, and what is not, in one pipeline.
	cmds := commandsOf(cl.B(), n, func(i int) []string {
		if i%2 == 0 {
			return []string{"APPEND", keys[i], "w"}
		}
		return []string{"SET", keys[i], "w"}
	})
	for i, res := range cl.DoMulti(ctx, cmds...) {
		if err := res.Error(); err != nil {
			t.Fatalf("command %d of DoMulti: %v", i, err)
		}
	}
	if deleted, err := cl.Do(ctx, cl.B().Del().Key(keys...).Build()).AsInt64(); err != nil || deleted != int64(n) {
		t.Fatalf("DEL: %d, %v", deleted, err)
	}
	if st := c.Stats(); st.Journaled != 0 || st.Refused != 0 || st.BreakerOpens != 0 {
		t.Errorf("stats %+v", st)
	}
}

func TestABatchOfAnySizeOfATypedIsServedByAHealthyRedis(t *testing.T) {
	redistest.Long(t)
	const n = 8_000
	ctx := undisturbed(t)
	s := redistest.Start(t)
	_, plain := many(n)
	c := open(t, withinAFew(t, s, plain))
	ready(t, c)
	typed := holdfast.NewTyped(c, holdfast.JSON[int](), holdfast.WithPrefix("n:"))
	items, keys := map[string]int{}, keysNamed("k", n)
	for i, key := range keys {
		items[key] = i
	}
	must(t, typed.SetMany(ctx, items, time.Hour))
	found, err := typed.GetMany(ctx, keys...)
	must(t, err)
	if len(found) != n || c.Stats().Journaled != 0 {
		t.Errorf("found %d of %d; stats %+v", len(found), n, c.Stats())
	}
}

// narrow is a network that carries so many bytes a second.
type narrow int

func (n narrow) dial(ctx context.Context, addr string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
	conn, err := d.DialContext(ctx, "tcp", addr)
	return narrowConn{conn, n}, err
}

type narrowConn struct {
	net.Conn
	bytes narrow
}

func (c narrowConn) pass(n int) {
	wait(context.Background(), time.Duration(n)*time.Second/time.Duration(c.bytes))
}

func (c narrowConn) Write(p []byte) (int, error) {
	c.pass(len(p))
	return c.Conn.Write(p)
}

func (c narrowConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.pass(n)
	return n, err
}

// A pipeline of large values takes longer than one of small ones: its size is bounded in
// bytes, too.
func TestABatchOfLargeValuesIsServedByAHealthyRedis(t *testing.T) {
	redistest.Long(t)
	const n, size = 120, 100 << 10 // 600ms
	ctx := undisturbed(t)
	s := redistest.Start(t)
	keys, items := many(n)
	for key := range items {
		items[key] = make([]byte, size)
	}
	o := at(s.Addr())
	o.Redis.DialCtxFn = narrow(20 << 20).dial
	o.Timeout = max(500*time.Millisecond, takes(t, o, items)*3/4)
	writer, reader := open(t, o), open(t, o)
	ready(t, writer)
	ready(t, reader)
	must(t, writer.SetMany(ctx, items, time.Hour))
	if st := writer.Stats(); st.Journaled != 0 {
		t.Errorf("of %d sets %d were journaled", n, st.Journaled)
	}
	found, err := reader.GetMany(ctx, keys...)
	must(t, err)
	if len(found) != n {
		t.Errorf("found %d of %d", len(found), n)
	}
}

// The budget is each pipeline's, and the caller's own context is the whole's.
func TestABatchEndsWithItsCallersContext(t *testing.T) {
	ctx := begin(t)
	_, p := behind(t)
	o := at(p.Addr())
	o.Timeout = 10 * time.Second
	c := open(t, o)
	ready(t, c)
	p.SetLatency(100 * time.Millisecond)
	keys, _ := many(20_000) // 79 pipelines
	ctx, cancel := context.WithTimeout(ctx, 250*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err := c.GetMany(ctx, keys...)
	if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took > 4*time.Second+slack() {
		t.Errorf("%v after %v", err, took)
	}
}

// A pipeline that got no answer in time is the last that is sent: a Redis that is not
// there costs a batch one budget and not one for each pipeline.
func TestABatchWaitsForOnePipelineOfARedisThatHangs(t *testing.T) {
	ctx := begin(t)
	_, p := behind(t)
	o := at(p.Addr())
	o.Timeout = 200 * time.Millisecond
	c := open(t, o)
	ready(t, c)
	keys, _ := many(10_000)
	p.SetMode(redistest.Hang)
	began := time.Now()
	found, err := c.GetMany(ctx, keys...)
	if took := time.Since(began); err != nil || len(found) != 0 || took > 2*o.Timeout+3*slack() {
		t.Errorf("%d found, %v, after %v", len(found), err, took)
	}
}

// While a large batch is under way, the others are served as if it were not.
func TestOthersAreServedBesideALargeBatch(t *testing.T) {
	redistest.Long(t)
	ctx := begin(t)
	s := redistest.Start(t)
	c := open(t, leisurely(s.Addr())) // so that a stall of the machine is no outage
	ready(t, c)
	_, items := many(100_000)
	stop := make(chan struct{})
	done := make(chan error)
	go func() {
		var err error
		for err == nil {
			select {
			case <-stop:
				done <- nil
				return
			default:
				err = c.SetMany(ctx, items, time.Hour)
			}
		}
		done <- err
	}()
	var l latencies
	for i := range 2_000 {
		key := fmt.Sprint("other ", i)
		l.time(func() { must(t, c.Set(ctx, key, []byte("v"), 0)) })
		l.time(func() { wantGet(t, c, key, "v") })
	}
	close(stop)
	if err := <-done; err != nil {
		t.Errorf("the batch: %.300v", err)
	}
	if st := c.Stats(); st.Journaled != 0 || st.BreakerOpens != 0 {
		t.Errorf("stats %+v", st)
	}
	t.Logf("the others' calls: median %v, 99%% %v, max %v", l.quantile(0.5), l.quantile(0.99), l.quantile(1))
	l.within(t, 0.9, 50*time.Millisecond)
}

// The shards of a cluster are asked at once, each with its own pipelines, and one that
// hangs costs its own keys and one budget.
func TestALargeBatchInAClusterIsServedByTheShardsThatAnswer(t *testing.T) {
	beside(t)
	redistest.Long(t)
	const n = 30_000
	ctx := begin(t)
	r := redistest.StartCluster(t, 3, 0)
	o := inCluster(r.Addrs()...)
	o.Timeout = time.Second
	o.Local.MaxTTL = time.Millisecond
	c := open(t, o)
	ready(t, c)
	keys, items := many(n)
	must(t, c.SetMany(ctx, items, time.Hour))
	found, err := c.GetMany(ctx, keys...)
	if st := c.Stats(); err != nil || len(found) != n || st.Journaled != 0 {
		t.Fatalf("found %d of %d, %v; stats %+v", len(found), n, err, st)
	}
	must(t, c.Invalidate(keys...)) // no copy stands in
	away := 0
	for _, key := range keys {
		if redistest.Slot(key) < 16384/3 {
			away++
		}
	}
	r.Nodes()[0].Pause()
	defer r.Nodes()[0].Resume()
	began := time.Now()
	found, err = c.GetMany(ctx, keys...)
	if took := time.Since(began); err != nil || len(found) < n-away-5 || took > 5*o.Timeout+slack() {
		t.Errorf("found %d of %d, %v, in %v", len(found), n-away, err, took)
	}
}

// An error of 30,592 keys was 2.3 MB of text.
func TestTheErrorOfABatchIsShortAndLeadsToEachKey(t *testing.T) {
	ctx := begin(t)
	const n, room = 5_000, 100
	o := at(redistest.FreeAddr(t))
	o.Journal.MaxKeys = room
	c := open(t, o)
	items := make(map[string][]byte, n)
	long := strings.Repeat("k", 10_000)
	for i := range n {
		items[fmt.Sprint(i, long)] = []byte("v")
	}
	check := func(err error, want int) {
		t.Helper()
		if !errors.Is(err, holdfast.ErrJournalFull) {
			t.Fatalf("it is no ErrJournalFull: %.300v", err)
		}
		text := err.Error()
		if len(text) > 1<<11 || !strings.Contains(text, fmt.Sprint(want)) {
			t.Errorf("%d bytes of text: %.400s", len(text), text)
		}
		var batch *holdfast.BatchError
		if !errors.As(err, &batch) {
			t.Fatalf("it is a %T", err)
		}
		keys := map[string]bool{}
		for _, err := range batch.Unwrap() {
			var one *holdfast.Error
			if !errors.As(err, &one) || !errors.Is(one, holdfast.ErrJournalFull) {
				t.Fatalf("a member is %T", err)
			}
			keys[one.Key] = true
		}
		if len(keys) != want {
			t.Errorf("%d keys are named, not %d", len(keys), want)
		}
		if one := new(holdfast.Error); !errors.As(err, &one) || one.Op == "" {
			t.Error("no member is found by errors.As")
		}
	}
	check(c.SetMany(ctx, items, 0), n-room)
	typed := holdfast.NewTyped(c, holdfast.JSON[int]())
	numbers := make(map[string]int, n)
	for i := range n {
		numbers[fmt.Sprint("n", i, long)] = i
	}
	check(typed.SetMany(ctx, numbers, 0), n)
}

// Each key may have an error of its own, and each in other words.
func TestABatchThatHasAnErrorForEachKeyTellsOfThemInShort(t *testing.T) {
	const n = 20_000
	ctx := begin(t)
	s := redistest.Start(t)
	o := at(s.Addr())
	o.Timeout = patience
	c := open(t, o)
	ready(t, c)
	keys := keysNamed("list", n)
	cmds := commandsOf(c.Client().B(), n, func(i int) []string { return []string{"RPUSH", keys[i], "x"} })
	for _, res := range c.Client().DoMulti(ctx, cmds...) {
		must(t, res.Error())
	}
	_, err := c.GetMany(ctx, keys...)
	var batch *holdfast.BatchError
	if !errors.As(err, &batch) || len(batch.Unwrap()) != n || len(err.Error()) > 1<<11 {
		t.Errorf("GetMany: %.300v", err)
	}
	_, err = c.GetOrLoadMany(ctx, keys, 0, func(context.Context, []string) (map[string][]byte, error) {
		return nil, errors.New("away")
	})
	if err == nil || len(err.Error()) > 1<<11 {
		t.Errorf("GetOrLoadMany: %.300v", err)
	}
}
