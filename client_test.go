package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// say sends one command and returns its reply as text; "(nil)" for Redis' nil.
func say(t testing.TB, cl rueidis.Client, args ...string) string {
	t.Helper()
	s, err := ask(cl, args...)
	if err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	return s
}

func ask(cl rueidis.Client, args ...string) (string, error) {
	return textOf(cl.Do(context.Background(), built(cl.B(), args)))
}

func textOf(res rueidis.RedisResult) (string, error) {
	m, err := res.ToMessage()
	switch {
	case rueidis.IsRedisNil(err):
		return "(nil)", nil
	case err != nil:
		return "", err
	case m.IsInt64():
		n, _ := m.AsInt64()
		return strconv.FormatInt(n, 10), nil
	case m.IsArray():
		all, _ := m.AsStrSlice()
		return strings.Join(all, " "), nil
	case m.IsMap():
		return m.String(), nil
	}
	return m.ToString()
}

func wantSay(t testing.TB, cl rueidis.Client, want string, args ...string) {
	t.Helper()
	if got := say(t, cl, args...); got != want {
		t.Fatalf("%q: %q; want %q", args, got, want)
	}
}

// A method that a new rueidis has must be thought about before it is there.
func TestClientHasTheMethodsThatWereThoughtAbout(t *testing.T) {
	want := []string{
		"B", "Close", "Dedicate", "Dedicated", "Do", "DoCache", "DoMulti", "DoMultiCache", "DoMultiStream", "DoStream",
		"Mode", "Nodes", "Receive",
	}
	var got []string
	for i, all := 0, reflect.TypeFor[rueidis.Client](); i < all.NumMethod(); i++ {
		got = append(got, all.Method(i).Name)
	}
	if !slices.Equal(got, want) {
		t.Errorf("rueidis.Client has the methods %v; those that are written here are %v", got, want)
	}
}

func TestARepliesFromTheLocalTierLooksAsRueidisOwnDoes(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	c := open(t, at(s.Addr()))
	ready(t, c)
	cl := c.Client()
	get := func() rueidis.Cacheable { return cl.B().Get().Key("k").Cache() }

	if err := cl.DoCache(ctx, get(), time.Minute).Error(); !rueidis.IsRedisNil(err) {
		t.Fatalf("a key that is not there: %v", err)
	}
	s.MustDo("SET", "k", `{"n":7}`, "EX", "300")
	first := cl.DoCache(ctx, get(), time.Minute)
	if first.IsCacheHit() || first.CacheTTL() < 30 || first.CacheTTL() > 60 {
		t.Errorf("what Redis was asked for is a hit: %v, for %d s", first.IsCacheHit(), first.CacheTTL())
	}
	var hit rueidis.RedisResult
	redistest.WaitFor(t, patience, "a hit: what is told of the foreign SET may make the first fill void", func() bool {
		hit = cl.DoCache(ctx, get(), time.Hour)
		return hit.IsCacheHit()
	})
	if hit.CacheTTL() < 200 || hit.CacheTTL() > 300 {
		t.Errorf("what is here is so for %d s; the key has 300", hit.CacheTTL())
	}
	if hit = cl.DoCache(ctx, get(), 5*time.Second); hit.CachePTTL() > 5000 || hit.CachePTTL() < 1 {
		t.Errorf("a hit for 5 s at most says %d ms", hit.CachePTTL())
	}
	if res := cl.DoCache(ctx, get(), 0); res.IsCacheHit() {
		t.Error("a copy was served to who takes none")
	}
	plain := cl.Do(ctx, cl.B().Get().Key("k").Build())
	if plain.IsCacheHit() || plain.CachePTTL() != -1 || plain.NonRedisError() != nil {
		t.Errorf("Do tells of a cache: %v, %d ms", plain.IsCacheHit(), plain.CachePTTL())
	}
	var v struct{ N int }
	if err := plain.DecodeJSON(&v); err != nil || v.N != 7 {
		t.Errorf("as JSON: %+v, %v", v, err)
	}
	if _, err := plain.ToArray(); err == nil || !rueidis.IsParseErr(err) {
		t.Errorf("a string as an array: %v", err)
	}
	ages := cl.DoMultiCache(ctx, rueidis.CT(get(), time.Hour), rueidis.CT(get(), 0), rueidis.CT(get(), 5*time.Second))
	if !ages[0].IsCacheHit() || ages[1].IsCacheHit() || ages[0].CacheTTL() < 200 || ages[2].CachePTTL() > 5000 {
		t.Errorf("a batch of the ttls 1 h, 0 and 5 s: hits %v, %v; for %d s and %d ms",
			ages[0].IsCacheHit(), ages[1].IsCacheHit(), ages[0].CacheTTL(), ages[2].CachePTTL())
	}
	many := cl.DoMultiCache(ctx, rueidis.CT(get(), time.Minute), rueidis.CT(cl.B().Mget().Key("k", "none").Cache(), time.Minute))
	if !many[0].IsCacheHit() {
		t.Error("a batch asks for what is here")
	}
	all, err := many[1].ToArray()
	if err != nil || len(all) != 2 || !all[0].IsCacheHit() || !all[1].IsNil() {
		t.Errorf("MGET: %v, %v", all, err)
	}
}

