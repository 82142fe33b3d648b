package holdfast_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// Random commands of all types go to one server through Client and to another through rueidis'
// own client. Each reply must be the other's. For each key some reads are repeated after each
// change, so that a reply that was cached before the change is found out.

// cachingAt is Options for a Cache at addr whose cached reads are under test.
func cachingAt(addr string, mode holdfast.TrackingMode) holdfast.Options {
	o := tracked(addr, mode)
	o.Timeout = 10 * time.Second // the replies are compared, not the machine
	o.Local.CacheDo = true
	o.Breaker.MinBackoff, o.Breaker.MaxBackoff = 5*time.Millisecond, 20*time.Millisecond
	return o
}

// twins are a Cache and its server, and a plain client with a server of its own.
type twins struct {
	t      *testing.T
	ctx    context.Context
	r      *rand.Rand
	c      *holdfast.Cache
	ours   rueidis.Client
	server *redistest.Server // behind the Cache; another one after a failover

	plain       rueidis.Client
	plainServer *redistest.Server

	step    int
	flushed int
	log     []event
	watches map[string][]watchedRead // by key
	reads   map[string]int           // by command; of the Cache
	hits    map[string]int
}

// event is a command that may have changed keys, or something that happened to all of them.
type event struct {
	step int
	text string
	keys []string // nil: all
}

// watchedRead is a read that is repeated after each change of its keys.
type watchedRead struct {
	command
	since int // step
}

const watchesPerKey = 5

func newTwins(t *testing.T, ctx context.Context, o holdfast.Options, server *redistest.Server) *twins {
	t.Helper()
	p := &twins{t: t, ctx: ctx, r: seedOf(t), server: server, plainServer: redistest.Start(t)}
	p.plain = plainClient(t, p.plainServer.Addr())
	p.c = open(t, o)
	ready(t, p.c)
	p.ours = p.c.Client()
	p.watches, p.reads, p.hits = map[string][]watchedRead{}, map[string]int{}, map[string]int{}
	for _, key := range allKeys() {
		p.watches[key] = make([]watchedRead, watchesPerKey)
		for i := range p.watches[key] {
			p.watchAnew(&p.watches[key][i], key)
		}
	}
	return p
}

// watchAnew replaces a watch by another read of the key.
func (p *twins) watchAnew(w *watchedRead, key string) {
	for {
		w.command, w.since = randomRead(p.r, kindOf(key)), p.step
		if slices.Contains(w.keys, key) {
			return
		}
	}
}

// readsBeside reads keys through the Cache all the while. Their replies are cached in races with
// the changes.
func (p *twins) readsBeside(goroutines int) {
	sources := make([]*rand.Rand, goroutines)
	for g := range sources {
		sources[g] = rand.New(rand.NewPCG(p.r.Uint64(), 0))
	}
	load(p.t, goroutines, func(g, _ int) {
		read := randomRead(sources[g], &kinds[sources[g].IntN(len(kinds))])
		p.ours.DoCache(p.ctx, forDoCache(p.ours.B(), read), time.Minute)
		time.Sleep(200 * time.Microsecond) // the commands that are compared need the machine, too
	})
}

// run makes n steps, and compares all contents in the end.
func (p *twins) run(n int, happenings ...func()) {
	p.t.Helper()
	for range n {
		p.step++
		switch at := p.r.IntN(400); {
		case at < 4:
			p.flush()
		case at < 8:
			p.lapse()
		case at < 14 && len(happenings) > 0:
			happenings[p.r.IntN(len(happenings))]()
		case at < 40:
			p.changeByMethods()
		default:
			p.change()
		}
	}
	p.lookAtAll()
	p.sameContents()
	p.logHits()
}

