package holdfast

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-cache/holdfast/internal/journal"
	"github.com/holdfast-cache/holdfast/internal/rediserr"
)

// Hooks are called one at a time, in order, on a goroutine of their own. A hook may block
// and may call the Cache, but not Close, which would wait a second for the hook. No call
// waits for a hook. While a hook is stuck, up to 256 events wait; later events are dropped
// and counted in Stats.HooksDropped. A panic in a hook is logged and goes no further.
type Hooks struct {
	// OnStateChange is called after each change of Health.State. Before Redis was first
	// reached, it is also called, with From and To both Connecting, for the first failure
	// and for each failure with a new cause; the same cause is reported at most once a
	// minute. The log has a line for each call.
	OnStateChange func(StateChange)
	// OnReplay is called after each round of replaying the journal.
	OnReplay func(Replay)
	// OnDrop is called when a write could not be kept as it was.
	OnDrop func(Drop)
	// OnHold is called when Redis refuses a write of the journal while a probe succeeds: at
	// most once a minute for each text of a refusal. Cache.Held lists the writes that are
	// held.
	OnHold func(HeldWrite)
}

// StateChange is a change of Health.State, or, with From equal to To, a failure to reach
// Redis for the first time.
type StateChange struct {
	From, To State
	At       time.Time
	Err      error  // the cause, where To is not Up
	Shard    string // in a cluster, the address of the shard's master
}

// Replay is the result of one round of replaying the journal, in keys. The fields count what
// the fields of the same name in Stats count.
type Replay struct {
	Replayed   int // Redis has the write
	Superseded int // another client wrote the key: it was deleted, or left alone
	Held       int // Redis refused this entry and accepted others: it stays, see Cache.Held
	Rejected   int // sets that Redis refused for good, or hung up on: they became deletes
	Left       int // still to be replayed
}

// Drop is the fate of a write that could not be kept as it was.
type Drop struct {
	Key    string
	Reason DropReason
}

// DropReason is the reason of a Drop.
type DropReason uint8

const (
	// DropDowngraded: the key will be deleted instead of set, for one of these reasons: the
	// value did not fit Journal.MaxBytes; the server reported a change of the key while the
	// set waited, and has another value by now; the server runs no scripts; the set was
	// found in Journal.Dir and may be out of date.
	DropDowngraded DropReason = iota
	// DropRefused: the key did not fit Journal.MaxKeys or MaxBytes. The caller got
	// ErrJournalFull.
	DropRefused
	// DropSuperseded: another client wrote the key during the outage.
	DropSuperseded
	// DropRejected: a set was too large for Redis, was refused for a minute, or the
	// connection broke under it repeatedly. The key is deleted instead.
	DropRejected
	// DropUndelivered: the Cache was closed before Redis had the write.
	DropUndelivered
	// DropDiscarded: Cache.Discard gave up a held write.
	DropDiscarded
)

func (r DropReason) String() string {
	switch r {
	case DropDowngraded:
		return "downgraded"
	case DropRefused:
		return "refused"
	case DropSuperseded:
		return "superseded"
	case DropRejected:
		return "rejected"
	case DropUndelivered:
		return "undelivered"
	case DropDiscarded:
		return "discarded"
	}
	return fmt.Sprintf("drop(%d)", uint8(r))
}

// HeldWrite is a write of the journal that Redis refuses while it accepts others. It waits
// until Redis accepts it; see Cache.Held.
type HeldWrite struct {
	Key     string
	Delete  bool      // a delete; false: a set
	Bytes   int       // length of the value of a set; 0 for a delete
	Since   time.Time // when Redis refused it first
	Refusal string    // the error of Redis: printable and cut, without the key and numbers
}

// String describes the write in one line. A long key is cut.
func (w HeldWrite) String() string {
	what := fmt.Sprintf("set of %d bytes", w.Bytes)
	if w.Delete {
		what = "delete"
	}
	return fmt.Sprintf("%q: %s, held since %v: %s", shortKey(w.Key), what, w.Since.Format(time.RFC3339), w.Refusal)
}