func TestWhatAnyCommandWritesIsReadAfterIt(t *testing.T) {
	begin(t)
	s := redistest.Start(t)
	for _, mode := range []holdfast.TrackingMode{holdfast.TrackReads, holdfast.TrackOff} {
		o := at(s.Addr())
		o.Timeout, o.Tracking.Mode = 10*time.Second, mode
		c := open(t, o)
		ready(t, c)
		cl := c.Client()
		for i := range 200 {
			wantSay(t, cl, "OK", "SET", "n", "1")
			wantSay(t, cl, "1", "GET", "n")
			wantSay(t, cl, "2", "INCR", "n")
			wantSay(t, cl, "2", "GET", "n")
			wantSay(t, cl, "2", "APPEND", "n", "0")
			wantGet(t, c, "n", "20")
			must(t, c.Set(context.Background(), "n", []byte("5"), 0))
			wantSay(t, cl, "5", "GET", "n")
			wantSay(t, cl, "OK", "EVAL", "return redis.call('SET',KEYS[1],ARGV[1])", "1", "n", strconv.Itoa(i))
			wantSay(t, cl, strconv.Itoa(i), "GET", "n")
			wantSay(t, cl, "OK", "RENAME", "n", "m")
			wantSay(t, cl, "(nil)", "GET", "n")
			wantSay(t, cl, strconv.Itoa(i), "GET", "m")
			wantSay(t, cl, strconv.Itoa(i), "GETDEL", "m")
			wantGet(t, c, "m", "")
			if i%50 == 0 {
				wantSay(t, cl, "OK", "SET", "n", "1")
				wantSay(t, cl, "OK", "FLUSHALL")
				wantSay(t, cl, "(nil)", "GET", "n")
			}
		}
	}
}

// Readers fill the local tier all the while; a counter must never be seen to go back.
func TestACounterNeverGoesBackForWhoeverReadsIt(t *testing.T) {
	begin(t)
	s := redistest.Start(t)
	for _, mode := range []holdfast.TrackingMode{holdfast.TrackReads, holdfast.TrackOff} {
		o := at(s.Addr())
		o.Timeout, o.Tracking.Mode = 10*time.Second, mode
		c := open(t, o)
		ready(t, c)
		cl := c.Client()
		s.MustDo("DEL", "n")
		stop := load(t, 3, func(int, int) { _, _ = c.Get(context.Background(), "n") })
		defer stop()
		for i := range 1500 {
			want := strconv.Itoa(i + 1)
			wantSay(t, cl, want, "INCR", "n")
			wantSay(t, cl, want, "GET", "n")
		}
		stop()
	}
}

