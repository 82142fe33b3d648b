package link

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/dial"
	"github.com/holdfast-cache/holdfast/internal/local"
	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/redis/rueidis"
)

// Session is a pipe to the server of a link. The link's supervisor opens it, and it serves until
// its connection is lost.
type Session struct {
	*dial.Pipe
	Link   *Link
	Manner dial.Manner

	// Server is the run id of the server process, or "" if unknown. A server that restarted,
	// perhaps without its data, has another one.
	Server string

	// tracked: the server sends an invalidation for every change of a key read on this session.
	// trackingErr is the reason if it was asked to and does not.
	tracked     bool
	trackingErr error

	// bare: the session was opened to a server that is busy with a script. Commands that such a
	// server refuses, like SELECT, were left out. It serves the commands that end the script.
	bare bool

	// Lacks are the helper commands that the server refuses; the session does without them.
	Lacks lacks

	// scripts says whether the server runs the replay's script; see scripting.
	scripts atomic.Uint32

	// ran has the scripts of loads that the server has run on this session, by *Script.
	ran sync.Map

	// Writable: the last write that Redis answered was accepted.
	Writable atomic.Bool
	// Deletable: deletes are accepted although other writes are refused.
	Deletable atomic.Bool
	// replica: writes are refused because the server is a replica. Its answers may be older than
	// its master's data.
	replica atomic.Bool

	heard atomic.Int64 // when the server was last known to be alive

	// serving is the context for callers' dedicated connections; nil while there may be none.
	serving atomic.Pointer[servingCtx]
	life    context.Context

	// ID numbers sessions. Commands of one session run in the order in which they were sent;
	// commands of an earlier session may still run late.
	ID uint64

	// valueSize is an estimate of the size in bytes of the values that batches read, 0 if unknown.
	valueSize atomic.Int64

	// refusesMGET: the server, or a proxy before it, has refused an MGET that this session sent.
	refusesMGET atomic.Bool

	bulkhead
}

// bulkhead bounds the calls that wait in rueidis' ring. rueidis' PutOne ignores the context, so
// with a server that does not answer a full ring would hold callers for seconds. A call that gave
// up leaves its command in the ring, so it keeps its slot until a later command is answered:
// replies arrive in order.
type bulkhead struct {
	used    atomic.Int64
	waiting atomic.Int64
	freed   chan struct{} // a token for each slot freed while a call waited

	Tickets   atomic.Uint64
	Completed atomic.Uint64

	abandoned   atomic.Int64
	lastAbandon atomic.Uint64
	left        abandonedCalls

	solo    atomic.Bool  // a command is sent alone, or soon will be
	replays atomic.Int64 // the replay's pipelines in flight, which have no slot
}

// BulkheadSlots is half of rueidis' ring of 1,024.
const BulkheadSlots = 512

// Acquire takes a slot. If none is free it waits until ctx ends. Tickets follow the order in which
// calls are sent, approximately.
func (b *bulkhead) Acquire(ctx context.Context) (ticket uint64, err error) {
	if !b.tryAcquire() {
		if err := b.acquireSlow(ctx); err != nil {
			return 0, err
		}
	}
	return b.Tickets.Add(1), nil
}

func (b *bulkhead) tryAcquire() bool {
	if b.used.Add(1) <= BulkheadSlots {
		return true
	}
	b.used.Add(-1)
	return false
}

func (b *bulkhead) acquireSlow(ctx context.Context) error {
	b.waiting.Add(1)
	defer b.waiting.Add(-1)
	// A slot freed from here on leaves a token; a slot freed before is found by the next try.
	for !b.tryAcquire() {
		select {
		case <-b.freed:
		case <-ctx.Done():
			return errBulkhead
		}
	}
	return nil
}

func (b *bulkhead) Release() {
	b.used.Add(-1)
	if b.waiting.Load() != 0 {
		select {
		case b.freed <- struct{}{}:
		default:
		}
	}
}

// Answered notes that Redis answered the command with this ticket.
func (b *bulkhead) Answered(ticket uint64) {
	b.Completed.Add(1)
	if b.abandoned.Load() != 0 && ticket > b.lastAbandon.Load() {
		for n := b.abandoned.Swap(0); n > 0; n-- {
			b.Release()
		}
		b.left.take()
	}
}

func (b *bulkhead) Abandon(ticket uint64) {
	for last := b.lastAbandon.Load(); last < ticket; last = b.lastAbandon.Load() {
		if b.lastAbandon.CompareAndSwap(last, ticket) {
			break
		}
	}
	b.abandoned.Add(1)
}