// notifier runs the user's hooks and log handler on a goroutine of its own, so that neither
// callers nor the supervisor wait for them.
type notifier struct {
	hooks   Hooks
	log     *slog.Logger
	events  chan func()
	code    userCode // the hook or handler that runs now
	stats   *counters
	stopped chan struct{}
	changes changes
}

// changes has the last changes of Health.State, and wakes those that wait for the next one.
type changes struct {
	mu      sync.Mutex
	recent  []StateChange // oldest first
	waiting chan struct{} // nil: nobody waits
}

// keptChanges is the number of changes that are kept.
const keptChanges = 50

// add keeps the change, and wakes those that wait. It does not block.
func (s *changes) add(c StateChange) {
	s.mu.Lock()
	if len(s.recent) == keptChanges {
		s.recent = append(s.recent[:0], s.recent[1:]...)
	}
	s.recent = append(s.recent, c)
	s.mu.Unlock()
	s.wake()
}

func (s *changes) all() []StateChange {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.recent)
}

// next returns a channel that the next change closes.
func (s *changes) next() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting == nil {
		s.waiting = make(chan struct{})
	}
	return s.waiting
}

// wake does not block.
func (s *changes) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting != nil {
		close(s.waiting)
		s.waiting = nil
	}
}

func newNotifier(o Options, stats *counters) *notifier {
	return &notifier{
		hooks:   o.Hooks,
		log:     o.Logger,
		events:  make(chan func(), 256),
		stats:   stats,
		stopped: make(chan struct{}),
	}
}

// run delivers events. It ends once stop is closed and every queued event is delivered.
func (n *notifier) run(stop <-chan struct{}) {
	defer close(n.stopped)
	for {
		select {
		case f := <-n.events:
			n.call(f)
			continue
		case <-stop:
		}
		for {
			select {
			case f := <-n.events:
				n.call(f)
			default:
				return
			}
		}
	}
}

func (n *notifier) call(f func()) {
	defer func() {
		if p := recover(); p != nil {
			// The log handler itself may have panicked.
			defer func() { _ = recover() }()
			n.logs(slog.LevelError, "holdfast: a hook panicked", slog.String("panic", fmt.Sprint(p)))
		}
	}()
	f()
}

// The user's code, by the name of its option.
const (
	theLogger    = "the log handler (Logger)"
	onState      = "Hooks.OnStateChange"
	onReplayHook = "Hooks.OnReplay"
	onDropHook   = "Hooks.OnDrop"
	onHoldHook   = "Hooks.OnHold"
)

// in runs a piece of the user's code under the name of its option.
func (n *notifier) in(option string, f func()) {
	defer n.code.enter(option)()
	f()
}

// running returns the names of the user's code that runs now.
func (n *notifier) running() []string { return n.code.names() }

// logs passes a line to the log handler.
func (n *notifier) logs(level slog.Level, text string, attrs ...slog.Attr) {
	n.in(theLogger, func() { n.log.LogAttrs(context.Background(), level, text, attrs...) })
}

func (n *notifier) post(f func()) {
	select {
	case n.events <- f:
	default:
		n.stats.hooksDropped.Add(1)
	}
}

func (n *notifier) stateChange(c StateChange) {
	n.changes.add(c)
	n.post(func() {
		level := slog.LevelInfo
		attrs := []slog.Attr{slog.String("from", c.From.String()), slog.String("to", c.To.String())}
		if c.Shard != "" {
			attrs = append(attrs, slog.String("shard", c.Shard))
		}
		if c.Err != nil {
			level = slog.LevelWarn
			attrs = append(attrs, slog.String("error", c.Err.Error()))
		}
		text := "holdfast: redis is " + c.To.String()
		if c.From == c.To {
			text = "holdfast: redis was not reached yet"
		}
		n.logs(level, text, attrs...)
		if n.hooks.OnStateChange != nil {
			n.in(onState, func() { n.hooks.OnStateChange(c) })
		}
	})
}