func TestADropInGoesOnWhileRedisIsAway(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	c := open(t, at(s.Addr()))
	ready(t, c)
	cl := c.Client()
	wantSay(t, cl, "OK", "SET", "old", "1", "EX", "500")
	wantSay(t, cl, "OK", "SET", "gone", "1")
	wantSay(t, cl, "1 1", "MGET", "old", "gone")
	s.Kill()
	waitState(t, c, holdfast.Down)

	wantSay(t, cl, "1", "GET", "old")
	wantSay(t, cl, "(nil)", "GET", "unknown")
	wantSay(t, cl, "OK", "SET", "new", "2", "PX", "400000")
	wantSay(t, cl, "2", "GET", "new")
	wantSay(t, cl, "1 2 ", "MGET", "old", "new", "unknown")
	wantSay(t, cl, "OK", "MSET", "a", "1", "b", "2")
	wantSay(t, cl, "2", "EXISTS", "new", "old")
	wantSay(t, cl, "1", "DEL", "gone", "unknown")
	wantSay(t, cl, "(nil)", "GET", "gone")
	wantSay(t, cl, "0", "EXISTS", "gone")
	wantSay(t, cl, "-2", "TTL", "gone")
	wantSay(t, cl, "1", "GETDEL", "a")
	wantSay(t, cl, "(nil)", "GETDEL", "a")
	wantSay(t, cl, "-1", "TTL", "b")
	wantSay(t, cl, "1", "EXPIRE", "b", "300")
	wantSay(t, cl, "300", "TTL", "b")
	wantSay(t, cl, "1", "PERSIST", "b")
	wantSay(t, cl, "0", "PERSIST", "b")
	wantSay(t, cl, "0", "EXPIRE", "gone", "300")
	wantSay(t, cl, "OK", "SET", "b", "3", "EX", "300")
	wantSay(t, cl, "OK", "SET", "b", "4", "KEEPTTL")
	wantSay(t, cl, "300", "TTL", "b")
	wantSay(t, cl, "OK", "SET", "b", "9", "KEEPTTL")
	if n, err := strconv.Atoi(say(t, cl, "TTL", "old")); err != nil || n < 400 || n > 500 {
		t.Errorf("TTL of a copy: %d, %v", n, err)
	}
	wantSay(t, cl, "1", "EXPIRE", "new", "-1")
	wantSay(t, cl, "(nil)", "GET", "new")

	began := time.Now()
	for _, line := range []string{
		"INCR b", "APPEND old x", "HGETALL h", "EXISTS new other", "EXISTS other", "TTL other", "PEXPIRETIME other",
		"EXPIRE other 9", "EXPIRE old 9", "PERSIST old", "SET other v KEEPTTL", "SET old v NX", "PING", "EVAL return(1) 0",
		"FLUSHALL", "SET old v EX 0", "SET", "GET a b", "PUBLISH a b",
	} {
		if _, err := ask(cl, strings.Fields(line)...); !errors.Is(err, holdfast.ErrUnavailable) {
			t.Errorf("%s: %v; want ErrUnavailable", line, err)
		}
	}
	for i, res := range cl.DoMulti(ctx,
		cl.B().Set().Key("m").Value("1").Build(), cl.B().Incr().Key("m").Build(), cl.B().Get().Key("m").Build(),
		cl.B().Del().Key("m").Build(), cl.B().Get().Key("m").Build(), cl.B().Exists().Key("m").Build(),
	) {
		want := []string{"OK", "", "1", "1", "(nil)", "0"}[i]
		if got, err := textOf(res); got != want || (err != nil) != (i == 1) {
			t.Errorf("command %d of a batch: %q, %v; want %q", i, got, err, want)
		}
	}
	if d := time.Since(began); d > patience/10 {
		t.Errorf("refusing took %v", d)
	}

	s.Restart()
	waitState(t, c, holdfast.Up)
	drain(t, c)
	for key, want := range map[string]string{"old": "(nil)", "new": "(nil)", "gone": "(nil)", "a": "(nil)", "b": "9", "m": "(nil)"} {
		if got := s.MustDo("GET", key); key != "old" && got != want {
			t.Errorf("%s is %q at Redis; want %q", key, got, want)
		}
	}
	if n, _ := strconv.Atoi(s.MustDo("TTL", "b")); n < 100 || n > 300 {
		t.Errorf("the end of b came to Redis as %d s", n)
	}
}

