package goredis_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/goredis"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/go-redis/v9"
)

// slack is what a loaded machine may add to a call.
const slack = 300 * time.Millisecond

// timed is how long f took, and its error.
func timed(f func() error) (time.Duration, error) {
	began := time.Now()
	err := f()
	return time.Since(began), err
}

// others are commands of which each goes another way to Redis.
func others(ctx context.Context, rdb *redis.Client) map[string]func() error {
	return map[string]func() error{
		"INCR":     func() error { return rdb.Incr(ctx, "n").Err() },
		"HGETALL":  func() error { return rdb.HGetAll(ctx, "h").Err() },
		"PING":     func() error { return rdb.Ping(ctx).Err() },
		"SETNX":    func() error { return rdb.SetNX(ctx, "nx", 1, 0).Err() },
		"EVAL":     func() error { return rdb.Eval(ctx, "return 1", []string{"k"}).Err() },
		"BLPOP":    func() error { return rdb.BLPop(ctx, time.Second, "list").Err() },
		"nonesuch": func() error { return rdb.Do(ctx, "nonesuch", "k").Err() },
		"a pipeline": func() error {
			_, err := rdb.Pipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "n"); p.HGetAll(ctx, "h"); return nil })
			return err
		},
		"a transaction": func() error {
			_, err := rdb.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Set(ctx, "t", 1, 0); p.Incr(ctx, "n"); return nil })
			return err
		},
		"WATCH": func() error {
			return rdb.Watch(ctx, func(tx *redis.Tx) error { return tx.Get(ctx, "k").Err() }, "k")
		},
		"a connection of its own": func() error {
			conn := rdb.Conn()
			defer conn.Close()
			return conn.Ping(ctx).Err()
		},
	}
}

func TestAKilledRedisLeavesTheProgramRunning(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	rdb, c := attached(t, at(s.Addr()))
	must(t, rdb.Set(ctx, "k", "before", time.Hour).Err())
	must(t, rdb.Set(ctx, "gone", "before", 0).Err())
	must(t, rdb.Incr(ctx, "n").Err())
	for _, key := range []string{"k", "gone"} {
		must(t, rdb.Get(ctx, key).Err())
	}

	s.Kill()
	waitState(t, c, holdfast.Down)

	for what, f := range others(ctx, rdb) {
		took, err := timed(f)
		if !errors.Is(err, holdfast.ErrUnavailable) || took > slack {
			t.Errorf("%s: %v after %v", what, err, took)
		}
	}
	if v, err := rdb.Get(ctx, "k").Result(); v != "before" || err != nil {
		t.Errorf("GET of what was read before: %q, %v", v, err)
	}
	if err := rdb.Get(ctx, "never").Err(); !errors.Is(err, redis.Nil) {
		t.Errorf("GET of what nobody knows: %v", err)
	}
	if v, err := rdb.Set(ctx, "k", "meanwhile", time.Hour).Result(); v != "OK" || err != nil {
		t.Errorf("SET: %q, %v", v, err)
	}
	if n, err := rdb.Del(ctx, "gone").Result(); n != 1 || err != nil {
		t.Errorf("DEL: %d, %v", n, err)
	}
	if v, err := rdb.MGet(ctx, "k", "gone").Result(); err != nil || fmt.Sprint(v) != "[meanwhile <nil>]" {
		t.Errorf("MGET: %v, %v", v, err)
	}
	if d, err := rdb.TTL(ctx, "k").Result(); err != nil || d < 59*time.Minute {
		t.Errorf("TTL: %v, %v", d, err)
	}
	cmds, err := rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		p.Set(ctx, "in", "pipeline", 0)
		p.Incr(ctx, "n")
		p.Get(ctx, "in")
		return nil
	})
	if !errors.Is(err, holdfast.ErrUnavailable) || cmds[0].Err() != nil || !errors.Is(cmds[1].Err(), holdfast.ErrUnavailable) ||
		cmds[2].Err() != nil || cmds[2].(*redis.StringCmd).Val() != "pipeline" {
		t.Errorf("a pipeline of both kinds: %v, %v", err, cmds)
	}

	s.Restart()
	redistest.WaitFor(t, patience, "INCR works", func() bool { return rdb.Incr(ctx, "n").Err() == nil })
	must(t, c.Drain(ctx))
	for key, want := range map[string]string{"k": "meanwhile", "gone": "(nil)", "in": "pipeline"} {
		if got := s.MustDo("GET", key); got != want {
			t.Errorf("redis has %q under %s, want %q", got, key, want)
		}
	}
}