// untracked logs that a server does not report changes, the cause, and the remedy.
func (n *notifier) untracked(addr, why string, ttl time.Duration) {
	n.post(func() {
		n.logs(slog.LevelWarn, "holdfast: redis does not tell of changes, so a copy is read again after Tracking.UntrackedTTL: "+
			"allow the user CLIENT TRACKING, on Redis 6 or later with RESP3, or set Tracking.Mode to TrackOff",
			slog.String("addr", addr), slog.Duration("untracked_ttl", ttl), slog.String("error", why))
	})
}

// isolated logs a command at which a server closes the connection, and the remedy.
func (n *notifier) isolated(key, addr string) {
	n.post(func() {
		n.logs(slog.LevelWarn, "holdfast: the connection was lost each time when a command of this key was sent, so it is answered "+
			"as if redis were away, and tried again now and then: see whether its value is over a limit of the server's, "+
			"such as client-output-buffer-limit, or of a proxy's",
			slog.String("key", shortKey(key)), slog.String("addr", addr))
	})
}

// scriptless logs that a server does not run the replay's script, and the cause.
func (n *notifier) scriptless(addr string, why error) {
	text := rediserr.Text(why)
	n.post(func() {
		n.logs(slog.LevelWarn, "holdfast: redis does not run the replay's script: a set that waits in the journal will become a delete: "+
			"allow the user EVALSHA, SCRIPT LOAD and what the script calls", slog.String("addr", addr), slog.String("error", text))
	})
}

// held reports that Redis refuses writes of the journal while a probe succeeds.
func (n *notifier) held(h HeldWrite) {
	n.post(func() {
		n.logs(slog.LevelWarn, "holdfast: redis refuses writes of the journal for themselves: they are held, and tried again",
			slog.String("error", h.Refusal), slog.String("key", shortKey(h.Key)))
		if n.hooks.OnHold != nil {
			n.in(onHoldHook, func() { n.hooks.OnHold(h) })
		}
	})
}

// journalFile logs a change of the state of the journal's file.
func (n *notifier) journalFile(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	n.post(func() { n.logs(slog.LevelWarn, "holdfast: the journal's file: "+strings.TrimPrefix(text, "wal: ")) })
}

// restored logs the contents of Journal.Dir that New found, if any.
func (n *notifier) restored(r journal.Restored) {
	if r.Keys == 0 && r.Doubt == "" {
		return
	}
	n.post(func() {
		level := slog.LevelInfo
		attrs := []slog.Attr{slog.Int("keys", r.Keys), slog.String("found", r.Report.String())}
		if r.Doubt != "" {
			level = slog.LevelWarn
			attrs = append(attrs, slog.String("doubt", r.Doubt), slog.Int("sets_downgraded", r.Downgraded))
		}
		n.logs(level, "holdfast: the journal of an earlier process will be replayed", attrs...)
	})
}

func (n *notifier) replay(r Replay) {
	if n.hooks.OnReplay != nil {
		n.post(func() { n.in(onReplayHook, func() { n.hooks.OnReplay(r) }) })
	}
}

func (n *notifier) drop(key string, why DropReason) {
	if n.hooks.OnDrop != nil {
		n.post(func() { n.in(onDropHook, func() { n.hooks.OnDrop(Drop{key, why}) }) })
	}
}

// undelivered reports the writes that are lost with the Cache. It queues one event for all of
// them, so that they fit the queue.
func (n *notifier) undelivered(keys []string, why error) {
	n.post(func() {
		n.logs(slog.LevelWarn, "holdfast: closed before redis had every write",
			slog.Int("undelivered", len(keys)), slog.String("error", fmt.Sprint(why)))
		if n.hooks.OnDrop == nil {
			return
		}
		for _, key := range keys {
			n.call(func() { n.in(onDropHook, func() { n.hooks.OnDrop(Drop{key, DropUndelivered}) }) })
		}
	})
}
