package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// endless runs a script at the server until it is killed, and returns once the server
// answers BUSY. The script writes nothing, so that it can be killed.
func endless(t *testing.T, s *redistest.Server) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = s.Do("EVAL", "while true do end", "0") // killed, or late
	}()
	t.Cleanup(func() {
		_, _ = s.Do("SCRIPT", "KILL")
		<-done
	})
	redistest.WaitFor(t, patience, "the server to be busy", func() bool {
		_, err := s.Do("GET", "k")
		return err != nil && contains(err.Error(), "BUSY")
	})
}

func isBusy(c *holdfast.Cache) func() bool {
	return func() bool {
		h := c.Health()
		return h.State == holdfast.Down && h.LastError != nil && contains(h.LastError.Error(), "BUSY")
	}
}

// A script runs and runs. Memory and journal answer, SCRIPT KILL and what else Redis
// allows reaches it by the connection there is, which is kept, and all is well at once
// when the script has ended.
func TestSCRIPTKILLReachesAServerThatIsBusy(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t, "--busy-reply-threshold", "50")
	p := redistest.NewProxy(t, s.Addr())
	o := tracked(p.Addr(), holdfast.TrackReads)
	o.Breaker.MaxBackoff = 200 * time.Millisecond
	c := open(t, o)
	ready(t, c)
	s.MustDo("SET", "k", "one")
	held(t, c, "k", "one")
	client := c.Client()
	own, release := client.Dedicate()
	defer release()
	must(t, own.Do(ctx, own.B().Ping().Build()).Error())
	connections := p.Accepted()

	endless(t, s)
	stop := load(t, 4, func(g, i int) {
		noError(t, c.Set(ctx, fmt.Sprintf("w%d", g), []byte("kept"), 0))
		v, err := c.GetOrLoad(ctx, fmt.Sprintf("load%d.%d", g, i), 0, func(context.Context) ([]byte, error) { return []byte("v"), nil })
		if err != nil || string(v) != "v" {
			t.Errorf("getorload: %q, %v", v, err)
		}
		time.Sleep(time.Millisecond)
	})
	defer stop()
	redistest.WaitFor(t, patience, "busy", isBusy(c))
	wantGet(t, c, "k", "one")
	redistest.WaitFor(t, patience, "the first write of w0", func() bool {
		v, err := c.Get(ctx, "w0")
		return err == nil && string(v) == "kept"
	})
	b := client.B()
	if err := client.Do(ctx, b.Incr().Key("n").Build()).Error(); !errors.Is(err, holdfast.ErrUnavailable) {
		t.Errorf("incr: %v", err)
	}
	// What runs is no function, so to these Redis says BUSY, too; but it is Redis that does.
	for name, err := range map[string]error{
		"function stats": client.Do(ctx, b.FunctionStats().Build()).Error(),
		"function kill":  client.Do(ctx, b.FunctionKill().Build()).Error(),
		"of its own":     own.Do(ctx, own.B().FunctionStats().Build()).Error(),
	} {
		if !contains(fmt.Sprint(err), "BUSY") || errors.Is(err, holdfast.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	before := c.Stats().DialAttempts
	for range 5 {
		began := time.Now()
		redistest.WaitFor(t, patience, "another attempt", func() bool {
			return errors.Is(c.Check(ctx), holdfast.ErrUnavailable) && time.Since(began) > o.Breaker.MaxBackoff
		})
	}
	if n := c.Stats().DialAttempts; n != before {
		t.Errorf("%d dials while it was busy", n-before)
	}
	must(t, client.Do(ctx, b.ScriptKill().Build()).Error())
	start := time.Now()
	waitState(t, c, holdfast.Up)
	if took := time.Since(start); took > o.Breaker.MaxBackoff+slack() {
		t.Errorf("it is up %v after the script's end", took)
	}
	stop()
	drain(t, c)
	if got := s.MustDo("GET", "w0"); got != "kept" {
		t.Errorf("w0 is %s at redis", got)
	}
	if n := p.Accepted(); n != connections {
		t.Errorf("%d connections, %d before: none was lost", n, connections)
	}
	must(t, own.Do(ctx, own.B().Ping().Build()).Error())
}

// The connection was lost before the server said that it was busy, or there never was
// one: a busy server lets nobody choose a database, nor ask it who it is.
func TestSCRIPTKILLReachesABusyServerThatWasNeverReached(t *testing.T) {
	beside(t)
	for _, db := range []int{0, 3} {
		t.Run(fmt.Sprint("database ", db), func(t *testing.T) {
			ctx := begin(t)
			s := redistest.Start(t, "--busy-reply-threshold", "50")
			endless(t, s)
			o := tracked(s.Addr(), holdfast.TrackReads)
			o.Redis.SelectDB = db
			o.Breaker.MaxBackoff = 200 * time.Millisecond
			c := open(t, o)
			must(t, c.Set(ctx, "k", []byte("kept"), 0))
			client := c.Client()
			redistest.WaitFor(t, patience, "the script to be killed", func() bool {
				err := client.Do(ctx, client.B().ScriptKill().Build()).Error()
				if err != nil && !errors.Is(err, holdfast.ErrUnavailable) {
					t.Fatalf("script kill: %v", err)
				}
				return err == nil
			})
			ready(t, c)
			drain(t, c)
			if got := s.MustDo("GET", "k"); (got == "kept") != (db == 0) {
				t.Errorf("k is %s in database 0", got)
			}
			if h := c.Health(); !h.Tracking {
				t.Errorf("health %+v", h)
			}
			wantGet(t, c, "k", "kept")
		})
	}
}

// In a cluster the command goes to the node that is busy, and the others go on.
func TestSCRIPTKILLGoesToTheBusyNodeOfACluster(t *testing.T) {
	ctx := begin(t)
	r := redistest.StartCluster(t, 3, 0)
	r.Configure("busy-reply-threshold", "50")
	c := open(t, at(r.Addrs()[0]))
	ready(t, c)
	busy := r.NodeFor("k")
	other := ""
	for i := 0; other == ""; i++ {
		if key := fmt.Sprint("other", i); r.NodeFor(key) != busy {
			other = key
		}
	}
	endless(t, busy)
	redistest.WaitFor(t, patience, "busy", func() bool {
		noError(t, c.Set(ctx, "k", []byte("kept"), 0))
		return isBusy(c)()
	})
	must(t, c.Set(ctx, other, []byte("v"), 0))
	if got := r.NodeFor(other).MustDo("GET", other); got != "v" {
		t.Errorf("%s is %s at redis", other, got)
	}
	client := c.Client()
	must(t, client.Do(ctx, client.B().ScriptKill().Build()).Error())
	waitState(t, c, holdfast.Up)
	drain(t, c)
	if got := busy.MustDo("GET", "k"); got != "kept" {
		t.Errorf("k is %s at redis", got)
	}
}

// FUNCTION KILL ends a function, and FUNCTION STATS tells of it.
func TestFUNCTIONKILLReachesAServerThatIsBusyWithAFunction(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t, "--busy-reply-threshold", "50")
	s.MustDo("FUNCTION", "LOAD", "#!lua name=l\nredis.register_function{function_name='spin', callback=function() while true do end end, flags={'no-writes'}}")
	c := open(t, at(s.Addr()))
	ready(t, c)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = s.Do("FCALL", "spin", "0")
	}()
	client := c.Client()
	redistest.WaitFor(t, patience, "busy", isBusy(c))
	stats, err := client.Do(ctx, client.B().FunctionStats().Build()).ToMap()
	if running := stats["running_script"]; err != nil || running.IsNil() {
		t.Errorf("function stats: %v, %v", stats, err)
	}
	must(t, client.Do(ctx, client.B().FunctionKill().Build()).Error())
	<-done
	waitState(t, c, holdfast.Up)
}

