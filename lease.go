package holdfast

import (
	"context"
	"crypto/rand"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/flight"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
	"github.com/holdfast-cache/holdfast/internal/link"
	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/redis/rueidis"
)

// A lease is a key in Redis that keeps other processes from loading a key that one of them
// loads. The holder loads the value, then stores it and releases the lease in one script. A
// process that does not get the lease waits: it has read both the key and the lease, so the
// server announces a change of either. A failure around a lease costs an extra load, and
// nothing else.
//
// Delete removes the lease, too, because the server announces no change when the deleted key
// does not exist. Set need not: the script finds its value.

// leasePrefix begins the name of each lease.
const leasePrefix = "holdfast:lease:"

// leaseScript releases the lease KEYS[2], if it still holds the token ARGV[1]. Then, if
// ARGV[2] is "store" and the key is as it was before the load (absent, or a value of the
// digest ARGV[3]), it stores ARGV[4] for ARGV[5] ms (0 for no expiry) in KEYS[1]. It returns
// 1 if it has stored, else 0.
var leaseScript = link.NewScript(`
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[2])
if ARGV[2] ~= 'store' then return 0 end
local now = redis.call('GET', KEYS[1])
if ARGV[3] == '' then
  if now then return 0 end
elseif not now or redis.sha1hex(now) ~= ARGV[3] then
  return 0
end
if ARGV[5] == '0' then
  redis.call('SET', KEYS[1], ARGV[4])
else
  redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[5])
end
return 1
`)

// lease is a lease that this process holds.
type lease struct {
	name  string
	token string
	until int64 // after that it is not relied on
	spent bool  // the script has run
}

// leaseName returns the name of the key's lease. In a cluster key and lease are in one slot.
func leaseName(key string, inCluster bool) string {
	_, rest, tagged := strings.Cut(key, "{")
	if tagged {
		tag, _, closed := strings.Cut(rest, "}")
		tagged = closed && tag != ""
	}
	switch {
	case tagged || !inCluster:
		return leasePrefix + key
	case key != "" && !strings.Contains(key, "}"):
		return leasePrefix + "{" + key + "}"
	}
	// A brace without a partner would break the tag. Such keys are rare, so a tag of the
	// same slot is searched for each time.
	wantSlot := link.SlotOf(key)
	for i := 0; ; i++ {
		if tag := strconv.Itoa(i); link.SlotOf(tag) == wantSlot {
			return leasePrefix + "{" + tag + "}" + key
		}
	}
}

func (c *Cache) leaseName(key string) string {
	return leaseName(key, c.routes.Cluster.Load() != nil)
}

// command builds the command that runs leaseScript.
func (l *lease) command(b rueidis.Builder, it *link.Item, op, expects string, val []byte, ttl time.Duration) rueidis.Completed {
	return it.RunScript(b, &leaseScript, []string{it.Key, l.name},
		l.token, op, expects, link.ViewString(val), strconv.FormatInt(ttl.Milliseconds(), 10))
}

// leased is the result of waiting for a lease.
type leased uint8

const (
	loadFreely leased = iota // no lease can be had: load without
	loadLeased               // this process holds the lease
	loadNot                  // the flight has ended
)

