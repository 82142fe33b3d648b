package holdfast

import (
	"strings"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
	"github.com/holdfast-cache/holdfast/internal/link"
	"github.com/holdfast-cache/holdfast/internal/local"
	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/redis/rueidis"
)

// GET, MGET, EXISTS and TTL of the drop-in client.

// read handles GET of one key, or one key's part of MGET.
func (r *pipelineCall) read(st *commandState, at int, key string) {
	c := r.c
	h := c.local.Hash(key)
	c.local.CountRead(h)
	e, fresh := c.look(h, key, r.now)
	if fresh && st.takes(e, r.now) && !r.isDirty(key) {
		r.found(st, at, Entry{Value: e.Bytes(), Tier: Local, TTL: clock.Left(r.now, e.Expires.Load())}, e)
		return
	}
	if fromJournal, live, journaled := c.journaled(h, key, r.now); live {
		r.found(st, at, fromJournal, nil)
		return
	} else if journaled {
		r.missed(st, at)
		return
	}
	if err := checkKey(key); err != nil {
		c.counted(Entry{}, err)
		st.fail("", err)
		return
	}
	if c.routes == nil {
		r.fallback(st, at, e)
		return
	}
	s, t := c.readerOf(h, key)
	if s == nil && c.remote.AwaitKey(r.ctx, r.now, false, key) {
		s, t = c.readerOf(h, key)
	}
	if s == nil {
		r.fallback(st, at, c.local.Get(h))
		return
	}
	r.add(&remoteOp{command: st, kind: opRead, key: key, hash: h, at: at, token: t}, s)
}

// takes reports whether a fresh copy is young enough for the ttl of DoCache.
func (st *commandState) takes(e *local.Entry, now int64) bool {
	return !st.cache || young(e, now, st.cached)
}

// young reports whether the copy is younger than ttl.
func young(e *local.Entry, now int64, ttl time.Duration) bool { return now < youngUntil(e, ttl) }

// youngUntil returns the time until which a copy is younger than ttl.
func youngUntil(e *local.Entry, ttl time.Duration) int64 {
	return clock.Saturated(e.Confirmed.Load(), int64(ttl))
}

// cachedUntil returns the time until which DoCache may go on serving a copy with the given ttl.
func cachedUntil(e *local.Entry, ttl time.Duration) int64 {
	return min(youngUntil(e, ttl), e.Expires.Load())
}

func (r *pipelineCall) fallback(st *commandState, at int, e *local.Entry) {
	standIn, err := r.c.fallback(e, r.now)
	if err != nil {
		r.missed(st, at)
		return
	}
	r.found(st, at, standIn, e)
}

func (r *pipelineCall) hasRead(e *remoteOp, replies []rueidis.RedisResult, o link.Outcome) {
	st, c := e.command, r.c
	v, o := link.ReadValue(replies, o)
	switch o.Class {
	case rediserr.OK:
	case rediserr.Canceled:
		c.counted(Entry{}, o.Err)
		st.decide(rueidis.NewErrorResult(o.Err))
		return
	case rediserr.Command:
		if st.verb == verbMget && strings.HasPrefix(o.Err.Error(), "WRONGTYPE") {
			r.missed(st, e.at) // MGET has no errors of single keys
			return
		}
		c.counted(Entry{}, o.Err)
		st.decide(replies[0])
		return
	default:
		// An earlier write of this call may have gone to the journal.
		if fromJournal, live, journaled := c.journaled(e.hash, e.key, r.now); live {
			r.found(st, e.at, fromJournal, nil)
			return
		} else if journaled {
			r.missed(st, e.at)
			return
		}
	}
	got, err := c.readOutcome(st.name, e.hash, e.key, r.now, e.token, v, o)
	if err != nil {
		r.missed(st, e.at)
		return
	}
	r.found(st, e.at, got, nil)
}

// found gives the turn its value. e is the copy that the value came from, nil for none.
func (r *pipelineCall) found(st *commandState, at int, got Entry, e *local.Entry) {
	r.c.counted(got, nil)
	m := r.cl.answers.text(got.Value)
	if st.cache {
		r.cl.answers.cached(&m, got, e, r.now, st.cached)
	}
	r.put(st, at, m)
}

// cached sets the expiry of an answer to DoCache, and marks whether it was a cache hit.
func (a *answers) cached(m *rueidis.RedisMessage, got Entry, e *local.Entry, now int64, ttl time.Duration) {
	if e != nil {
		ttl -= time.Duration(now - e.Confirmed.Load())
	}
	if got.TTL > 0 {
		ttl = min(ttl, got.TTL)
	}
	end := unixMillis(max(ttl, time.Millisecond))
	if got.Tier == Local {
		a.asHit(m, end)
	} else {
		a.asCached(m, end)
	}
}

