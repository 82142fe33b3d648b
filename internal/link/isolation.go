package link

import (
	"context"
	"errors"
	"hash/maphash"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/redis/rueidis"
)

// A single command can be the reason why a connection ends: its reply is larger than the server's
// output limit, or a proxy hangs up at its value. All calls share the connection, so such a command
// would be an outage for every caller. It is identified as follows:
//
//	a command of a key    | lost in company | lost alone                | answered
//	unknown               | lost once       | -                         | unknown
//	lost once             | suspect         | -                         | unknown
//	suspect, tried alone  | -               | isolated, for a time      | unknown
//	isolated              | -               | -                         | -
//	isolated, time is up  | -               | isolated, for longer      | unknown
//
// In company means that other commands were under way too. A suspect may be innocent, so it is
// tried alone on the same connection, one suspect at a time; an answer of any kind clears it. An
// isolated command is not sent: its caller is answered as if Redis were away, and a write goes to
// the journal. The replay treats its own commands in the same way.
//
// A call knows by itself that its connection was lost, so a call that is answered records nothing.
// While there are no suspects, the check costs a call one atomic load.

// errIsolated is the reason why an isolated command is not sent.
var errIsolated = errors.New("holdfast: the connection was lost whenever this was sent: it is isolated for a time")

const (
	// suspectsMost bounds the table. In a full table a first loss is not recorded.
	suspectsMost = 1024
	// suspectLosses is the number of losses that makes a suspect.
	suspectLosses = 2
	// suspectMemory is how long a loss is remembered.
	suspectMemory = time.Minute
	// The first isolation lasts one MaxBackoff. Each further loss doubles it, up to isolationMost.
	// It is remembered for isolationMemory after its end.
	isolationMost   = 30 * time.Second
	isolationMemory = 5 * time.Minute
	// isolatedMost bounds the isolated commands. If there would be more, the commands are not the
	// cause, and the table is emptied.
	isolatedMost = 32
	// excusesMost is how many losses in a row are followed by an immediate attempt. One more is
	// allowed for each MaxBackoff that passes.
	excusesMost = 8
)

// suspects records the commands under which connections of one link were lost.
type suspects struct {
	clock clock.Clock
	least time.Duration // length of the first isolation
	seed  maphash.Seed

	known atomic.Pointer[suspectTable] // nil if empty; replaced, never changed in place
	mu    sync.Mutex                   // held while the table is replaced
}

// suspectTable maps a command's id to its record; see suspects.id.
type suspectTable struct {
	of    map[uint64]suspect
	sweep int64 // when to remove records that are out of date
}

type suspect struct {
	losses  uint8  // in company or alone
	alone   uint8  // of those, the losses alone
	session uint64 // the last session lost; one session counts once
	until   int64  // end of the isolation
	forget  int64
}

// treatment is the way in which a command is sent.
type treatment uint8

const (
	SendInCompany treatment = iota
	sendAlone
	SendNot
)

func newSuspects(c clock.Clock, least time.Duration) suspects {
	return suspects{clock: c, least: least, seed: maphash.MakeSeed()}
}

func (s *suspects) Any() bool { return s.known.Load() != nil }

// id identifies the commands of one key by their names and the key, or, without a key, by their
// names and all arguments of the first command. The names are part of the id because a read that
// ends the connection says nothing about a delete of the same key.
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

// named is id for one command of a key.
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

// Write returns the id of a Set or Delete.
func (s *suspects) Write(key string, del bool) uint64 {
	if del {
		return s.named(key, "DEL")
	}
	return s.named(key, setName)
}

// judge returns the way in which to send the commands with this id.
func (s *suspects) judge(id uint64) treatment {
	t := s.known.Load()
	if t == nil {
		return SendInCompany
	}
	now := s.clock.Now()
	if now >= t.sweep {
		s.change(func(map[uint64]suspect) {})
	}
	switch w := t.of[id]; {
	case now >= w.forget || w.losses < suspectLosses:
		return SendInCompany
	case now < w.until:
		return SendNot
	default:
		return sendAlone
	}
}

// change replaces the table by a copy that f has modified.
func (s *suspects) change(f func(of map[uint64]suspect)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	of := map[uint64]suspect{}
	if t := s.known.Load(); t != nil {
		of = maps.Clone(t.of)
	}
	now := s.clock.Now()
	maps.DeleteFunc(of, func(_ uint64, w suspect) bool { return now >= w.forget })
	f(of)
	if len(of) == 0 {
		s.known.Store(nil)
		return
	}
	s.known.Store(&suspectTable{of: of, sweep: clock.After(now, suspectMemory)})
}