// The first caller, right after New, or a caller that has yet to dial a connection of its own,
// may be the one that wants to end the script.
func TestSCRIPTKILLReachesABusyServerByTheFirstCallAndByANewDedicate(t *testing.T) {
	beside(t)
	redistest.Long(t)
	for _, db := range []int{0, 3} {
		for name, kill := range map[string]func(ctx context.Context, c *holdfast.Cache) error{
			"Do": func(ctx context.Context, c *holdfast.Cache) error {
				return c.Client().Do(ctx, c.Client().B().ScriptKill().Build()).Error()
			},
			"Dedicated": func(ctx context.Context, c *holdfast.Cache) error {
				return c.Client().Dedicated(func(d rueidis.DedicatedClient) error {
					if err := d.Do(ctx, d.B().FunctionStats().Build()).Error(); !contains(fmt.Sprint(err), "BUSY") || errors.Is(err, holdfast.ErrUnavailable) {
						t.Errorf("function stats: %v", err)
					}
					if err := d.Do(ctx, d.B().Get().Key("k").Build()).Error(); !errors.Is(err, holdfast.ErrUnavailable) {
						t.Errorf("get: %v", err)
					}
					if err := d.DoMulti(ctx, d.B().ScriptKill().Build())[0].Error(); err != nil {
						return err
					}
					redistest.WaitFor(t, patience, "the connection to serve for all", func() bool {
						return d.Do(ctx, d.B().Set().Key("k").Value(fmt.Sprint("of ", db)).Build()).Error() == nil
					})
					return nil
				})
			},
		} {
			for _, known := range []bool{true, false} {
				t.Run(fmt.Sprint(name, ", database ", db, ", known to be busy: ", known), func(t *testing.T) {
					ctx := begin(t)
					s := redistest.Start(t, "--busy-reply-threshold", "50")
					o := at(s.Addr())
					o.Redis.SelectDB, o.Timeout = db, 5*time.Second
					if !known {
						endless(t, s)
					}
					c := open(t, o)
					if known {
						ready(t, c)
						endless(t, s)
						redistest.WaitFor(t, patience, "busy", isBusy(c))
					}
					must(t, kill(ctx, c))
					waitState(t, c, holdfast.Up)
					if name == "Dedicated" {
						must(t, s.Inside(db, func(do func(...string) string) {
							if got := do("GET", "k"); got != fmt.Sprint("of ", db) {
								t.Errorf("redis has %q", got)
							}
						}))
					}
				})
			}
		}
	}
}