// openSession opens a session with the server at addr, with one dial. After AuthCredentialsFn has
// returned (10 s at most) it blocks for at most three times Dialer.Timeout, and less if life ends.
// If it fails, how says whether the server refused the manner of the introduction.
func (l *Link) openSession(life context.Context, addr string, m dial.Manner, bare bool) (s *Session, how dial.TurnedAway, err error) {
	// s is not assigned here, because callbacks of the connection may run after the return.
	next := &Session{Pipe: &dial.Pipe{}, Link: l, Manner: m, bare: bare, life: life, ID: l.Routes.sessions.Add(1)}
	next.freed = make(chan struct{}, BulkheadSlots)
	option := l.cfg.connection()
	if bare {
		option.SelectDB, option.ClientName, option.ClientSetInfo = 0, "", rueidis.DisableClientSetInfo
	}
	began := l.clock.Now()
	err = next.Dial(life, dial.Plan{
		Addr:        addr,
		Option:      option,
		Manner:      m,
		Credentials: &l.credentials,
		Attempt:     func() { l.stats.Dials.Add(1) },
		Hearing:     &dial.Hearing{Clock: l.clock, LastAlive: next.hears},
		Lost:        func() { l.lostSession(next) },
		Invalidated: func(keys []rueidis.RedisMessage) { l.invalidated(next, keys) },
	})
	if err == nil {
		l.stats.Dialled.Record(time.Duration(l.clock.Now() - began))
	}
	if err == nil && !bare {
		limit := l.cfg.Redis.Dialer.Timeout
		ask, done := context.WithTimeout(life, limit)
		err = dial.Unanswered(next.greet(ask), limit)
		done()
		if err != nil {
			err = fmt.Errorf("greeting: %w", next.Dialer.Explain(err))
			next.Close()
		}
	}
	next.Dialer.Settled()
	if err != nil {
		return nil, next.TurnedAway(err), fmt.Errorf("holdfast: connecting to %s: %w", addr, err)
	}
	next.beginServing()
	if next.Lost.Load() {
		next.endServing(dial.ErrConnClosed)
	}
	return next, dial.NotTurnedAway, nil
}

// servingCtx is the context of the dedicated connections that callers have beside a session. It begins
// when the session has connected, or when the gate opens to it again. It ends when the gate shuts
// or the connection is lost, and at the latest with the supervisor. The session of a server that is
// busy with a script keeps it.
type servingCtx struct {
	context.Context
	end context.CancelCauseFunc
}

// beginServing starts a servingCtx unless one is running.
func (s *Session) beginServing() {
	if s.serving.Load() == nil {
		p := &servingCtx{}
		p.Context, p.end = context.WithCancelCause(s.life)
		s.serving.Store(p)
	}
}

// inherit takes over the servingCtx of old, a session that this one replaces, if both are with the
// same server: callers' dedicated connections to it stay valid.
func (s *Session) inherit(old *Session) {
	if s.Server == "" || s.Server != old.Server {
		return
	}
	if p := old.serving.Swap(nil); p != nil {
		if mine := s.serving.Swap(p); mine != nil {
			mine.end(dial.ErrConnClosed)
		}
		if s.Lost.Load() {
			s.endServing(dial.ErrConnClosed)
		}
	}
}

// endServing ends the servingCtx. It may run under gobreaker's lock, so everything that ends with
// it does so on other goroutines.
func (s *Session) endServing(cause error) {
	if p := s.serving.Swap(nil); p != nil {
		p.end(cause)
	}
}

// greet identifies the server, checks that it fits the options and whether it runs the replay's
// script, and enables tracking. The RESP version is known from the handshake: a HELLO without
// arguments, which would return it, is an error in Redis 6.0.
func (s *Session) greet(ctx context.Context) error {
	b, three := s.Client.B(), s.Dialer.Connection().SpeaksRESP3()
	var cmds []rueidis.Completed
	ask := func(words ...string) (reply int) {
		cmds = append(cmds, b.Arbitrary(words...).Build())
		return len(cmds) - 1
	}
	hello, info, tracking := -1, -1, -1
	if three {
		hello = ask("HELLO", "3")
	}
	if s.Manner != dial.MannerMinimal {
		info = ask("INFO", "server")
	}
	track := s.Link.cfg.Tracking.command()
	if three && track != nil {
		tracking = ask(track...)
	}
	var replies []rueidis.RedisResult
	if len(cmds) > 0 {
		replies = s.Client.DoMulti(ctx, cmds...)
	}
	for _, i := range []int{hello, info} {
		if i < 0 {
			continue
		}
		if err := replies[i].Error(); err != nil && dial.Away(err) {
			return err
		}
	}
	// A server that does not report its mode is accepted.
	mode := ""
	if hello >= 0 {
		mode = helloMode(replies[hello])
	}
	if info >= 0 {
		fields := infoFields(replies[info])
		s.Server = fields["run_id"]
		mode = cmp.Or(mode, fields["redis_mode"], fields["server_mode"]) // server_mode is Valkey's name
	}
	if err := s.Link.locator.fits(ctx, s, mode); err != nil {
		return err
	}
	if err := s.greetScripts(ctx); err != nil {
		return err
	}
	switch {
	case track == nil:
	case tracking < 0:
		s.trackingErr = errNoRESP3
	default:
		if err := replies[tracking].Error(); err != nil && dial.Away(err) {
			return err // the server is busy or loading; this says nothing about tracking
		} else if err != nil {
			s.trackingErr = err
		} else {
			s.tracked = true
		}
	}
	return nil
}