// Between recovery and the end of the replay a key may be fenced still: what only Redis
// can do to it must find what was written here.
func TestACommandFindsWhatTheJournalHoldsOfItsKeys(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	o := at(s.Addr())
	o.Timeout = 10 * time.Second
	o.Journal.MaxRate = 20 // so that the replay takes long
	c := open(t, o)
	ready(t, c)
	cl := c.Client()
	s.Kill()
	waitState(t, c, holdfast.Down)
	const n = 300
	for i := range n {
		wantSay(t, cl, "OK", "SET", "k"+strconv.Itoa(i), "10")
	}
	s.Restart()
	waitState(t, c, holdfast.Up)
	for i := n - 1; i > n-20; i-- {
		key := "k" + strconv.Itoa(i)
		switch i % 4 {
		case 0:
			wantSay(t, cl, "11", "INCR", key)
			wantSay(t, cl, "11", "GET", key)
		case 1:
			wantSay(t, cl, "3", "APPEND", key, "x")
			wantSay(t, cl, "10x", "GET", key)
		case 2:
			wantSay(t, cl, "2", "STRLEN", key)
		case 3:
			res := cl.DoMulti(ctx, cl.B().Multi().Build(), cl.B().Incr().Key(key).Build(), cl.B().Exec().Build())
			if v, err := res[2].AsIntSlice(); err != nil || len(v) != 1 || v[0] != 11 {
				t.Fatalf("INCR in a transaction: %v, %v", v, err)
			}
		}
	}
	// A script may change any key, so what follows it is not answered here; but what the
	// journal holds is nowhere else.
	for i, res := range cl.DoMulti(ctx, cl.B().Eval().Script("return 1").Numkeys(0).Build(), cl.B().Get().Key("k200").Build(),
		cl.B().Exists().Key("k201").Build(), cl.B().Ttl().Key("k202").Build()) {
		if got, err := textOf(res); err != nil || got != []string{"1", "10", "1", "-1"}[i] {
			t.Errorf("command %d behind a script: %q, %v", i, got, err)
		}
	}
	if c.Health().JournalKeys == 0 {
		t.Error("all was replayed before the commands came: the test shows nothing")
	}
}

// rueidis looks such commands up in a cache that a session's client does not have, where
// nobody can recover.
func TestCommandsOfAStaticTTLHarmNobody(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	c := open(t, at(s.Addr()))
	ready(t, c)
	cl := c.Client()
	s.MustDo("HSET", "h", "f", "v")
	for range 3 {
		var cmds []rueidis.CacheableTTL
		for range 4 {
			cmds = append(cmds, rueidis.CT(cl.B().Hget().Key("h").Field("f").Cache().ToStaticTTL(), time.Minute),
				rueidis.CT(cl.B().Get().Key("k").Cache().ToStaticTTL(), time.Minute))
		}
		for i, res := range cl.DoMultiCache(ctx, cmds...) {
			if got, err := textOf(res); err != nil || got != []string{"v", "(nil)"}[i%2] {
				t.Errorf("command %d: %q, %v", i, got, err)
			}
		}
		hget := rueidis.Completed(cl.B().Hget().Key("h").Field("f").Cache().ToStaticTTL().Pin())
		for i, res := range cl.DoMulti(ctx, hget, hget, hget) {
			if got, err := textOf(res); err != nil || got != "v" {
				t.Errorf("as a plain command, the %d.: %q, %v", i, got, err)
			}
		}
		if got, err := cl.DoCache(ctx, cl.B().Hget().Key("h").Field("f").Cache().ToStaticTTL(), time.Minute).ToString(); err != nil || got != "v" {
			t.Errorf("alone: %q, %v", got, err)
		}
	}
}