// routes are the ways of a change to the server.
var routes = []struct {
	name string
	send func(p *twins, cmds []command)
}{
	{"Do", func(p *twins, cmds []command) {
		for _, c := range cmds {
			p.same(c, c.name(), p.ours.Do(p.ctx, built(p.ours.B(), c.args)), p.asked(c))
		}
	}},
	{"Do", func(p *twins, cmds []command) {
		p.same(cmds[0], cmds[0].name(), p.ours.Do(p.ctx, built(p.ours.B(), cmds[0].args)), p.asked(cmds[0]))
	}},
	// A command with side effects is a mistake here: it is Redis' to answer, each time.
	{"DoCache", func(p *twins, cmds []command) {
		for _, c := range cmds {
			p.same(c, c.name(), p.ours.DoCache(p.ctx, forDoCache(p.ours.B(), c), p.cachedFor()), p.asked(c))
		}
	}},
	{"DoMultiCache", func(p *twins, cmds []command) { p.sameReads(cmds) }},
	{"DoMulti", func(p *twins, cmds []command) {
		p.sameAll(cmds, p.ours.DoMulti(p.ctx, p.builtAll(p.ours, cmds)...), p.plain.DoMulti(p.ctx, p.builtAll(p.plain, cmds)...))
	}},
	{"transaction", func(p *twins, cmds []command) {
		whole := transaction(cmds)
		p.sameAll(whole, p.ours.DoMulti(p.ctx, p.builtAll(p.ours, whole)...), p.plain.DoMulti(p.ctx, p.builtAll(p.plain, whole)...))
	}},
	{"dedicated", func(p *twins, cmds []command) {
		_ = p.ours.Dedicated(func(d rueidis.DedicatedClient) error {
			p.sameAll(cmds, d.DoMulti(p.ctx, p.builtAll(p.ours, cmds)...), p.plain.DoMulti(p.ctx, p.builtAll(p.plain, cmds)...))
			return nil
		})
	}},
	{"script", func(p *twins, cmds []command) {
		for _, c := range cmds {
			s := scripted(c)
			p.same(s, c.name(), p.ours.Do(p.ctx, built(p.ours.B(), s.args)), p.asked(s))
		}
	}},
	{"foreign", func(p *twins, cmds []command) { p.foreign(cmds...) }},
	{"foreign", func(p *twins, cmds []command) { p.foreign(cmds[0]) }},
}

func (p *twins) asked(c command) rueidis.RedisResult {
	return p.plain.Do(p.ctx, built(p.plain.B(), c.args))
}

func (p *twins) builtAll(cl rueidis.Client, cmds []command) rueidis.Commands {
	all := make(rueidis.Commands, len(cmds))
	for i, c := range cmds {
		all[i] = built(cl.B(), c.args)
	}
	return all
}

func (p *twins) cachedFor() time.Duration {
	return pick(p.r, []time.Duration{time.Hour, time.Hour, time.Minute, time.Millisecond, 0})
}

func transaction(cmds []command) []command {
	whole := append([]command{{args: []string{"MULTI"}}}, cmds...)
	return append(whole, command{args: []string{"EXEC"}})
}

// scripted is the command run by a script that names its keys.
func scripted(c command) command {
	args := append([]string{"EVAL", "return redis.call(unpack(ARGV))", fmt.Sprint(len(c.keys))}, c.keys...)
	return command{append(args, c.args...), c.keys}
}

// change sends some commands by a random way, and compares the keys that they may have changed.
func (p *twins) change() {
	p.t.Helper()
	route := pick(p.r, routes)
	cmds := make([]command, 1+p.r.IntN(4))
	touched := map[string]bool{}
	for i := range cmds {
		if cmds[i] = randomWrite(p.r); len(touched) > 0 && p.r.IntN(3) == 0 {
			key := pick(p.r, slices.Sorted(maps.Keys(touched)))
			cmds[i] = pick(p.r, p.watches[key]).command // between two writes
		}
		p.happened(fmt.Sprintf("%s %q", route.name, cmds[i].args), cmds[i].keys)
		for _, key := range cmds[i].keys {
			touched[key] = true
		}
	}
	route.send(p, cmds)
	if p.step%4 == 0 {
		p.lookAtAll()
		return
	}
	for _, key := range slices.Sorted(maps.Keys(touched)) {
		p.lookAt(key)
	}
}

// foreign lets somebody else run commands, and returns when the Cache has been told of it.
func (p *twins) foreign(cmds ...command) {
	p.t.Helper()
	for _, c := range cmds {
		_, err := p.server.Do(c.args...)
		_, plainErr := p.plainServer.Do(c.args...)
		if fmt.Sprint(err) != fmt.Sprint(plainErr) {
			p.fail(c, "of two servers, one says %v and the other %v", err, plainErr)
		}
	}
	told(p.t, p.c)
}