// greetAgain repeats the greeting if the first one got an error of an unknown text. A probe has
// since shown that the server is well, so an error now is about tracking.
func (s *Session) greetAgain(ctx context.Context) error {
	if s.trackingErr == nil || rediserr.Classify(context.Background(), s.trackingErr) != rediserr.Unknown {
		return nil
	}
	s.trackingErr = nil
	limit := s.Link.cfg.Redis.Dialer.Timeout
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return dial.Unanswered(s.greet(limited), limit)
}

var errNoRESP3 = errors.New("holdfast: the server does not speak RESP3")

// helloMode returns the server's mode from HELLO's reply, or "".
func helloMode(reply rueidis.RedisResult) string {
	fields, err := reply.AsMap()
	if err != nil {
		return ""
	}
	mode := fields["mode"]
	text, err := mode.ToString()
	if err != nil {
		return ""
	}
	return text
}

// infoFields parses the lines of INFO.
func infoFields(reply rueidis.RedisResult) map[string]string {
	fields := map[string]string{}
	if text, err := reply.ToString(); err == nil {
		for line := range strings.Lines(text) {
			name, content, _ := strings.Cut(strings.TrimSpace(line), ":")
			fields[name] = content
		}
	}
	return fields
}

// aside sends one of the supervisor's own commands. It takes no slot of the bulkhead.
func (s *Session) aside(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	ticket := s.Tickets.Add(1)
	res := s.Client.Do(ctx, cmd)
	if res.NonRedisError() == nil {
		s.Answered(ticket)
	}
	return res
}

// OfMaster reports whether the server is no replica, as far as is known: the answers of a replica may
// be older than its master's data.
func (s *Session) OfMaster() bool { return !s.replica.Load() }

// refuse notes why the server refuses writes. It reports whether the server accepted them until
// now.
func (s *Session) refuse(err error) bool {
	s.replica.Store(strings.Contains(err.Error(), "READONLY"))
	s.Deletable.Store(strings.HasPrefix(err.Error(), "OOM"))
	return s.Writable.Swap(false)
}

// introduce opens a session in the next manner. It dials once, and in two cases a second time:
// after a session without HELLO has connected, to learn whether the server accepts a handshake with
// HELLO by now; and if the server is busy, because a caller may want to end its script.
func (l *Link) introduce(life context.Context, addr string) (*Session, error) {
	if l.bare {
		return l.introduceBare(life, addr)
	}
	m := l.introduction.Next()
	s, how, err := l.openSession(life, addr, m, false)
	if isBusy(life, err) {
		return l.introduceBare(life, addr)
	}
	if m == dial.MannerFull {
		l.introduction.Note(how)
		return s, err
	}
	if err != nil {
		l.introduction = dial.Introduction{}
		return nil, err
	}
	full, how, err := l.openSession(life, addr, dial.MannerFull, false)
	if how != dial.NotTurnedAway {
		l.introduction = dial.Introduction{Kept: m}
		return s, nil
	}
	l.introduction = dial.Introduction{}
	s.Close()
	return full, err
}

// introduceBare opens a session to a busy server, which refuses most of a handshake. It sends only
// commands that are allowed then.
func (l *Link) introduceBare(life context.Context, addr string) (*Session, error) {
	s, _, err := l.openSession(life, addr, dial.MannerFull, true)
	l.bare = err == nil || isBusy(life, err)
	return s, err
}

func isBusy(ctx context.Context, err error) bool {
	return err != nil && rediserr.Classify(ctx, err) == rediserr.Busy
}

// hears notes that the server was alive at the given time.
func (s *Session) hears(at int64) {
	s.heard.Store(at)
	l := s.Link
	// Check the gate before the session's fields: a greeting may still be writing them.
	if l.Gate.Load() == s && s.tracked && at+l.silence-l.heardUntil.Load() > l.silence/hearingStep {
		l.hear(s)
	}
}

// hearingStep limits how often the end of freshness is moved: only by steps of more than one
// hearingStep-th of the silence. A link of a cluster has thousands of epoch scopes.
const hearingStep = 16

// hear extends the freshness of local copies to the last time the server was heard plus the
// silence. Without tracking, freshness does not depend on the server.
func (l *Link) hear(s *Session) {
	end := int64(clock.Never)
	if s.tracked {
		end = s.heard.Load() + l.silence
	}
	l.heardUntil.Store(end)
	l.Keys.Scopes(func(d *local.EpochScope) { d.Until.Store(end) })
}

// connection returns the configuration of a connection to Redis. rueidis gives up a connection
// whose PING is not answered within ConnWriteTimeout. That must not happen before the end of the
// budget of a call sent by then, nor of a call sent within one budget after it, because the server
// may have fallen silent just before. So ConnWriteTimeout is at least twice Timeout.
func (c *Config) connection() rueidis.ClientOption {
	o := c.Redis
	o.ConnWriteTimeout = max(o.ConnWriteTimeout, time.Duration(clock.Saturated(int64(c.Timeout), int64(c.Timeout))))
	return o
}

// Took records how long a pipeline took that was sent at the given time.
func (s *Session) Took(kind Kind, sent int64) {
	s.Link.stats.Took[kind].Record(time.Duration(s.Link.clock.Now() - sent))
}
