package holdfast

import (
	"strings"
	"time"

	"github.com/redis/rueidis"
)

// GET, MGET, EXISTS and TTL of the drop-in client.

// read is GET of one key, or its part of MGET.
func (r *call) read(st *turn, at int, key string) {
	c := r.c
	h := c.local.hash(key)
	e, fresh := c.look(h, key, r.now)
	if fresh && st.takes(e, r.now) && !r.waits(key) {
		r.found(st, at, Entry{Value: e.bytes(), Tier: Local, TTL: left(r.now, e.expires.Load())}, e)
		return
	}
	if kept, found, fenced := c.journaled(h, key, r.now); found {
		r.found(st, at, kept, nil)
		return
	} else if fenced {
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
	if s == nil && c.awaitKey(r.ctx, r.now, false, key) {
		s, t = c.readerOf(h, key)
	}
	if s == nil {
		r.fallback(st, at, c.local.get(h))
		return
	}
	r.add(&errand{turn: st, job: jobRead, key: key, hash: h, at: at, token: t}, s)
}

// takes says whether a fresh copy is young enough for DoCache's ttl.
func (st *turn) takes(e *entry, now int64) bool {
	return !st.cache || young(e, now, st.cached)
}

// young says whether a copy may be served to who takes none older than ttl.
func young(e *entry, now int64, ttl time.Duration) bool {
	return now-e.confirmed.Load() < int64(ttl)
}

func (r *call) fallback(st *turn, at int, e *entry) {
	kept, err := r.c.fallback(e, r.now)
	if err != nil {
		r.missed(st, at)
		return
	}
	r.found(st, at, kept, e)
}

func (r *call) hasRead(e *errand, replies []rueidis.RedisResult, o outcome) {
	st, c := e.turn, r.c
	v, o := readValue(replies, o)
	switch o.class {
	case classOK:
	case classCanceled:
		c.counted(Entry{}, o.err)
		st.decide(rueidis.NewErrorResult(o.err))
		return
	case classCommand:
		if st.verb == verbMget && strings.HasPrefix(o.err.Error(), "WRONGTYPE") {
			r.missed(st, e.at) // MGET has no errors of single keys
			return
		}
		c.counted(Entry{}, o.err)
		st.decide(replies[0])
		return
	default:
		// A write before it in this call may have gone to the journal.
		if kept, found, fenced := c.journaled(e.hash, e.key, r.now); found {
			r.found(st, e.at, kept, nil)
			return
		} else if fenced {
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

// found gives the turn its value. e is the copy that it came from, nil for none.
func (r *call) found(st *turn, at int, got Entry, e *entry) {
	r.c.counted(got, nil)
	m := r.cl.answers.text(got.Value)
	if st.cache {
		r.cl.answers.cached(&m, got, e, r.now, st.cached)
	}
	r.put(st, at, m)
}

// cached gives the answer to DoCache its end, and says where it came from.
func (a *answers) cached(m *rueidis.RedisMessage, got Entry, e *entry, now int64, ttl time.Duration) {
	if e != nil {
		ttl -= time.Duration(now - e.confirmed.Load())
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

func (r *call) missed(st *turn, at int) {
	r.c.counted(Entry{}, ErrMiss)
	r.put(st, at, r.cl.answers.null)
}

func (r *call) put(st *turn, at int, m rueidis.RedisMessage) {
	if st.verb == verbMget {
		st.parts[at] = m
		return
	}
	st.decide(replied(m))
}

// exists is one key's part of EXISTS.
func (r *call) exists(st *turn, key string) {
	c := r.c
	h := c.local.hash(key)
	if _, fresh := c.look(h, key, r.now); fresh && !r.waits(key) {
		c.stats.asides.Add(1)
		st.sum++
		return
	}
	if _, found, fenced := c.journaled(h, key, r.now); fenced {
		if found {
			st.sum++
		}
		return
	}
	r.ask(st, h, key, c.knowsExists)
}

// ttl is TTL and its kin. Those that name a moment of Unix time are Redis' to answer,
// to the unit, for as long as it is there.
func (r *call) ttl(st *turn, key string) {
	c := r.c
	h := c.local.hash(key)
	e, fresh := c.look(h, key, r.now)
	// Nor is the copy asked whose end is too far away to be known to it.
	if fresh && !strings.HasSuffix(st.name, "TIME") && e.expires.Load() != far && !r.waits(key) {
		c.stats.asides.Add(1)
		r.tellTTL(st, left(r.now, e.expires.Load()))
		return
	}
	if kept, found, fenced := c.journaled(h, key, r.now); found {
		r.tellTTL(st, kept.TTL)
		return
	} else if fenced {
		st.decide(replied(r.cl.answers.number(-2)))
		return
	}
	r.ask(st, h, key, c.knownTTL)
}

// ask makes an errand of what is not known, and answers by what is known without Redis
// where it is away.
func (r *call) ask(st *turn, h keyHash, key string, known func(*entry, int64) (time.Duration, error)) {
	c := r.c
	if err := checkKey(key); err != nil {
		st.fail("", err)
		return
	}
	var s *session
	if c.routes != nil {
		if s = c.routes.link(c.routes.of(key)).reader(); s == nil {
			c.awaitKey(r.ctx, r.now, true, key)
			s = c.routes.link(c.routes.of(key)).reader()
		}
	}
	if s == nil {
		ttl, err := known(c.local.get(h), r.now)
		r.askedNobody(st, key, ttl, err)
		return
	}
	r.add(&errand{turn: st, job: jobAsk, key: key, hash: h}, s)
}

// knowsExists is knownTTL for EXISTS.
func (c *Cache) knowsExists(e *entry, now int64) (time.Duration, error) { return c.knownTTL(e, now) }

// askedNobody is an answer without Redis.
func (r *call) askedNobody(st *turn, key string, ttl time.Duration, err error) {
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

func (r *call) hasAsked(e *errand, replies []rueidis.RedisResult, o outcome) {
	st := e.turn
	switch o.class {
	case classOK, classCommand:
		if n, err := replies[0].AsInt64(); err == nil && st.verb == verbExists {
			st.sum += n
			return
		}
		st.decide(replies[0])
	case classCanceled:
		st.decide(rueidis.NewErrorResult(o.err))
	default:
		var ttl time.Duration
		kept, found, fenced := r.c.journaled(e.hash, e.key, r.now)
		err := ErrMiss
		switch {
		case found:
			ttl, err = kept.TTL, nil
		case !fenced:
			ttl, err = r.c.knownTTL(r.c.local.get(e.hash), r.now)
		}
		if err == ErrUnavailable {
			err = unavailable{o.err}
		}
		r.askedNobody(st, e.key, ttl, err)
	}
}

// tellTTL answers TTL and its kin by what is left of a key's life, 0 for no end.
func (r *call) tellTTL(st *turn, left time.Duration) {
	ms := left.Milliseconds()
	if strings.HasSuffix(st.name, "TIME") {
		ms = time.Now().Add(left).UnixMilli()
	}
	n := ms
	if !strings.HasPrefix(st.name, "P") {
		n = (ms + 500) / 1000
	}
	if left == 0 {
		n = -1
	}
	st.decide(replied(r.cl.answers.number(n)))
}