// load makes the calls from n goroutines until stop is called, which returns the slowest.
// Calls that fail at once are not to keep the machine from those that do not.
func load(n int, calls map[string]func() error) (stop func() (string, time.Duration)) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var slowest time.Duration
	var which string
	done := make(chan struct{})
	for range n {
		wg.Go(func() {
			pace := time.NewTicker(2 * time.Millisecond)
			defer pace.Stop()
			for {
				for what, f := range calls {
					select {
					case <-done:
						return
					case <-pace.C:
					}
					took, err := timed(f)
					mu.Lock()
					if took > slowest {
						slowest, which = took, fmt.Sprintf("%s: %v", what, err)
					}
					mu.Unlock()
				}
			}
		})
	}
	return func() (string, time.Duration) {
		close(done)
		wg.Wait()
		return which, slowest
	}
}

func TestNoCallWaitsLongerThanItsBudget(t *testing.T) {
	for _, what := range []string{"killed", "stopped"} {
		t.Run(what, func(t *testing.T) {
			ctx := begin(t)
			s := redistest.Start(t)
			o := at(s.Addr())
			rdb, c := attached(t, o)
			calls := others(ctx, rdb)
			delete(calls, "BLPOP") // it has a timeout of its own
			calls["GET"] = func() error { return rdb.Get(ctx, "k").Err() }
			calls["SET"] = func() error { return rdb.Set(ctx, "k", "v", 0).Err() }
			stop := load(16, calls)
			redistest.WaitFor(t, patience, "traffic", func() bool { return rdb.PoolStats().Hits > 100 })
			if what == "killed" {
				s.Kill()
			} else {
				s.Pause()
			}
			waitState(t, c, holdfast.Down)
			if what == "killed" {
				s.Restart()
			} else {
				s.Resume()
			}
			waitState(t, c, holdfast.Up)
			if which, slowest := stop(); slowest > c.Options().Timeout+slack {
				t.Errorf("the slowest call took %v: %s", slowest, which)
			}
			redistest.WaitFor(t, patience, "INCR works", func() bool { return rdb.Incr(ctx, "n").Err() == nil })
		})
	}
}

// A program that asks nothing of the cache has to notice, too.
func TestAHungRedisIsNoticedWithoutTrafficOfTheCaches(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	rdb, c := attached(t, at(s.Addr()))
	must(t, rdb.Incr(ctx, "n").Err())
	s.Pause()
	defer s.Resume()
	redistest.WaitFor(t, patience, "INCR fails at once", func() bool {
		took, err := timed(func() error { return rdb.Incr(ctx, "n").Err() })
		if took > c.Options().Timeout+slack {
			t.Errorf("a call took %v", took)
		}
		return errors.Is(err, holdfast.ErrUnavailable) && c.Health().State == holdfast.Down
	})
}

func TestNothingIsDialledWhileRedisIsAway(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	p := redistest.NewProxy(t, s.Addr())
	rdb, c := attached(t, at(p.Addr()))
	must(t, rdb.Incr(ctx, "n").Err())
	p.SetMode(redistest.Cut)
	waitState(t, c, holdfast.Down)
	before := c.Stats().DialAttempts
	accepted := p.Accepted()
	for range 2000 {
		_ = rdb.Incr(ctx, "n").Err()
		_ = rdb.Subscribe(ctx, "c").Close()
	}
	// The cache itself dials meanwhile, and says how often.
	if mine, all := c.Stats().DialAttempts-before, p.Accepted()-accepted; all > int(mine)+1 {
		t.Errorf("%d dials, of which %d are the cache's", all, mine)
	}
	p.SetMode(redistest.Pass)
	redistest.WaitFor(t, patience, "INCR works", func() bool { return rdb.Incr(ctx, "n").Err() == nil })
}

