package holdfast

import (
	"context"
	"errors"
	"hash/maphash"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
)

// A command may be the reason why a connection ends: a reply that is larger than the
// server's limit for a client, a value at which a proxy hangs up. All calls share the
// connection, so such a command is everybody's outage, unless it is found out:
//
//	a command of a key    | lost in company | lost alone                | answered
//	unknown               | lost once       | -                         | unknown
//	lost once             | suspect         | -                         | unknown
//	suspect, tried alone  | -               | isolated, for a time      | unknown
//	isolated              | -               | -                         | -
//	isolated, time is up  | -               | isolated, for longer      | unknown
//
// In company means that other commands were under way, too: a suspect may be innocent,
// so it is tried alone, on the same connection, one suspect after the other, and an
// answer of any kind clears it. What is isolated is not sent: its callers are answered
// as if Redis were away, and its writes go to the journal. The replay does the same
// with what it sends.
//
// Each call knows after the event that its connection was lost under it, so nothing is
// noted of a call that is answered, and while nothing is suspect a call pays for one
// atomic load.

// errIsolated is why a command is not sent.
var errIsolated = errors.New("holdfast: the connection was lost whenever this was sent: it is isolated for a time")

const (
	// suspectsMost bounds the table. Past it, what is lost for the first time is not
	// noted.
	suspectsMost = 1024
	// suspectLosses makes a suspect.
	suspectLosses = 2
	// suspectMemory is for how long a loss is remembered.
	suspectMemory = time.Minute
	// An isolation begins with one MaxBackoff and doubles with each further loss, to
	// isolationMost. Its end is remembered for isolationMemory.
	isolationMost   = 30 * time.Second
	isolationMemory = 5 * time.Minute
	// isolatedMost is how many may be isolated at once: more are not their own fault.
	isolatedMost = 32
	// excusesMost is how many losses in a row are made good at once: one more for each
	// MaxBackoff.
	excusesMost = 8
)

// suspects are the commands under which connections of one link were lost.
type suspects struct {
	clock clock
	least time.Duration // the first isolation
	seed  maphash.Seed

	known atomic.Pointer[suspectTable] // nil where there are none; never changed in place
	mu    sync.Mutex                   // of who replaces it
}

// suspectTable is keyed by the command's names and its key, see id.
type suspectTable struct {
	of    map[uint64]suspect
	sweep int64 // when to look for what can be forgotten
}

type suspect struct {
	losses  uint8  // in company or alone
	alone   uint8  // of those
	session uint64 // the last that was lost: a loss counts once
	until   int64  // when its isolation ends
	forget  int64
}

// treatment is how a command goes to Redis.
type treatment uint8

const (
	sendInCompany treatment = iota
	sendAlone
	sendNot
)

func newSuspects(c clock, least time.Duration) suspects {
	return suspects{clock: c, least: least, seed: maphash.MakeSeed()}
}

func (s *suspects) any() bool { return s.known.Load() != nil }

// id is what the commands of one key are known by: their names and the key, or, where
// there is no key, all arguments of the first. That a read of the key takes the
// connection with it says nothing of a delete.
func (s *suspects) id(key string, cmds []rueidis.Completed) uint64 {
	var h maphash.Hash
	h.SetSeed(s.seed)
	last := ""
	for _, cmd := range cmds {
		if name := cmd.Commands()[0]; name != last {
			h.WriteString(name)
			h.WriteByte(0)
			last = name
		}
	}
	if key == "" && len(cmds) > 0 {
		for _, arg := range cmds[0].Commands()[1:] {
			h.WriteString(arg)
			h.WriteByte(0)
		}
	}
	h.WriteString(key)
	return h.Sum64()
}

// named is id for the one command of a key.
func (s *suspects) named(key string, names ...string) uint64 {
	var h maphash.Hash
	h.SetSeed(s.seed)
	for _, name := range names {
		h.WriteString(name)
		h.WriteByte(0)
	}
	h.WriteString(key)
	return h.Sum64()
}

// write is the id of a Set or Delete.
func (s *suspects) write(key string, del bool) uint64 {
	if del {
		return s.named(key, "DEL")
	}
	return s.named(key, "SET")
}

// judge says how to send what has the id.
func (s *suspects) judge(id uint64) treatment {
	t := s.known.Load()
	if t == nil {
		return sendInCompany
	}
	now := s.clock.now()
	if now >= t.sweep {
		s.change(func(map[uint64]suspect) {})
	}
	switch w := t.of[id]; {
	case now >= w.forget || w.losses < suspectLosses:
		return sendInCompany
	case now < w.until:
		return sendNot
	default:
		return sendAlone
	}
}