// lease acquires a lease for the request's key. If another process has it, lease waits for
// that process' result, for at most LoadOptions.Lease.
func (c *Cache) lease(ctx context.Context, r *request, it *loadItem) (*lease, leased) {
	if r.o.Lease <= 0 || r.batch || !it.answered || c.routes == nil {
		return nil, loadFreely
	}
	began := c.clock.Now()
	l := &lease{name: c.leaseName(it.key), token: c.holder + rand.Text()}
	news := make(chan struct{}, 1)
	for _, h := range []keyhash.Hash{it.h, c.local.Hash(l.name)} {
		c.flights.Listen(h, news)
		defer c.flights.Unlisten(h, news)
	}
	for try := 0; ; try++ {
		if !c.flights.Keeps(it.f) {
			return nil, loadFreely
		}
		// Before the server is asked, so that no break of the stream is missed.
		broken := c.routes.Link(c.routes.Of(it.key)).Stream()
		a := c.askLease(ctx, r, it, l)
		switch {
		case a.found:
			return nil, loadNot
		case !a.answered:
			c.flights.Load(it.f, true)
			return nil, loadFreely
		case a.held && a.invalidated && c.findAgain(ctx, r, it):
			c.giveBack(it.key, l)
			return nil, loadNot
		case a.held:
			return l, loadLeased
		case a.ours:
			return nil, loadFreely
		case r.early && !it.f.Run.Awaited():
			// Another process loads the key, and no caller waits here.
			c.flights.End(it.f, Entry{}, flight.ErrAgain, min(restTime, a.wait))
			return nil, loadNot
		}
		if try == 0 {
			c.stats.leaseWaits.Add(1)
			defer func() { c.stats.leaseTook.Record(time.Duration(c.clock.Now() - began)) }()
		}
		patience := r.o.Lease - time.Duration(c.clock.Now()-began)
		if patience <= 0 {
			return nil, loadFreely
		}
		t := time.NewTimer(min(patience, a.wait))
		select {
		case <-news:
		case <-broken: // the message that ends the wait may never come
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
		switch {
		case ctx.Err() != nil:
			c.flights.Abort(it.f, flight.ErrAgain)
			return nil, loadNot
		case c.findAgain(ctx, r, it):
			return nil, loadNot
		case !it.answered:
			return nil, loadFreely
		}
	}
}

// findAgain is find for a caller outside of the call gate.
func (c *Cache) findAgain(ctx context.Context, r *request, it *loadItem) bool {
	v := c.inflight.Guard()
	defer v.Leave()
	if c.find(ctx, r, it, v) {
		return true
	}
	if it.token.Scope == nil { // ctx has ended: abandoned
		c.flights.Abort(it.f, flight.ErrAgain)
		return true
	}
	return false
}

// leaseAnswer is Redis' answer to a request for a lease.
type leaseAnswer struct {
	answered    bool
	held        bool
	ours        bool // a superseded load of this Cache holds it
	invalidated bool // the key was invalidated meanwhile: it must be read anew
	found       bool // the key was there by now, and the flight has ended with it
	wait        time.Duration
}

// askLease tries to take the lease, and reads its remaining time and the key: the last holder
// may have stored the key since it was last read.
func (c *Cache) askLease(ctx context.Context, r *request, it *loadItem, l *lease) (a leaseAnswer) {
	s := c.routes.Link(c.routes.Of(it.key)).Writer(false)
	if s == nil {
		return a
	}
	v := c.inflight.Guard()
	defer v.Leave()
	if !v.Open {
		return a
	}
	now := c.clock.Now()
	c.flights.Arm(it.f)
	t := c.local.Token(it.h, c.scopeOf(it.key))
	bounded, cancel := c.remote.Bound(ctx, now)
	defer cancel()
	replies, o := c.remote.One(bounded, s, it.key, 5, func(b rueidis.Builder, _ *link.Item, cmds []rueidis.Completed) []rueidis.Completed {
		return append(cmds,
			b.Set().Key(l.name).Value(l.token).Nx().Px(r.o.Lease).Build(),
			b.Pttl().Key(l.name).Build(),
			b.Get().Key(l.name).Build(),
			b.Get().Key(it.key).Build(),
			b.Pttl().Key(it.key).Build())
	})
	if o.Class == rediserr.OK || o.Class == rediserr.Command {
		s.Lacks.Note(link.LackLeases, o.Class == rediserr.Command)
	}
	if o.Class != rediserr.OK {
		return a
	}
	a.answered = true
	a.held = !rueidis.IsRedisNil(replies[0].Error())
	l.until = clock.After(now, r.o.Lease)
	if holder, err := replies[2].ToString(); err == nil && !a.held {
		a.ours = strings.HasPrefix(holder, c.holder)
	}
	ms, _ := replies[1].AsInt64()
	a.wait = max(link.Millis(ms), time.Millisecond)
	if !s.Tracks(l.name) {
		a.wait = min(a.wait, max(r.o.Lease/10, time.Millisecond))
	}
	if val, got := link.ReadValue(replies[3:], o); !r.early && got.Class == rediserr.OK && val.Found {
		e, _ := c.readOutcome(r.op, it.h, it.key, now, t, val, got)
		if r.usable.of(it.key, e.Value, v) {
			if a.held {
				c.giveBack(it.key, l)
			}
			a.found = true
			c.flights.End(it.f, e, nil, 0)
			return a
		}
		it.base, it.seen = digestOf(e.Value), c.local.Get(it.h) // to be overwritten if unchanged
	} else if !r.early {
		it.base = ""
	}
	a.invalidated = !c.flights.Load(it.f, false)
	return a
}

// giveBack releases a lease that is still ours, and waits for Redis within the budget. The
// server then invalidates the lease in the processes that wait for it.
func (c *Cache) giveBack(key string, l *lease) {
	if l == nil || l.spent {
		return
	}
	l.spent = true
	s := c.routes.Link(c.routes.Of(key)).Writer(false)
	if s == nil {
		return // the lease expires by itself
	}
	bounded, cancel := c.remote.Bound(context.Background(), c.clock.Now())
	defer cancel()
	_, o := c.remote.One(bounded, s, key, 1, func(b rueidis.Builder, it *link.Item, cmds []rueidis.Completed) []rueidis.Completed {
		return append(cmds, l.command(b, it, "release", "", nil, 0))
	})
	if o.Class == rediserr.Command && !l.outlived(c.clock.Now()) {
		c.remote.One(bounded, s, key, 1, func(b rueidis.Builder, _ *link.Item, cmds []rueidis.Completed) []rueidis.Completed {
			return append(cmds, b.Del().Key(l.name).Build())
		})
	}
}

// outlived reports whether there is no lease, or it is too old to be relied on: the value is
// then stored without one.
func (l *lease) outlived(now int64) bool { return l == nil || now >= l.until }

// withoutScripts reports whether a write failed because the server runs no scripts.
func withoutScripts(err error) bool {
	var re *rueidis.RedisError
	return errors.As(err, &re) && link.NoScripts(re)
}

// storeScript stores ARGV[2] for ARGV[3] ms (0 for no expiry) in KEYS[1], if that holds a
// value of the digest ARGV[1]. It returns 1 if it has stored, else 0.
var storeScript = link.NewScript(`
local now = redis.call('GET', KEYS[1])
if not now or redis.sha1hex(now) ~= ARGV[1] then return 0 end
if ARGV[3] == '0' then
  redis.call('SET', KEYS[1], ARGV[2])
else
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
return 1
`)

// loadedCommand builds the command that stores a loaded value if the key is as it was before
// the load: a client that has written it since has stored a newer value, announced to us or
// not.
func (w *write) loadedCommand(b rueidis.Builder, it *link.Item) rueidis.Completed {
	var cmd rueidis.Completed
	switch {
	case w.lease != nil:
		cmd = w.lease.command(b, it, "store", w.expects, w.value, w.ttl)
	case w.expects != "":
		cmd = it.RunScript(b, &storeScript, []string{w.key}, w.expects, link.ViewString(w.value), strconv.FormatInt(w.ttl.Milliseconds(), 10))
	case w.ttl > 0:
		cmd = b.Set().Key(w.key).Value(link.ViewString(w.value)).Nx().PxMilliseconds(w.ttl.Milliseconds()).Build()
	default:
		cmd = b.Set().Key(w.key).Value(link.ViewString(w.value)).Nx().Build()
	}
	return link.Kept(cmd, len(w.value))
}

// scripted reports whether loadedCommand builds a script for the write.
func (w *write) scripted() bool {
	return w.flight != nil && !w.del && !w.blindly && (w.lease != nil || w.expects != "")
}

// wasStored reports whether loadedCommand's command has stored the value.
func wasStored(reply rueidis.RedisResult) bool {
	if n, err := reply.AsInt64(); err == nil {
		return n == 1 // a script's answer
	}
	return reply.Error() == nil
}

// digestOf returns a value's digest in the scripts' form: SHA-1, in hexadecimal.
func digestOf(val []byte) string {
	sum := sha1.Sum(val)
	return hex.EncodeToString(sum[:])
}