// blame records that a session was lost under the commands with these ids, alone or in company. It
// reports whether one of them is a suspect or isolated now: then a command caused the loss, and not
// the network or the server.
func (s *suspects) blame(ids []uint64, sessionID uint64, alone bool) (guilty bool) {
	s.change(func(of map[uint64]suspect) {
		now := s.clock.Now()
		for _, id := range ids {
			w, noted := of[id]
			if w.session == sessionID || !noted && len(of) >= suspectsMost {
				continue
			}
			w.session, w.losses = sessionID, min(w.losses+1, suspectLosses)
			w.forget = max(w.forget, clock.After(now, suspectMemory))
			if alone {
				w.losses = suspectLosses
				w.until = clock.After(now, isolation(s.least, w.alone))
				w.forget = clock.After(w.until, isolationMemory)
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

// isolation returns the length of an isolation after the given number of earlier ones.
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

// Clear records that the commands with these ids were answered.
func (s *suspects) Clear(ids ...uint64) {
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

// NextTrial returns when to look again for commands that may be tried alone, or never if there are
// none. That is the end of the first isolation to end, but not sooner than one MaxBackoff from now.
func (s *suspects) NextTrial() int64 {
	next := int64(clock.Never)
	if t := s.known.Load(); t != nil {
		now := s.clock.Now()
		for _, w := range t.of {
			if w.losses >= suspectLosses && now < w.forget {
				next = min(next, max(w.until, clock.After(now, s.least)))
			}
		}
	}
	return next
}

// abandonedCalls are the calls of a session that gave up waiting, as long as no later command has
// been answered. If the connection is lost, it is lost under these calls too.
type abandonedCalls struct {
	mu struct {
		sync.Mutex
		ids   []uint64
		alone []uint64 // of the last call sent alone; it is answered before all later calls
		key   string   // of the call sent alone
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

// Treat returns the way in which to send a write of the replay.
func (l *Link) Treat(key string, del bool) treatment {
	if !l.Suspects.Any() {
		return SendInCompany
	}
	return l.Suspects.judge(l.Suspects.Write(key, del))
}

// Blame records the commands with these ids when a session was lost under them. If the loss
// isolates a command, it is counted and logged with the key.
func (l *Link) Blame(s *Session, ids []uint64, alone bool, key string) {
	if len(ids) == 0 || !l.Suspects.blame(ids, s.ID, alone) {
		return
	}
	l.excused.Store(true)
	l.look()
	if alone {
		l.stats.Isolated.Add(1)
		l.Watcher.Isolated(key, s.Addr)
	}
}

// blameAbandoned is Blame for the calls that gave up waiting.
func (l *Link) blameAbandoned(s *Session) {
	ids, alone, key := s.left.take()
	l.Blame(s, alone, true, key)
	l.Blame(s, ids, false, "")
}

// excuse reports whether a loss that a command caused is followed by an attempt at once. The number
// of such attempts is limited, because a server may hang up at any command.
func (l *Link) excuse(now int64) bool {
	each := int64(l.schedule.Max)
	if l.excuses > now+(excusesMost-1)*each {
		return false
	}
	l.excuses = max(l.excuses, now) + each
	return true
}

// aloneLook is how often EnterAlone checks whether the other calls have ended.
const aloneLook = 100 * time.Microsecond

// EnterAlone takes all slots and waits until the calls that hold one have ended, so that only the
// probe can run beside the caller. It blocks until then or until ctx ends. Meanwhile it keeps out
// all other calls, except that calls already waiting for a slot have a millisecond to go first.
func (s *Session) EnterAlone(ctx context.Context) (ticket uint64, err error) {
	for !s.solo.CompareAndSwap(false, true) {
		if !clock.Sleep(ctx, aloneLook) {
			return 0, errBulkhead
		}
	}
	for tries := 0; s.waiting.Load() > 0 && tries < 10; tries++ {
		clock.Sleep(ctx, aloneLook)
	}
	s.used.Add(BulkheadSlots)
	for asked := false; s.used.Load() != BulkheadSlots || s.replays.Load() != 0; {
		if s.abandoned.Load() != 0 && !asked {
			// An answer to a later command frees the slots of abandoned calls.
			asked = true
			s.aside(ctx, s.Client.B().Ping().Build())
		}
		if !clock.Sleep(ctx, aloneLook) {
			s.LeaveAlone(0)
			return 0, errBulkhead
		}
	}
	return s.Tickets.Add(1), nil
}

// LeaveAlone releases all slots except the given number.
func (s *Session) LeaveAlone(keep int64) {
	s.used.Add(keep - BulkheadSlots)
	s.solo.Store(false)
	for range min(s.waiting.Load(), BulkheadSlots) {
		select {
		case s.freed <- struct{}{}:
		default:
			return
		}
	}
}

// EnterReplay admits a pipeline of the replay, which takes no slot. It waits while a call is alone.
// It returns false if ctx ends first.
func (s *Session) EnterReplay(ctx context.Context) bool {
	for {
		s.replays.Add(1)
		if !s.solo.Load() {
			return true
		}
		s.replays.Add(-1)
		if !clock.Sleep(ctx, time.Millisecond) {
			return false
		}
	}
}

func (s *Session) LeaveReplay() { s.replays.Add(-1) }