// changeByMethods changes keys by the methods of the Cache.
func (p *twins) changeByMethods() {
	p.t.Helper()
	key := pick(p.r, allKeys())
	must := func(err error) {
		if unexpected(err) {
			p.fail(command{keys: []string{key}}, "%v", err)
		}
	}
	do := func(args ...string) { p.plain.Do(p.ctx, built(p.plain.B(), args)) }
	switch way := p.r.IntN(5); way {
	case 0:
		p.happened("Cache.Set", []string{key})
		must(p.c.Set(p.ctx, key, []byte("set"), 0))
		do("SET", key, "set")
	case 1:
		p.happened("Cache.SetMany", []string{key})
		must(p.c.SetMany(p.ctx, map[string][]byte{key: []byte("17")}, 1000*time.Second))
		do("SETEX", key, "1000", "17")
	case 2:
		p.happened("Cache.Delete", []string{key})
		must(p.c.Delete(p.ctx, key))
		do("DEL", key)
	case 3:
		p.happened("Cache.Touch", []string{key})
		must(p.c.Touch(p.ctx, key, 100_000*time.Second))
		do("EXPIRE", key, "100000")
	case 4:
		p.happened("Cache.Add", []string{key})
		_, err := p.c.Add(p.ctx, key, []byte("1"), 0)
		must(err)
		do("SETNX", key, "1")
	}
	p.lookAt(key)
}

// flushes are commands that change all keys, by turns.
var flushes = []string{"SWAPDB 0 1", "FLUSHALL", "FLUSHDB", "SWAPDB 0 1", "FLUSHALL ASYNC"}

// flush empties both servers, or exchanges their databases.
func (p *twins) flush() {
	p.t.Helper()
	c := command{args: strings.Fields(flushes[p.flushed%len(flushes)])}
	p.flushed++
	if c.name() != "SWAPDB" && p.r.IntN(2) == 0 { // of SWAPDB a server tells nothing
		p.happened(fmt.Sprintf("foreign %q", c.args), nil)
		p.foreign(c)
	} else {
		p.happened(fmt.Sprintf("Do %q", c.args), nil)
		p.same(c, c.name(), p.ours.Do(p.ctx, built(p.ours.B(), c.args)), p.asked(c))
	}
	p.lookAtAll()
}

// lapse lets a key expire. Nobody tells the Cache: a server looks for expired keys now and then.
func (p *twins) lapse() {
	p.t.Helper()
	key := pick(p.r, allKeys())
	c := command{[]string{"PEXPIRE", key, "30"}, []string{key}}
	p.happened(fmt.Sprintf("Do %q", c.args), c.keys)
	want := p.asked(c) // first: its key ends first
	p.same(c, c.name(), p.ours.Do(p.ctx, built(p.ours.B(), c.args)), want)
	for _, w := range p.watches[key] {
		p.ours.DoCache(p.ctx, forDoCache(p.ours.B(), w.command), time.Hour)
	}
	passes(p.t, "the end of a key", 33*time.Millisecond)
	p.happened("the end of it", c.keys)
	p.lookAt(key)
}

// killed ends the connections of the Cache while somebody else writes, and returns when there is
// another.
func (p *twins) killed() {
	p.t.Helper()
	p.lost("CLIENT KILL", func() { p.server.MustDo("CLIENT", "KILL", "TYPE", "normal") })
}

// lost makes the Cache lose its server by f, and compares when it is back.
func (p *twins) lost(name string, f func()) {
	p.t.Helper()
	p.happened(name, nil)
	dials := p.c.Stats().DialAttempts
	f()
	unseen := randomWrite(p.r)
	p.happened(fmt.Sprintf("foreign %q", unseen.args), unseen.keys)
	_, _ = p.server.Do(unseen.args...)
	_, _ = p.plainServer.Do(unseen.args...)
	redistest.WaitFor(p.t, patience, "the loss to be noticed", func() bool { return p.c.Stats().DialAttempts > dials })
	waitState(p.t, p.c, holdfast.Up)
	told(p.t, p.c)
	p.lookAtAll()
}