func TestACommandRightAfterNewDoesNotFail(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	for range 20 {
		o := at(s.Addr())
		o.Timeout = 10 * time.Second // a slow machine's first connect
		c := open(t, o)
		rdb := plain(t, &redis.Options{Addr: s.Addr()})
		must(t, goredis.Attach(rdb, c))
		must(t, rdb.Incr(ctx, "n").Err())
	}
}

func TestTheLimiterFailsAtOnceWhileRedisIsAway(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	c := open(t, at(s.Addr()))
	ready(t, c)
	rdb := plain(t, &redis.Options{Addr: s.Addr(), Limiter: goredis.NewLimiter(c)})
	must(t, rdb.Set(ctx, "k", "v", 0).Err())
	s.Kill()
	waitState(t, c, holdfast.Down)
	took, err := timed(func() error { return rdb.Get(ctx, "k").Err() })
	if !errors.Is(err, holdfast.ErrUnavailable) || took > slack {
		t.Errorf("%v after %v", err, took)
	}
	s.Restart()
	redistest.WaitFor(t, patience, "SET works", func() bool { return rdb.Set(ctx, "k", "v", 0).Err() == nil })
}

// Between the end of an outage and the end of the replay a command finds its key as it was
// written here.
func TestWhatIsNotReplayedYetIsBeforeTheCommand(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	o := at(s.Addr())
	o.Journal.MaxRate = 2
	rdb, c := attached(t, o)
	s.Kill()
	waitState(t, c, holdfast.Down)
	const n = 40
	for i := range n {
		must(t, rdb.Set(ctx, fmt.Sprint("k", i), "10", 0).Err())
	}
	s.Restart()
	waitState(t, c, holdfast.Up)
	patient, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if journaled := c.Health().JournalKeys; journaled < 10 {
		t.Fatalf("%d keys are in the journal", journaled)
	}
	for i := range n {
		key := fmt.Sprint("k", i)
		redistest.WaitFor(t, patience, "INCR "+key, func() bool {
			cmd := redis.NewIntCmd(patient, "incr", key)
			cmds := []redis.Cmder{cmd}
			var err error
			switch i % 3 {
			case 0:
				err = rdb.Process(patient, cmd)
			case 1:
				cmds, err = rdb.Pipelined(patient, func(p redis.Pipeliner) error { return p.Process(patient, cmd) })
			default:
				cmds, err = rdb.TxPipelined(patient, func(p redis.Pipeliner) error { return p.Process(patient, cmd) })
			}
			if err == nil && cmds[0].(*redis.IntCmd).Val() != 11 {
				t.Errorf("%v", cmds)
			}
			return err == nil
		})
		if v, err := rdb.Get(ctx, key).Result(); v != "11" || err != nil {
			t.Errorf("%s: %q, %v", key, v, err)
		}
	}
}

// Each goroutine has a key of its own, so it knows what is there: what a call returned.
func TestNothingOlderIsReadAcrossOutages(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	p := redistest.NewProxy(t, s.Addr())
	rdb, c := attached(t, at(p.Addr()))
	const n = 8
	var wg sync.WaitGroup
	done := make(chan struct{})
	stop := sync.OnceFunc(func() {
		close(done)
		wg.Wait()
	})
	defer stop()
	for g := range n {
		wg.Go(func() {
			pace := time.NewTicker(time.Millisecond)
			defer pace.Stop()
			key, round := fmt.Sprint("k", g), 0
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				case <-pace.C:
				}
				value := int64(i * 1000)
				if err := rdb.Set(ctx, key, value, 0).Err(); err != nil {
					t.Errorf("SET %s: %v", key, err)
					return
				}
				cmds, err := rdb.Pipelined(ctx, func(p redis.Pipeliner) error { p.Get(ctx, key); p.Incr(ctx, key); return nil })
				if v := cmds[0].(*redis.StringCmd).Val(); v != fmt.Sprint(value) && cmds[0].Err() == nil {
					t.Errorf("%s: %s, %v after SET of %d", key, v, cmds[0].Err(), value)
				}
				if err != nil {
					// It may have run, or may run yet: nobody can say what is there.
					round++
					key = fmt.Sprint("k", g, ":", round)
					continue
				}
				value = cmds[1].(*redis.IntCmd).Val()
				if v, err := rdb.Get(ctx, key).Result(); err == nil && v != fmt.Sprint(value) || err != nil && !errors.Is(err, redis.Nil) {
					t.Errorf("%s: %s, %v after INCR to %d", key, v, err, value)
				}
			}
		})
	}
	for range 4 {
		p.SetMode(redistest.Cut)
		waitState(t, c, holdfast.Down)
		p.SetMode(redistest.Pass)
		waitState(t, c, holdfast.Up)
		must(t, c.Drain(ctx))
	}
	stop()
}