// change replaces the table by one in which f has worked.
func (s *suspects) change(f func(of map[uint64]suspect)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	of := map[uint64]suspect{}
	if t := s.known.Load(); t != nil {
		of = maps.Clone(t.of)
	}
	now := s.clock.now()
	maps.DeleteFunc(of, func(_ uint64, w suspect) bool { return now >= w.forget })
	f(of)
	if len(of) == 0 {
		s.known.Store(nil)
		return
	}
	s.known.Store(&suspectTable{of: of, sweep: after(now, suspectMemory)})
}

// blame notes that a session was lost under the commands with these ids, alone or in
// company, and says whether that made one of them a suspect or isolated it: then the
// loss is a command's doing and not the way's.
func (s *suspects) blame(ids []uint64, sessionID uint64, alone bool) (guilty bool) {
	s.change(func(of map[uint64]suspect) {
		now := s.clock.now()
		for _, id := range ids {
			w, noted := of[id]
			if w.session == sessionID || !noted && len(of) >= suspectsMost {
				continue
			}
			w.session, w.losses = sessionID, min(w.losses+1, suspectLosses)
			w.forget = max(w.forget, after(now, suspectMemory))
			if alone {
				w.losses = suspectLosses
				w.until = after(now, isolation(s.least, w.alone))
				w.forget = after(w.until, isolationMemory)
				w.alone = min(w.alone+1, 64)
			}
			guilty = guilty || w.losses >= suspectLosses
			of[id] = w
		}
		if !alone {
			return
		}
		isolated := 0
		for _, w := range of {
			if now < w.until {
				isolated++
			}
		}
		if isolated > isolatedMost {
			clear(of)
			guilty = false
		}
	})
	return guilty
}

// isolation is how long one lasts after so many before it.
func isolation(least time.Duration, times uint8) time.Duration {
	d := least
	for range times {
		if d >= isolationMost {
			break
		}
		d *= 2
	}
	return min(d, isolationMost)
}

// clear notes that the commands with these ids were answered.
func (s *suspects) clear(ids ...uint64) {
	t := s.known.Load()
	if t == nil {
		return
	}
	for _, id := range ids {
		if _, noted := t.of[id]; noted {
			s.change(func(of map[uint64]suspect) {
				for _, id := range ids {
					delete(of, id)
				}
			})
			return
		}
	}
}

// nextTrial is when to look again for what may be tried alone, never for nothing: at the
// end of an isolation, or, for what could be tried already, a while from now.
func (s *suspects) nextTrial() int64 {
	next := int64(never)
	if t := s.known.Load(); t != nil {
		now := s.clock.now()
		for _, w := range t.of {
			if w.losses >= suspectLosses && now < w.forget {
				next = min(next, max(w.until, after(now, s.least)))
			}
		}
	}
	return next
}

// abandonedCalls are the calls of a session that gave up on an answer, as far as nothing
// that was sent later has been answered: a connection that is lost is lost under them,
// too.
type abandonedCalls struct {
	mu struct {
		sync.Mutex
		ids   []uint64
		alone []uint64 // of one that was sent alone; replies come in order, so before all that follow
		key   string   // of that
	}
}

const abandonedMost = 256

func (a *abandonedCalls) add(ids []uint64, alone bool, key string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if alone {
		a.mu.alone, a.mu.key = append(a.mu.alone[:0], ids...), key
	} else if len(a.mu.ids) < abandonedMost {
		a.mu.ids = append(a.mu.ids, ids...)
	}
}

func (a *abandonedCalls) take() (ids, alone []uint64, key string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	ids, alone, key = a.mu.ids, a.mu.alone, a.mu.key
	a.mu.ids, a.mu.alone, a.mu.key = nil, nil, ""
	return ids, alone, key
}

// treat says how a write of the replay is to be sent.
func (l *link) treat(key string, del bool) treatment {
	if !l.suspects.any() {
		return sendInCompany
	}
	return l.suspects.judge(l.suspects.write(key, del))
}

// blame notes what a session that was lost was lost under, alone or in company, and
// tells of what is isolated for it: a command of this key.
func (l *link) blame(s *session, ids []uint64, alone bool, key string) {
	if len(ids) == 0 || !l.suspects.blame(ids, s.id, alone) {
		return
	}
	l.excused.Store(true)
	l.look()
	if alone {
		l.stats.isolated.Add(1)
		l.notify.isolated(key, s.addr)
	}
}