// lookAt compares the watched reads of a key, each twice: the second may be a hit. One of them is
// often replaced.
func (p *twins) lookAt(key string) {
	p.t.Helper()
	for i := range p.watches[key] {
		w := &p.watches[key][i]
		for range 2 {
			p.sameRead(*w)
		}
	}
	if p.r.IntN(3) == 0 {
		w := &p.watches[key][p.r.IntN(watchesPerKey)]
		p.watchAnew(w, key)
		p.sameRead(*w)
	}
}

// lookAtAll compares the watched reads of all keys.
func (p *twins) lookAtAll() {
	p.t.Helper()
	var all []command
	for _, key := range allKeys() {
		for _, w := range p.watches[key] {
			all = append(all, w.command)
		}
	}
	p.sameReads(all)
	p.sameReads(all[:len(all)/4])
}

func (p *twins) sameRead(w watchedRead) {
	p.t.Helper()
	var got rueidis.RedisResult
	if p.r.IntN(4) == 0 {
		got = p.ours.Do(p.ctx, built(p.ours.B(), w.args))
	} else {
		got = p.ours.DoCache(p.ctx, forDoCache(p.ours.B(), w.command), p.cachedFor())
	}
	p.counted(w.command, got)
	p.same(w.command, w.name(), got, p.asked(w.command))
}

// sameReads compares reads that go together.
func (p *twins) sameReads(cmds []command) {
	p.t.Helper()
	reads := make([]rueidis.CacheableTTL, len(cmds))
	for i, c := range cmds {
		reads[i] = rueidis.CT(forDoCache(p.ours.B(), c), p.cachedFor())
	}
	got := p.ours.DoMultiCache(p.ctx, reads...)
	for i, c := range cmds {
		p.counted(c, got[i])
	}
	p.sameAll(cmds, got, p.plain.DoMulti(p.ctx, p.builtAll(p.plain, cmds)...))
}

func (p *twins) counted(c command, res rueidis.RedisResult) {
	p.reads[c.name()]++
	if res.IsCacheHit() {
		p.hits[c.name()]++
	}
}

func (p *twins) logHits() {
	var reads, hits int
	for name, n := range p.reads {
		reads, hits = reads+n, hits+p.hits[name]
	}
	p.t.Logf("%d steps, %d reads, of which %d were hits, by %d commands", p.step, reads, hits, len(p.hits))
}

// forDoCache is a command for DoCache, made by the methods of the builder where most programs would.
func forDoCache(b rueidis.Builder, c command) rueidis.Cacheable {
	if typed := byBuilder[c.args[0]]; typed != nil && len(c.args) == typed.args {
		return typed.make(b, c.args)
	}
	return rueidis.Cacheable(built(b, c.args))
}

var byBuilder = map[string]*struct {
	args int
	make func(b rueidis.Builder, args []string) rueidis.Cacheable
}{
	"GET":      {2, func(b rueidis.Builder, a []string) rueidis.Cacheable { return b.Get().Key(a[1]).Cache() }},
	"STRLEN":   {2, func(b rueidis.Builder, a []string) rueidis.Cacheable { return b.Strlen().Key(a[1]).Cache() }},
	"BITCOUNT": {2, func(b rueidis.Builder, a []string) rueidis.Cacheable { return b.Bitcount().Key(a[1]).Cache() }},
	"HGETALL":  {2, func(b rueidis.Builder, a []string) rueidis.Cacheable { return b.Hgetall().Key(a[1]).Cache() }},
	"HGET":     {3, func(b rueidis.Builder, a []string) rueidis.Cacheable { return b.Hget().Key(a[1]).Field(a[2]).Cache() }},
	"HMGET": {4, func(b rueidis.Builder, a []string) rueidis.Cacheable {
		return b.Hmget().Key(a[1]).Field(a[2:]...).Cache()
	}},
	"HLEN":     {2, func(b rueidis.Builder, a []string) rueidis.Cacheable { return b.Hlen().Key(a[1]).Cache() }},
	"LLEN":     {2, func(b rueidis.Builder, a []string) rueidis.Cacheable { return b.Llen().Key(a[1]).Cache() }},
	"SMEMBERS": {2, func(b rueidis.Builder, a []string) rueidis.Cacheable { return b.Smembers().Key(a[1]).Cache() }},
	"SCARD":    {2, func(b rueidis.Builder, a []string) rueidis.Cacheable { return b.Scard().Key(a[1]).Cache() }},
	"SISMEMBER": {3, func(b rueidis.Builder, a []string) rueidis.Cacheable {
		return b.Sismember().Key(a[1]).Member(a[2]).Cache()
	}},
	"ZRANGE": {4, func(b rueidis.Builder, a []string) rueidis.Cacheable {
		return b.Zrange().Key(a[1]).Min(a[2]).Max(a[3]).Cache()
	}},
	"ZSCORE": {3, func(b rueidis.Builder, a []string) rueidis.Cacheable {
		return b.Zscore().Key(a[1]).Member(a[2]).Cache()
	}},
	"ZCARD": {2, func(b rueidis.Builder, a []string) rueidis.Cacheable { return b.Zcard().Key(a[1]).Cache() }},
	"GEOPOS": {3, func(b rueidis.Builder, a []string) rueidis.Cacheable {
		return b.Geopos().Key(a[1]).Member(a[2]).Cache()
	}},
	"TYPE": {2, func(b rueidis.Builder, a []string) rueidis.Cacheable { return b.Type().Key(a[1]).Cache() }},
}