func TestASentinelsMasterIsFollowed(t *testing.T) {
	redistest.Long(t)
	ctx := begin(t)
	r := redistest.StartSentinel(t, 1)
	o := at("")
	o.Redis.InitAddress = r.Addrs()
	o.Redis.Sentinel.MasterSet = redistest.MasterSet
	c := open(t, o)
	rdb := redis.NewFailoverClient(&redis.FailoverOptions{MasterName: redistest.MasterSet, SentinelAddrs: r.Addrs()})
	defer rdb.Close()
	must(t, goredis.Attach(rdb, c))
	ready(t, c)
	redistest.WaitFor(t, patience, "INCR works", func() bool { return rdb.Incr(ctx, "n").Err() == nil })
	must(t, rdb.Set(ctx, "k", "before", 0).Err())
	r.Master().Kill()
	waitState(t, c, holdfast.Down)
	took, err := timed(func() error { return rdb.Incr(ctx, "n").Err() })
	if !errors.Is(err, holdfast.ErrUnavailable) || took > slack {
		t.Errorf("INCR: %v after %v", err, took)
	}
	must(t, rdb.Set(ctx, "k", "meanwhile", 0).Err())
	waitState(t, c, holdfast.Up)
	redistest.WaitFor(t, patience, "INCR works", func() bool { return rdb.Incr(ctx, "n").Err() == nil })
	must(t, c.Drain(ctx))
	if got := r.Master().MustDo("GET", "k"); got != "meanwhile" {
		t.Errorf("the new master has %q", got)
	}
}

// The budget of a call was that of a pipeline of any size. The latency makes each pipeline here take
// longer than one budget in sum, and each of its parts far less, on a machine of any speed.
func TestAPipelineOfAnySizeIsServedByAHealthyRedis(t *testing.T) {
	const n, latency = 70 * 256, 45 * time.Millisecond // parts of 256 commands
	ctx := begin(t)
	s := redistest.Start(t)
	s.MustDo("EVAL", "for i = 0, ARGV[1] - 1 do redis.call('SET', 'GET:' .. i, 'v') end", "0", fmt.Sprint(n))
	proxy := redistest.NewProxy(t, s.Addr())
	o := at(proxy.Addr())
	o.Timeout = 3 * time.Second
	rdb, c := attached(t, o)
	proxy.SetLatency(latency)
	var all sync.WaitGroup
	for name, fill := range map[string]func(redis.Pipeliner, string){
		"SET":    func(p redis.Pipeliner, key string) { p.Set(ctx, key, "v", 0) },
		"GET":    func(p redis.Pipeliner, key string) { p.Get(ctx, key) },
		"APPEND": func(p redis.Pipeliner, key string) { p.Append(ctx, key, "v") },
		"both":   func(p redis.Pipeliner, key string) { p.Set(ctx, key, "v", 0); p.Incr(ctx, "n") },
	} {
		all.Go(func() {
			p := rdb.Pipeline()
			for i := 0; p.Len() < n; i++ {
				fill(p, fmt.Sprint(name, ":", i))
			}
			began := time.Now()
			cmds, err := p.Exec(ctx)
			if err != nil {
				t.Errorf("%s: %.300v", name, err)
			}
			if took := time.Since(began); took < o.Timeout {
				t.Errorf("%s took %v, which is within one budget", name, took)
			}
			for i, cmd := range cmds {
				if err := cmd.Err(); err != nil {
					t.Errorf("%s: command %d: %v", name, i, err)
					break
				}
			}
		})
	}
	all.Wait()
	if got := s.MustDo("GET", "n"); got != fmt.Sprint(n/2) {
		t.Errorf("of %d INCR %s ran", n/2, got)
	}
	if st := c.Stats(); st.Journaled != 0 || st.BreakerOpens != 0 {
		t.Errorf("stats %+v", st)
	}
}