func TestCommandsOfAHungServerAreBounded(t *testing.T) {
	begin(t)
	s := redistest.Start(t)
	c := open(t, at(s.Addr()))
	ready(t, c)
	cl := c.Client()
	wantSay(t, cl, "OK", "SET", "k", "1")
	s.Pause()
	defer s.Resume()
	var all sync.WaitGroup
	for i := range 30 {
		all.Go(func() {
			began := time.Now()
			if _, err := ask(cl, "INCR", "n"); !errors.Is(err, holdfast.ErrUnavailable) {
				t.Errorf("INCR: %v", err)
			}
			if got, err := ask(cl, "SET", "k", strconv.Itoa(i)); err != nil || got != "OK" {
				t.Errorf("SET: %q, %v", got, err)
			}
			if d := time.Since(began); d > 2*time.Second+slack() {
				t.Errorf("two commands took %v", d)
			}
		})
	}
	all.Wait()
}

func TestWhatWouldChangeTheSharedConnectionIsRefused(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	c := open(t, at(s.Addr()))
	ready(t, c)
	cl := c.Client()
	for _, line := range []string{
		"SELECT 1", "AUTH x", "HELLO 2", "RESET", "QUIT", "WATCH k", "UNWATCH", "MONITOR", "SYNC", "PSYNC ? -1", "REPLCONF ACK 1",
		"READONLY", "READWRITE", "ASKING", "CLIENT REPLY OFF", "client tracking off", "CLIENT CACHING YES", "CLIENT NO-TOUCH ON",
		"SCRIPT DEBUG YES", "MULTI", "EXEC", "DISCARD", "select 1", "multi", "SELECT", "SELECT 0 1", "SELECT 00", "quit",
		"CLIENT SETNAME x", "CLIENT NO-EVICT ON", "client setinfo lib-name x", "CLIENT NOSUCH", "DEBUG PROTOCOL push",
	} {
		_, err := ask(cl, strings.Fields(line)...)
		var e *holdfast.Error
		if !errors.As(err, &e) || errors.Is(err, holdfast.ErrUnavailable) || !strings.Contains(err.Error(), "Dedicate") {
			t.Errorf("%s: %v; want a refusal that says what to do", line, err)
		}
	}
	for line, want := range map[string]string{
		"SELECT 1": "SelectDB", "QUIT": "Close", "AUTH x": "Password", "HELLO 3": "Password", "READONLY": "master", "READWRITE": "master",
		"MONITOR": "plain client", "RESET": "plain client", "CLIENT REPLY OFF": "plain client", "WATCH k": "use Dedicate",
	} {
		if _, err := ask(cl, strings.Fields(line)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want one that names %s", line, err, want)
		}
	}
	for _, line := range []string{"CLIENT ID", "CLIENT LIST", "CLIENT INFO", "client getname", "CLIENT TRACKINGINFO"} {
		if _, err := ask(cl, strings.Fields(line)...); err != nil {
			t.Errorf("%s: %v", line, err)
		}
	}
	wantSay(t, cl, "OK", "SELECT", "0") // it is so already
	for _, batch := range [][]string{
		{"MULTI", "SET k 1"}, {"MULTI", "SELECT 1", "EXEC"}, {"MULTI x", "SET k 1", "EXEC"}, {"MULTI", "SET k 1", "EXEC x"},
		{"MULTI", "CLIENT REPLY OFF", "EXEC"},
	} {
		var cmds []rueidis.Completed
		for _, line := range batch {
			cmds = append(cmds, built(cl.B(), strings.Fields(line)))
		}
		if err := cl.DoMulti(ctx, cmds...)[0].Error(); err == nil {
			t.Errorf("%q was begun", batch)
		}
	}
	sub := cl.B().Subscribe().Channel("x").Build()
	if err := cl.Do(ctx, sub).Error(); err == nil || !strings.Contains(err.Error(), "Receive") {
		t.Errorf("SUBSCRIBE: %v", err)
	}
	// The connection is as it was.
	wantSay(t, cl, "OK", "SET", "k", "v")
	if got := s.MustDo("GET", "k"); got != "v" {
		t.Errorf("k is %q in database 0", got)
	}
	wantSay(t, cl, "PONG", "PING")
}