// sameAll compares the replies to commands that went together.
func (p *twins) sameAll(cmds []command, got, want []rueidis.RedisResult) {
	p.t.Helper()
	var queued []string
	for i, c := range cmds {
		switch c.name() {
		case "EXEC":
			p.sameExec(cmds, queued, got[i], want[i])
			continue
		case "MULTI":
		default:
			if want[i].Error() == nil {
				queued = append(queued, c.name())
			}
		}
		p.same(c, c.name(), got[i], want[i])
	}
}

// sameExec compares the replies of a transaction, each as its own command's.
func (p *twins) sameExec(cmds []command, queued []string, got, want rueidis.RedisResult) {
	p.t.Helper()
	g, gotErr := got.ToArray()
	w, wantErr := want.ToArray()
	if fmt.Sprint(gotErr) != fmt.Sprint(wantErr) || len(g) != len(w) || wantErr == nil && len(w) != len(queued) {
		p.fail(cmds[1], "EXEC has %d replies, %v; a plain client gets %d, %v", len(g), gotErr, len(w), wantErr)
	}
	for i := range w {
		if a, b := replyText(queued[i], g[i]), replyText(queued[i], w[i]); a != b && !nearInTime(queued[i], g[i], w[i]) {
			p.fail(cmds[i+1], "in a transaction: %s; a plain client gets %s", a, b)
		}
	}
}

// same compares two replies to a command. name is the command whose reply it is.
func (p *twins) same(c command, name string, got, want rueidis.RedisResult) {
	p.t.Helper()
	for _, res := range []rueidis.RedisResult{got, want} {
		if err := res.NonRedisError(); err != nil {
			p.fail(c, "%v; health %+v", err, p.c.Health())
		}
	}
	g, _ := got.ToMessage()
	w, _ := want.ToMessage()
	if a, b := replyText(name, g), replyText(name, w); a != b && !nearInTime(name, g, w) {
		p.fail(c, "%s (hit: %v); a plain client gets %s", a, got.IsCacheHit(), b)
	}
}

// replyText is a reply in full, in one order where the command has none.
func replyText(name string, m rueidis.RedisMessage) string {
	return textOfReply(m, slices.Contains(unordered, name))
}

func textOfReply(m rueidis.RedisMessage, anyOrder bool) string {
	var shape struct{ Type string }
	_ = json.Unmarshal([]byte(m.String()), &shape)
	var parts []string
	switch {
	case m.IsMap():
		fields, _ := m.ToMap()
		for name, value := range fields {
			parts = append(parts, fmt.Sprintf("%q: %s", name, textOfReply(value, anyOrder)))
		}
		slices.Sort(parts)
	case m.IsArray():
		elements, _ := m.ToArray()
		for _, e := range elements {
			parts = append(parts, textOfReply(e, anyOrder))
		}
		if anyOrder {
			slices.Sort(parts)
		}
	case m.IsString():
		text, _ := m.ToString()
		return fmt.Sprintf("%s %q", shape.Type, text)
	case m.Error() != nil:
		return fmt.Sprintf("%s %v", shape.Type, m.Error())
	default:
		return cachedUntil.ReplaceAllString(m.String(), "")
	}
	return fmt.Sprintf("%s [%s]", shape.Type, strings.Join(parts, ", "))
}

