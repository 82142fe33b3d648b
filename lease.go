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

	"github.com/redis/rueidis"
)

// A lease is a key in Redis that keeps the other processes from loading what one of
// them loads. Who has it loads, stores and gives it back in one script. Who cannot
// have it waits: it has read both the key and the lease, so the server tells when
// either changes. Whatever goes wrong with a lease costs a load too many, and nothing
// else.
//
// A Delete takes the lease away: the server tells of no change when what is deleted
// was not there. A Set need not, for the script finds its value.

// leasePrefix begins the name of each lease.
const leasePrefix = "holdfast:lease:"

// leaseScript gives the lease KEYS[2] back, if it is still ARGV[1]'s, and then stores
// ARGV[4] for ARGV[5] ms (0 for no expiry) in KEYS[1], where ARGV[2] is "store" and
// the key is what it was before the load: absent, or of the digest ARGV[3]. It says
// whether it has stored.
const leaseScript = `
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
`

// lease is one that this process has.
type lease struct {
	name  string
	token string
	until int64 // it is not counted on any longer
	spent bool  // the script has run
}

// leaseName is the name of the key's lease. In a cluster both are in one slot.
func leaseName(key string, cluster bool) string {
	_, rest, tagged := strings.Cut(key, "{")
	if tagged {
		tag, _, closed := strings.Cut(rest, "}")
		tagged = closed && tag != ""
	}
	switch {
	case tagged || !cluster:
		return leasePrefix + key
	case key != "" && !strings.Contains(key, "}"):
		return leasePrefix + "{" + key + "}"
	}
	// A brace that closes nothing would end the tag. Few keys have one, so a tag of the
	// same slot is looked for each time.
	slot := slotOf(key)
	for i := 0; ; i++ {
		if tag := strconv.Itoa(i); slotOf(tag) == slot {
			return leasePrefix + "{" + tag + "}" + key
		}
	}
}

func (c *Cache) leaseName(key string) string {
	return leaseName(key, c.routes.cluster.Load() != nil)
}

// command is the script's.
func (l *lease) command(b rueidis.Builder, key, op, base string, value []byte, ttl time.Duration) rueidis.Completed {
	return b.Eval().Script(leaseScript).Numkeys(2).Key(key, l.name).
		Arg(l.token, op, base, viewString(value), strconv.FormatInt(ttl.Milliseconds(), 10)).Build()
}

// leased is what became of the wait for a lease.
type leased uint8

const (
	loadFreely leased = iota // there is none to be had: load without
	loadLeased               // it is ours
	loadNot                  // the flight has ended
)