func TestAPipelineWaitsForOnePartOfARedisThatHangs(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	p := redistest.NewProxy(t, s.Addr())
	o := at(p.Addr())
	o.Timeout = 200 * time.Millisecond
	rdb, _ := attached(t, o)
	must(t, rdb.Incr(ctx, "n").Err())
	p.SetMode(redistest.Hang)
	pipe := rdb.Pipeline()
	for range 10_000 {
		pipe.Incr(ctx, "n")
	}
	began := time.Now()
	cmds, err := pipe.Exec(ctx)
	if took := time.Since(began); !errors.Is(err, holdfast.ErrUnavailable) || took > 5*o.Timeout {
		t.Errorf("%v after %v", err, took)
	}
	for i, cmd := range cmds {
		if !errors.Is(cmd.Err(), holdfast.ErrUnavailable) {
			t.Fatalf("command %d: %v", i, cmd.Err())
		}
	}
}

// While a script ran everything got ErrUnavailable, also what would have ended it.
func TestSCRIPTKILLReachesAServerThatIsBusy(t *testing.T) {
	for _, db := range []int{0, 3} {
		for what, kill := range map[string]func(ctx context.Context, rdb *redis.Client) error{
			"the client": func(ctx context.Context, rdb *redis.Client) error { return rdb.ScriptKill(ctx).Err() },
			"Do":         func(ctx context.Context, rdb *redis.Client) error { return rdb.Do(ctx, "SCRIPT", "kill").Err() },
			"a Conn":     func(ctx context.Context, rdb *redis.Client) error { return rdb.Conn().ScriptKill(ctx).Err() },
			"a pipeline": func(ctx context.Context, rdb *redis.Client) error {
				_, err := rdb.Pipelined(ctx, scriptKill(ctx))
				return err
			},
			"FUNCTION KILL": func(ctx context.Context, rdb *redis.Client) error { return rdb.FunctionKill(ctx).Err() },
		} {
			t.Run(fmt.Sprint(what, ", database ", db), func(t *testing.T) {
				ctx := begin(t)
				s := redistest.Start(t, "--busy-reply-threshold", "50")
				o := calm(s.Addr())
				o.Redis.SelectDB = db
				rdb, c := attached(t, o)
				must(t, rdb.Set(ctx, "k", "v", 0).Err())
				done := make(chan struct{})
				spin := []string{"EVAL", "while true do end", "0"}
				if what == "FUNCTION KILL" {
					s.MustDo("FUNCTION", "LOAD", "#!lua name=l\nredis.register_function{function_name='spin', callback=function() while true do end end, flags={'no-writes'}}")
					spin = []string{"FCALL", "spin", "0"}
				}
				go func() {
					defer close(done)
					_, _ = s.Do(spin...)
				}()
				defer func() { <-done }()
				redistest.WaitFor(t, patience, "busy", func() bool {
					h := c.Health()
					return h.State == holdfast.Down && h.LastError != nil && strings.Contains(h.LastError.Error(), "BUSY")
				})
				if err := rdb.Incr(ctx, "n").Err(); !errors.Is(err, holdfast.ErrUnavailable) {
					t.Errorf("incr: %v", err)
				}
				if db == 0 || what == "FUNCTION KILL" {
					stats, err := rdb.FunctionStats(ctx).Result()
					if what == "FUNCTION KILL" && db == 0 && (err != nil || !stats.Running()) {
						t.Errorf("function stats: %+v, %v", stats, err)
					}
					if errors.Is(err, holdfast.ErrUnavailable) {
						t.Errorf("function stats: %v", err)
					}
				}
				must(t, kill(ctx, rdb))
				<-done
				redistest.WaitFor(t, patience, "an end", func() bool { return rdb.Incr(ctx, "n").Err() == nil })
			})
		}
	}
}

func scriptKill(ctx context.Context) func(redis.Pipeliner) error {
	return func(p redis.Pipeliner) error { p.ScriptKill(ctx); return nil }
}