// nearInTime reports whether two replies about the end of a key differ by the time only that lies
// between the two commands that set it. The ends that the test sets are further from each other.
func nearInTime(name string, a, b rueidis.RedisMessage) bool {
	most := int64(60)
	switch name {
	case "TTL", "EXPIRETIME":
	case "PTTL", "PEXPIRETIME":
		most *= 1000
	default:
		return false
	}
	x, errX := a.ToInt64()
	y, errY := b.ToInt64()
	return errX == nil && errY == nil && x > 0 && y > 0 && max(x-y, y-x) <= most
}

// sameContents compares the contents of the two servers, each key by the reads of its type.
func (p *twins) sameContents() {
	p.t.Helper()
	raw := rawAt(p.t, p.server.Addr())
	for _, key := range allKeys() {
		name, err := p.asked(command{args: []string{"TYPE", key}}).ToString()
		must(p.t, err)
		for _, args := range slices.Concat(wholes[name], [][]string{{"TYPE"}, {"PTTL"}}) {
			c := command{append([]string{args[0], key}, args[1:]...), []string{key}}
			p.same(c, c.name(), raw.Do(p.ctx, built(raw.B(), c.args)), p.asked(c))
			p.same(c, c.name(), p.ours.DoCache(p.ctx, forDoCache(p.ours.B(), c), time.Hour), p.asked(c))
		}
	}
}

// wholes are the commands that read all of a key, by its type. The key comes behind the name.
var wholes = map[string][][]string{
	"string": {{"GET"}},
	"hash":   {{"HGETALL"}},
	"list":   {{"LRANGE", "0", "-1"}},
	"set":    {{"SMEMBERS"}},
	"zset":   {{"ZRANGE", "0", "-1", "WITHSCORES"}},
	"stream": {{"XRANGE", "-", "+"}},
}

func (p *twins) happened(text string, keys []string) {
	p.log = append(p.log, event{p.step, text, keys})
}

// fail ends the test, with the last commands that named a key of c.
func (p *twins) fail(c command, format string, args ...any) {
	p.t.Helper()
	var last []string
	for _, e := range slices.Backward(p.log) {
		if e.keys != nil && !slices.ContainsFunc(e.keys, func(key string) bool { return slices.Contains(c.keys, key) }) {
			continue
		}
		if last = append(last, fmt.Sprintf("step %d: %s", e.step, e.text)); len(last) == 20 {
			break
		}
	}
	slices.Reverse(last)
	p.t.Fatalf("step %d: %q: %s\nits keys before:\n%s", p.step, c.args, fmt.Sprintf(format, args...), strings.Join(last, "\n"))
}

// steps is how long a differential test is.
func steps(t *testing.T, short, full int) int {
	if redistest.Full(t) {
		return full * roundsFactor(t)
	}
	return short * roundsFactor(t)
}

func TestCommandsOfAllTypesHaveTheRepliesOfAPlainClient(t *testing.T) {
	bothModes(t, func(t *testing.T, ctx context.Context, mode holdfast.TrackingMode) {
		s := redistest.Start(t)
		p := newTwins(t, ctx, cachingAt(s.Addr(), mode), s)
		p.readsBeside(2)
		p.run(steps(t, 200, 1500), p.killed)
	})
}

// The address leads to another server, which was a replica. It knows nothing of the reads that the
// first one has to tell of.
func TestCommandsOfAllTypesHaveTheRepliesOfAPlainClientOverAPromotion(t *testing.T) {
	bothModes(t, func(t *testing.T, ctx context.Context, mode holdfast.TrackingMode) {
		master, replica := replicated(t)
		way := redistest.NewProxy(t, master.Addr())
		p := newTwins(t, ctx, cachingAt(way.Addr(), mode), master)
		p.readsBeside(2)
		n, promotions := steps(t, 40, 100), 2
		if redistest.Full(t) {
			promotions = 4
		}
		for range promotions {
			p.run(n, p.killed)
			master.AwaitReplicas(1)
			p.lost("a promotion", func() {
				promote(t, replica, master)
				way.SetBackend(replica.Addr())
				way.CutAll()
				master, replica = replica, master
				p.server = master
			})
			p.run(n)
			master.AwaitReplicas(1)
		}
	})
}