// blameAbandoned is blame for those who did not wait for it.
func (l *link) blameAbandoned(s *session) {
	ids, alone, key := s.left.take()
	l.blame(s, alone, true, key)
	l.blame(s, ids, false, "")
}

// excuse says whether a loss that is a command's doing is to be made good at once. Not
// all are, for a server may hang up whatever it is sent.
func (l *link) excuse(now int64) bool {
	each := int64(l.schedule.max)
	if l.excuses > now+(excusesMost-1)*each {
		return false
	}
	l.excuses = max(l.excuses, now) + each
	return true
}

// unanswered notes that commands with these ids got no answer on the session; where they
// were alone, those of the key.
func (s *session) unanswered(ids []uint64, alone bool, key string, o outcome) {
	switch {
	case o.lost:
		s.link.blame(s, ids, alone, key)
	case o.unknown:
		s.left.add(ids, alone, key)
		if s.lost.Load() {
			s.link.blameAbandoned(s)
		}
	}
}

// subject is who is asked for: a name and a key, or what is built for an item.
type subject struct {
	name  string
	key   string
	it    *item
	build commands
}

func (w *subject) id(s *session) uint64 {
	if w.build == nil {
		return s.link.suspects.named(w.key, w.name)
	}
	return s.link.suspects.id(w.it.key, w.build(s.client.B(), w.it, nil))
}

func (w *subject) named() string {
	if w.build == nil {
		return w.key
	}
	return w.it.key
}

// ask is do for the commands of one key.
func (r *remote) ask(ctx bound, s *session, who subject, cmds ...rueidis.Completed) ([]rueidis.RedisResult, outcome) {
	var id [1]uint64
	how := sendInCompany
	if s.link.suspects.any() {
		id[0] = who.id(s)
		if how = s.link.suspects.judge(id[0]); how == sendNot {
			return nil, outcome{class: classDown, err: errIsolated, session: s}
		}
	}
	replies, o := r.do(ctx, s, how == sendAlone, cmds...)
	if o.session != nil {
		s = o.session // it may be another one
	}
	switch {
	case o.class == classOK && id[0] != 0:
		s.link.suspects.clear(id[:]...)
	case o.unknown:
		if id[0] == 0 {
			id[0] = who.id(s)
		}
		s.unanswered(id[:], how == sendAlone, who.named(), o)
	}
	return replies, o
}

// aloneLook is how often who is to be alone looks whether the others have left.
const aloneLook = 100 * time.Microsecond

// enterAlone takes all slots, once those who have one have left, so that nothing else is
// under way but the probe. It waits for that until ctx ends, and keeps all others out
// meanwhile; those who wait for a slot already have their turn first.
func (s *session) enterAlone(ctx context.Context) (ticket uint64, err error) {
	for !s.solo.CompareAndSwap(false, true) {
		if !sleep(ctx, aloneLook) {
			return 0, errBulkhead
		}
	}
	for tries := 0; s.waiting.Load() > 0 && tries < 10; tries++ {
		sleep(ctx, aloneLook)
	}
	s.used.Add(bulkheadSlots)
	for asked := false; s.used.Load() != bulkheadSlots || s.replays.Load() != 0; {
		if s.abandoned.Load() != 0 && !asked {
			// An answer to what is sent later frees their slots.
			asked = true
			s.aside(ctx, s.client.B().Ping().Build())
		}
		if !sleep(ctx, aloneLook) {
			s.leaveAlone(0)
			return 0, errBulkhead
		}
	}
	return s.tickets.Add(1), nil
}

// leaveAlone gives the slots back, but for those kept.
func (s *session) leaveAlone(keep int64) {
	s.used.Add(keep - bulkheadSlots)
	s.solo.Store(false)
	for range min(s.waiting.Load(), bulkheadSlots) {
		select {
		case s.freed <- struct{}{}:
		default:
			return
		}
	}
}

// enterReplay is for a pipeline of the replay, which takes no slot. It waits while
// somebody is alone.
func (s *session) enterReplay(ctx context.Context) bool {
	for {
		s.replays.Add(1)
		if !s.solo.Load() {
			return true
		}
		s.replays.Add(-1)
		if !sleep(ctx, time.Millisecond) {
			return false
		}
	}
}

func (s *session) leaveReplay() { s.replays.Add(-1) }