func TestBadInputIsAnErrorAndNoMore(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	c := open(t, at(s.Addr()))
	ready(t, c)
	cl := c.Client()
	if err := cl.Do(ctx, rueidis.Completed{}).Error(); err == nil {
		t.Error("a command that is none was accepted")
	}
	if err := cl.DoCache(ctx, rueidis.Cacheable{}, time.Second).Error(); err == nil {
		t.Error("a cacheable command that is none was accepted")
	}
	if res := cl.DoMulti(ctx, cl.B().Ping().Build(), rueidis.Completed{}); len(res) != 2 || res[1].Error() == nil {
		t.Errorf("a batch with a command that is none: %v", res)
	}
	if res := cl.DoMulti(ctx); len(res) != 0 {
		t.Errorf("no commands have %d replies", len(res))
	}
	if res := cl.DoMultiCache(ctx); len(res) != 0 {
		t.Errorf("no commands have %d replies", len(res))
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	for _, args := range [][]string{{"GET", "k"}, {"SET", "k", "v"}, {"INCR", "k"}, {"PING"}} {
		if err := cl.Do(gone, built(cl.B(), args)).Error(); !errors.Is(err, context.Canceled) {
			t.Errorf("%q with an ended context: %v", args, err)
		}
		var none context.Context
		if err := cl.Do(none, built(cl.B(), args)).Error(); err == nil {
			t.Errorf("%q without a context was accepted", args)
		}
	}
	wantSay(t, cl, "PONG", "PING")
}

func TestAViewEndsAloneAndWithTheCache(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	c := open(t, at(s.Addr()))
	ready(t, c)
	one, other := c.Client(), c.Client()
	wantSay(t, one, "OK", "SET", "k", "v")
	one.Close()
	one.Close()
	for _, args := range [][]string{{"GET", "k"}, {"SET", "k", "v"}, {"PING"}} {
		if _, err := ask(one, args...); !errors.Is(err, rueidis.ErrClosing) {
			t.Errorf("%q of a view that has ended: %v", args, err)
		}
	}
	wantSay(t, other, "v", "GET", "k")
	if nodes := other.Nodes(); len(nodes) != 1 || nodes[s.Addr()] == nil {
		t.Errorf("the nodes are %v", nodes)
	} else {
		wantSay(t, nodes[s.Addr()], "v", "GET", "k")
	}
	if other.Mode() != rueidis.ClientModeStandalone {
		t.Errorf("the mode is %v", other.Mode())
	}
	closedEmpty(t, c)
	for _, args := range [][]string{{"GET", "k"}, {"SET", "k", "v"}, {"PING"}} {
		if _, err := ask(other, args...); !errors.Is(err, holdfast.ErrClosed) {
			t.Errorf("%q after Close: %v", args, err)
		}
	}
	_ = ctx
}

func TestADropInWithoutAnyRedis(t *testing.T) {
	begin(t)
	c := open(t, holdfast.Options{})
	cl := c.Client()
	wantSay(t, cl, "OK", "SET", "k", "v", "EX", "100")
	wantSay(t, cl, "v", "GET", "k")
	wantSay(t, cl, "100", "TTL", "k")
	wantSay(t, cl, "1", "PERSIST", "k")
	wantSay(t, cl, "0", "PERSIST", "k")
	wantSay(t, cl, "1", "EXISTS", "k", "none")
	wantSay(t, cl, "-2", "PTTL", "none")
	wantSay(t, cl, "1", "EXPIRE", "k", "50")
	wantSay(t, cl, "0", "EXPIRE", "none", "50")
	wantSay(t, cl, "OK", "SET", "k", "w", "KEEPTTL")
	wantSay(t, cl, "50", "TTL", "k")
	wantSay(t, cl, "w ", "MGET", "k", "none")
	wantSay(t, cl, "w", "GETDEL", "k")
	wantSay(t, cl, "0", "DEL", "k")
	if _, err := ask(cl, "INCR", "k"); !errors.Is(err, holdfast.ErrUnavailable) {
		t.Errorf("INCR: %v", err)
	}
	if len(cl.Nodes()) != 0 {
		t.Error("there are nodes")
	}
}

// Programs that share a client pin commands and use them from many goroutines.
func TestAPinnedCommandIsUsedByManyAtOnce(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	o := at(s.Addr())
	o.Timeout = 10 * time.Second
	c := open(t, o)
	ready(t, c)
	cl := c.Client()
	incr, get, set := cl.B().Incr().Key("n").Build().Pin(), cl.B().Get().Key("n").Build().Pin(), cl.B().Set().Key("m").Value("v").Build().Pin()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 50 {
				for _, res := range append(cl.DoMulti(ctx, incr, get, set), cl.Do(ctx, incr)) {
					if err := res.Error(); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	all.Wait()
	wantSay(t, cl, fmt.Sprint(8*50*2), "GET", "n")
}

// A key that ends in over 292 years had no end as soon as there was a copy of it.
func TestAnEndThatIsTooFarAwayForADurationIsNoneTheLess(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	c := open(t, at(s.Addr()))
	ready(t, c)
	cl := c.Client()
	const century = 100 * 365 * 24 * time.Hour
	for key, end := range map[string]int64{"far": 1 << 62, "farther": 1<<63 - 1} { // milliseconds
		s.MustDo("SET", key, "v")
		s.MustDo("PEXPIREAT", key, fmt.Sprint(end))
		held(t, c, key, "v")
		for name, want := range map[string]int64{
			"PEXPIRETIME": end, "EXPIRETIME": (end-1)/1000 + 1,
			"PTTL": end - time.Now().UnixMilli(), "TTL": (end - time.Now().UnixMilli()) / 1000,
		} {
			got, err := strconv.ParseInt(say(t, cl, name, key), 10, 64)
			if d := got - want; err != nil || d < -60_000 || d > 60_000 {
				t.Errorf("%s %s: %d, %v; want about %d", name, key, got, err, want)
			}
		}
		if ttl, err := c.TTL(ctx, key); err != nil || ttl < 2*century {
			t.Errorf("TTL of %s: %v, %v", key, ttl, err)
		}
		if e, err := c.Lookup(ctx, key); err != nil || e.Tier != holdfast.Local || e.TTL < 2*century {
			t.Errorf("%s: %+v, %v", key, e, err)
		}
	}
	s.Kill()
	waitState(t, c, holdfast.Down)
	must(t, c.Set(ctx, "kept", []byte("v"), 1<<63-1))
	for _, key := range []string{"far", "farther", "kept"} {
		for name, unit := range map[string]time.Duration{"PTTL": time.Millisecond, "TTL": time.Second, "PEXPIRETIME": time.Millisecond, "EXPIRETIME": time.Second} {
			if n, err := strconv.ParseInt(say(t, cl, name, key), 10, 64); err != nil || n < int64(2*century/unit) {
				t.Errorf("in an outage, %s %s: %d, %v", name, key, n, err)
			}
		}
	}
	s.RestartEmpty()
	drain(t, c)
	if n, err := strconv.ParseInt(s.MustDo("PTTL", "kept"), 10, 64); err != nil || n < int64(2*century/time.Millisecond) {
		t.Errorf("after the replay: %d, %v", n, err)
	}
}