// lease gets the request's key a lease, and waits for who has it, for no longer than
// a lease lasts.
func (c *Cache) lease(ctx context.Context, r *request, it *loadItem) (*lease, leased) {
	if r.o.Lease <= 0 || r.batch || !it.answered || c.routes == nil {
		return nil, loadFreely
	}
	began := c.clock.now()
	l := &lease{name: c.leaseName(it.key), token: c.holder + rand.Text()}
	news := make(chan struct{}, 1)
	for _, h := range []keyHash{it.h, c.local.hash(l.name)} {
		c.flights.listen(h, news)
		defer c.flights.unlisten(h, news)
	}
	for try := 0; ; try++ {
		if !c.flights.keeps(it.f) {
			return nil, loadFreely
		}
		// Before the server is asked, so that no loss of it is missed.
		broken := c.routes.link(c.routes.of(it.key)).stream()
		a := c.askLease(ctx, r, it, l)
		switch {
		case a.found:
			return nil, loadNot
		case !a.answered:
			c.flights.load(it.f, true)
			return nil, loadFreely
		case a.held && a.told && c.findAgain(ctx, r, it):
			c.giveBack(it.key, l)
			return nil, loadNot
		case a.held:
			return l, loadLeased
		case a.ours:
			return nil, loadFreely
		case r.early && !it.f.run.awaited():
			// Somebody else is at it, and nobody waits.
			c.flights.end(it.f, Entry{}, errAgain, min(restTime, a.wait))
			return nil, loadNot
		}
		if try == 0 {
			c.stats.leaseWaits.Add(1)
		}
		patience := r.o.Lease - time.Duration(c.clock.now()-began)
		if patience <= 0 {
			return nil, loadFreely
		}
		t := time.NewTimer(min(patience, a.wait))
		select {
		case <-news:
		case <-broken: // nobody will tell of the end of the wait
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
		switch {
		case ctx.Err() != nil:
			c.flights.abort(it.f, errAgain)
			return nil, loadNot
		case c.findAgain(ctx, r, it):
			return nil, loadNot
		case !it.answered:
			return nil, loadFreely
		}
	}
}

// findAgain is find for who is not inside the fence.
func (c *Cache) findAgain(ctx context.Context, r *request, it *loadItem) bool {
	v := c.fence.visit()
	defer v.leave()
	if c.find(ctx, r, it, v) {
		return true
	}
	if it.token.domain == nil { // ctx has ended: nobody waits
		c.flights.abort(it.f, errAgain)
		return true
	}
	return false
}

// leaseAnswer is what Redis said to who asked for a lease.
type leaseAnswer struct {
	answered bool
	held     bool
	ours     bool // a load of this Cache has it that a write came over
	told     bool // the server told of the key meanwhile: it must be read anew
	found    bool // the key was there by now, and the flight has ended with it
	wait     time.Duration
}

// askLease asks for the lease, how long it lasts, and for the key once more: who had
// the lease may have stored it since it was last read.
func (c *Cache) askLease(ctx context.Context, r *request, it *loadItem, l *lease) (a leaseAnswer) {
	s := c.routes.link(c.routes.of(it.key)).writer(false)
	if s == nil {
		return a
	}
	v := c.fence.visit()
	defer v.leave()
	if !v.open {
		return a
	}
	now := c.clock.now()
	c.flights.arm(it.f)
	t := c.local.token(it.h, c.domainOf(it.key))
	bounded, cancel := c.remote.bound(ctx, now)
	defer cancel()
	replies, o := c.remote.one(bounded, s, it.key, 5, func(b rueidis.Builder, _ *item, cmds []rueidis.Completed) []rueidis.Completed {
		return append(cmds,
			b.Set().Key(l.name).Value(l.token).Nx().Px(r.o.Lease).Build(),
			b.Pttl().Key(l.name).Build(),
			b.Get().Key(l.name).Build(),
			b.Get().Key(it.key).Build(),
			b.Pttl().Key(it.key).Build())
	})
	if o.class == classOK || o.class == classCommand {
		s.lacks.note(lackLeases, o.class == classCommand)
	}
	if o.class != classOK {
		return a
	}
	a.answered = true
	a.held = !rueidis.IsRedisNil(replies[0].Error())
	l.until = after(now, r.o.Lease)
	if holder, err := replies[2].ToString(); err == nil && !a.held {
		a.ours = strings.HasPrefix(holder, c.holder)
	}
	ms, _ := replies[1].AsInt64()
	a.wait = max(millis(ms), time.Millisecond)
	if !s.tells(l.name) {
		a.wait = min(a.wait, max(r.o.Lease/10, time.Millisecond))
	}
	if value, got := readValue(replies[3:], o); !r.early && got.class == classOK && value.found {
		e, _ := c.readOutcome(r.op, it.h, it.key, now, t, value, got)
		if r.usable.of(it.key, e.Value, v) {
			if a.held {
				c.giveBack(it.key, l)
			}
			a.found = true
			c.flights.end(it.f, e, nil, 0)
			return a
		}
		it.base, it.seen = digestOf(e.Value), c.local.get(it.h) // to be written over, if it is still there
	} else if !r.early {
		it.base = ""
	}
	a.told = !c.flights.load(it.f, false)
	return a
}

// giveBack ends a lease that is still ours, and waits for that within the budget. Who
// waits for the lease is told.
func (c *Cache) giveBack(key string, l *lease) {
	if l == nil || l.spent {
		return
	}
	l.spent = true
	s := c.routes.link(c.routes.of(key)).writer(false)
	if s == nil {
		return // it ends by itself
	}
	bounded, cancel := c.remote.bound(context.Background(), c.clock.now())
	defer cancel()
	_, o := c.remote.one(bounded, s, key, 1, func(b rueidis.Builder, _ *item, cmds []rueidis.Completed) []rueidis.Completed {
		return append(cmds, l.command(b, key, "release", "", nil, 0))
	})
	if o.class == classCommand && !l.outlived(c.clock.now()) {
		c.remote.one(bounded, s, key, 1, func(b rueidis.Builder, _ *item, cmds []rueidis.Completed) []rueidis.Completed {
			return append(cmds, b.Del().Key(l.name).Build())
		})
	}
}

// outlived says that the lease was lost, or is too old to be counted on: then the
// value goes the way of one without.
func (l *lease) outlived(now int64) bool { return l == nil || now >= l.until }

// withoutScripts says that a write failed because the server runs no scripts.
func withoutScripts(err error) bool {
	var re *rueidis.RedisError
	return errors.As(err, &re) && noScripts(re)
}

// storeScript stores ARGV[2] for ARGV[3] ms (0 for no expiry) in KEYS[1], if that holds
// a value of the digest ARGV[1].
const storeScript = `
local now = redis.call('GET', KEYS[1])
if not now or redis.sha1hex(now) ~= ARGV[1] then return 0 end
if ARGV[3] == '0' then
  redis.call('SET', KEYS[1], ARGV[2])
else
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
return 1
`

// loadedCommand stores what was loaded, if the key is what it was before the load:
// whoever has written it since has something newer, heard of or not.
func (w *change) loadedCommand(b rueidis.Builder) rueidis.Completed {
	var cmd rueidis.Completed
	switch {
	case w.lease != nil:
		cmd = w.lease.command(b, w.key, "store", w.expects, w.value, w.ttl)
	case w.expects != "":
		cmd = b.Eval().Script(storeScript).Numkeys(1).Key(w.key).
			Arg(w.expects, viewString(w.value), strconv.FormatInt(w.ttl.Milliseconds(), 10)).Build()
	case w.ttl > 0:
		cmd = b.Set().Key(w.key).Value(viewString(w.value)).Nx().PxMilliseconds(w.ttl.Milliseconds()).Build()
	default:
		cmd = b.Set().Key(w.key).Value(viewString(w.value)).Nx().Build()
	}
	return kept(cmd, len(w.value))
}

// scripted says whether the change is loadedCommand's, and that is a script.
func (w *change) scripted() bool {
	return w.flight != nil && !w.del && !w.blindly && (w.lease != nil || w.expects != "")
}

// wasStored reads the answer.
func wasStored(reply rueidis.RedisResult) bool {
	if n, err := reply.AsInt64(); err == nil {
		return n == 1 // a script's
	}
	return reply.Error() == nil
}

// digestOf is the digest of a value as the scripts compare it.
func digestOf(value []byte) string {
	sum := sha1.Sum(value)
	return hex.EncodeToString(sum[:])
}