func TestCommandsOfAllTypesHaveTheRepliesOfAPlainClientOverAFailover(t *testing.T) {
	bothModes(t, func(t *testing.T, ctx context.Context, mode holdfast.TrackingMode) {
		r := redistest.StartSentinel(t, 1)
		o := cachingAt("", mode)
		o.Redis = watched(r.Addrs()...).Redis
		p := newTwins(t, ctx, o, r.Master())
		p.readsBeside(2)
		n := steps(t, 40, 100)
		for range 3 {
			p.run(n, p.killed)
			old := p.server
			old.AwaitReplicas(1)
			p.lost("a failover", func() {
				old.Kill()
				redistest.WaitFor(t, patience, "another master", func() bool { return r.Master() != old })
				p.server = r.Master()
			})
			p.run(n)
			old.Restart()
			redistest.WaitFor(t, patience, "the old master to be a replica", func() bool { return role(old) == "slave" })
		}
	})
}

func resultText(c command, res rueidis.RedisResult) string {
	if err := res.NonRedisError(); err != nil {
		return err.Error()
	}
	m, _ := res.ToMessage()
	return replyText(c.name(), m)
}

// The server does not look for expired keys, so the Cache itself must know the end of a reply. Each
// read has a key of its own: it is the first that looks.
func TestNoCachedReplyOutlivesItsKey(t *testing.T) {
	bothModes(t, func(t *testing.T, ctx context.Context, mode holdfast.TrackingMode) {
		s := redistest.Start(t)
		fill(s)
		s.MustDo("DEBUG", "SET-ACTIVE-EXPIRE", "0")
		c := open(t, cachingAt(s.Addr(), mode))
		ready(t, c)
		cl, raw := c.Client(), rawAt(t, s.Addr())
		reads := make([]command, len(keptReads))
		for i, line := range keptReads {
			args := strings.Fields(line)
			key := fmt.Sprint(args[1], ":", i)
			made := raw.DoMulti(ctx, built(raw.B(), []string{"COPY", args[1], key}), built(raw.B(), []string{"PEXPIRE", key, "100"}))
			must(t, made[1].Error())
			args[1] = key
			reads[i].args = args
			for range 3 {
				cl.DoCache(ctx, forDoCache(cl.B(), reads[i]), time.Hour)
			}
		}
		passes(t, "the end of the keys", 103*time.Millisecond)
		told(t, c) // a server that was silent for long is asked anyway
		for _, read := range reads {
			got := resultText(read, cl.DoCache(ctx, forDoCache(cl.B(), read), time.Hour))
			if want := resultText(read, raw.Do(ctx, built(raw.B(), read.args))); got != want {
				t.Errorf("%q after the end of the key: %s; redis says %s", read.args, got, want)
			}
		}
	})
}

// Each command that may write comes by DoCache, twice: it must reach Redis each time, and end the
// replies of its keys.
func TestACommandThatMayWriteIsNoCachedRead(t *testing.T) {
	bothModes(t, func(t *testing.T, ctx context.Context, mode holdfast.TrackingMode) {
		s := redistest.Start(t)
		p := newTwins(t, ctx, cachingAt(s.Addr(), mode), s)
		for _, k := range kinds {
			k.keys = k.keys[:1] // which is filled
			for _, form := range slices.Concat(k.writes, writesOfAny) {
				fill(p.server)
				fill(p.plainServer)
				told(t, p.c)
				p.step++
				c := ofForm(p.r, form, &k)
				for _, key := range c.keys {
					p.lookAt(key)
				}
				p.happened(fmt.Sprintf("DoCache %q", c.args), c.keys)
				for range 2 {
					p.same(c, c.name(), p.ours.DoCache(ctx, forDoCache(p.ours.B(), c), time.Hour), p.asked(c))
				}
				for _, key := range c.keys {
					p.lookAt(key)
				}
			}
		}
		p.sameContents()
	})
}