func (r *pipelineCall) missed(st *commandState, at int) {
	r.c.counted(Entry{}, ErrMiss)
	r.put(st, at, r.cl.answers.null)
}

func (r *pipelineCall) put(st *commandState, at int, m rueidis.RedisMessage) {
	if st.verb == verbMget {
		st.parts[at] = m
		return
	}
	st.decide(replied(m))
}

// exists handles one key's part of EXISTS.
func (r *pipelineCall) exists(st *commandState, key string) {
	c := r.c
	h := c.local.Hash(key)
	if _, fresh := c.look(h, key, r.now); fresh && !r.isDirty(key) {
		c.stats.asides.Add(1)
		st.sum++
		return
	}
	if _, live, journaled := c.journaled(h, key, r.now); journaled {
		if live {
			st.sum++
		}
		return
	}
	r.ask(st, h, key, c.knowsExists)
}

// ttl handles TTL and its variants. EXPIRETIME and PEXPIRETIME return a Unix time that must be
// exact to the unit, so they are answered by Redis while it is there.
func (r *pipelineCall) ttl(st *commandState, key string) {
	c := r.c
	h := c.local.Hash(key)
	e, fresh := c.look(h, key, r.now)
	// A copy whose expiry is too far away to be stored cannot answer either.
	if fresh && !strings.HasSuffix(st.name, "TIME") && e.Expires.Load() != clock.Far && !r.isDirty(key) {
		c.stats.asides.Add(1)
		r.tellTTL(st, clock.Left(r.now, e.Expires.Load()))
		return
	}
	if fromJournal, live, journaled := c.journaled(h, key, r.now); live {
		r.tellTTL(st, fromJournal.TTL)
		return
	} else if journaled {
		st.decide(replied(r.cl.answers.number(-2)))
		return
	}
	r.ask(st, h, key, c.knownTTL)
}

// ask adds a remote operation for a value that is not known locally. While Redis is away it answers
// from the local tier instead.
func (r *pipelineCall) ask(st *commandState, h keyhash.Hash, key string, known func(*local.Entry, int64) (time.Duration, error)) {
	c := r.c
	if err := checkKey(key); err != nil {
		st.fail("", err)
		return
	}
	var s *link.Session
	if c.routes != nil {
		if s = c.routes.Link(c.routes.Of(key)).Reader(); s == nil {
			c.remote.AwaitKey(r.ctx, r.now, true, key)
			s = c.routes.Link(c.routes.Of(key)).Reader()
		}
	}
	if s == nil {
		ttl, err := known(c.local.Get(h), r.now)
		r.askedNobody(st, key, ttl, err)
		return
	}
	r.add(&remoteOp{command: st, kind: opAsk, key: key, hash: h}, s)
}

// knowsExists is knownTTL for EXISTS.
func (c *Cache) knowsExists(e *local.Entry, now int64) (time.Duration, error) {
	return c.knownTTL(e, now)
}

// askedNobody answers the turn without Redis.
func (r *pipelineCall) askedNobody(st *commandState, key string, ttl time.Duration, err error) {
	switch {
	case err == ErrMiss && st.verb == verbExists:
	case err == ErrMiss:
		st.decide(replied(r.cl.answers.number(-2)))
	case err != nil:
		st.fail(key, err)
	case st.verb == verbExists:
		st.sum++
	default:
		r.tellTTL(st, ttl)
	}
}

func (r *pipelineCall) hasAsked(e *remoteOp, replies []rueidis.RedisResult, o link.Outcome) {
	st := e.command
	switch o.Class {
	case rediserr.OK, rediserr.Command:
		if n, err := replies[0].AsInt64(); err == nil && st.verb == verbExists {
			st.sum += n
			return
		}
		st.decide(replies[0])
	case rediserr.Canceled:
		st.decide(rueidis.NewErrorResult(o.Err))
	default:
		var ttl time.Duration
		fromJournal, live, journaled := r.c.journaled(e.hash, e.key, r.now)
		err := ErrMiss
		switch {
		case live:
			ttl, err = fromJournal.TTL, nil
		case !journaled:
			ttl, err = r.c.knownTTL(r.c.local.Get(e.hash), r.now)
		}
		if err == ErrUnavailable {
			err = link.Unavailable{Cause: o.Err}
		}
		r.askedNobody(st, e.key, ttl, err)
	}
}

// tellTTL answers TTL and its variants. left is the remaining life of the key, 0 for no expiry.
func (r *pipelineCall) tellTTL(st *commandState, ttl time.Duration) {
	ms := ttl.Milliseconds()
	if strings.HasSuffix(st.name, "TIME") {
		ms = time.Now().Add(ttl).UnixMilli()
	}
	n := ms
	if !strings.HasPrefix(st.name, "P") {
		n = (ms + 500) / 1000
	}
	if ttl == 0 {
		n = -1
	}
	st.decide(replied(r.cl.answers.number(n)))
}
