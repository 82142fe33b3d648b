package link

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/redis/rueidis"
)

// pipe is one connection with its rueidis client. It is never dialled again: once the connection is
// lost, every call that still holds the pipe fails in less than a microsecond.
type pipe struct {
	Client rueidis.Client
	Addr   string
	Dialer *dialer
	end    context.CancelFunc

	Lost    atomic.Bool
	lostErr atomic.Pointer[error]
	ended   atomic.Bool // closed by us before it was lost
}

// plan describes the pipe to open.
type plan struct {
	addr   string
	option rueidis.ClientOption // as the user gave it
	manner manner
	// credentials provide the login, if option has an AuthCredentialsFn.
	credentials *credentials

	hearing *hearing        // nil for none
	within  context.Context // bounds dial and handshake beside life; may be nil
	attempt func()          // counts a dial
	lost    func()          // called once when the connection ends, on any goroutine
	// invalidated gets the keys that the server invalidates, nil for all keys. It runs on the
	// goroutine that reads the connection.
	invalidated func([]rueidis.RedisMessage)
}

// dial dials once and performs the handshake. After AuthCredentialsFn has returned (10 s at most)
// it blocks for at most twice Dialer.Timeout, and less if life ends.
func (p *pipe) dial(life context.Context, pl plan) (err error) {
	ctx, cancel := context.WithCancel(life)
	p.Addr, p.end = pl.addr, cancel
	p.Dialer = &dialer{
		user: pl.option.DialCtxFn, Life: ctx, attempt: pl.attempt, hearing: pl.hearing,
		plain: pl.manner != mannerFull, credentials: pl.credentials,
	}
	p.Dialer.lost = func(cause error) {
		if cause == nil {
			cause = errConnClosed
		}
		p.lostErr.CompareAndSwap(nil, &cause)
		p.Lost.Store(true)
		pl.lost()
	}
	p.Dialer.permit.Store(true)
	stop := context.AfterFunc(ctx, p.Dialer.close)
	if pl.within != nil {
		defer context.AfterFunc(pl.within, cancel)() // cancels a hanging dial, too
	}
	defer func() {
		// rueidis parses the handshake's replies on this goroutine, and trusts their types.
		if r := recover(); r != nil {
			err = fmt.Errorf("the handshake made no sense: %v", r)
		}
		if err != nil {
			stop()
			p.close()
		}
	}()
	p.Client, err = rueidis.NewClient(clientOption(pl, p.Dialer))
	p.Dialer.shaken()
	if p.Dialer.late.Load() {
		err = context.DeadlineExceeded
	}
	return p.Dialer.explain(Unanswered(err, pl.option.Dialer.Timeout))
}

var errConnClosed = errors.New("holdfast: the connection was closed")

// Unanswered makes the error of a timeout name the timeout.
func Unanswered(err error, limit time.Duration) error {
	if rediserr.GaveUp(err) {
		return fmt.Errorf("no answer within %v: %w", limit, err)
	}
	return err
}

// close ends the pipe and everything that waits on it. The connection is closed first: rueidis
// alone would wait a second for a server that does not answer.
func (p *pipe) close() {
	if !p.Lost.Load() {
		p.ended.Store(true)
	}
	p.end()
	p.Dialer.close()
	if p.Client != nil {
		p.Client.Close()
	}
}

// Session is a pipe to the server of a link. The link's supervisor opens it, and it serves until
// its connection is lost.
type Session struct {
	*pipe
	Link   *Link
	Manner manner

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

	// Writable: the last write that Redis answered was accepted.
	Writable atomic.Bool
	// Deletable: deletes are accepted although other writes are refused.
	Deletable atomic.Bool
	// Replica: writes are refused because the server is a replica. Its answers may be older than
	// its master's data.
	Replica atomic.Bool

	heard atomic.Int64 // when the server was last known to be alive

	// period is the context for callers' dedicated connections; nil while there may be none.
	period atomic.Pointer[servingCtx]
	life   context.Context

	// Id numbers sessions. Commands of one session run in the order in which they were sent;
	// commands of an earlier session may still run late.
	Id uint64

	// valueSize is an estimate of the size in bytes of the values that batches read, 0 if unknown.
	valueSize atomic.Int64

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
func (l *Link) openSession(life context.Context, addr string, m manner, bare bool) (s *Session, how turnedAway, err error) {
	// Not the named result: callbacks of the connection may run after the return.
	next := &Session{pipe: &pipe{}, Link: l, Manner: m, bare: bare, life: life, Id: l.Routes.sessions.Add(1)}
	next.freed = make(chan struct{}, BulkheadSlots)
	option := l.cfg.connection()
	if bare {
		option.SelectDB, option.ClientName, option.ClientSetInfo = 0, "", rueidis.DisableClientSetInfo
	}
	err = next.dial(life, plan{
		addr:        addr,
		option:      option,
		manner:      m,
		credentials: &l.credentials,
		attempt:     func() { l.stats.Dials.Add(1) },
		hearing:     &hearing{clock: l.clock, told: next.hears},
		lost:        func() { l.lostSession(next) },
		invalidated: func(keys []rueidis.RedisMessage) { l.invalidated(next, keys) },
	})
	if err == nil && !bare {
		limit := l.cfg.Redis.Dialer.Timeout
		ask, done := context.WithTimeout(life, limit)
		err = Unanswered(next.greet(ask), limit)
		done()
		if err != nil {
			err = fmt.Errorf("greeting: %w", next.Dialer.explain(err))
			next.close()
		}
	}
	next.Dialer.settled()
	if err != nil {
		return nil, next.turnedAway(err), fmt.Errorf("holdfast: connecting to %s: %w", addr, err)
	}
	next.beginPeriod()
	if next.Lost.Load() {
		next.endPeriod(errConnClosed)
	}
	return next, notTurnedAway, nil
}

// servingCtx is the context of the dedicated connections that callers have beside a session. It begins
// when the session has connected, or when the gate opens to it again. It ends when the gate shuts
// or the connection is lost, and at the latest with the supervisor. The session of a server that is
// busy with a script keeps it.
type servingCtx struct {
	context.Context
	end context.CancelCauseFunc
}

// beginPeriod starts a period unless one is running.
func (s *Session) beginPeriod() {
	if s.period.Load() == nil {
		p := &servingCtx{}
		p.Context, p.end = context.WithCancelCause(s.life)
		s.period.Store(p)
	}
}

// inherit takes over the period of old, a session that this one replaces, if both are with the same
// server: callers' dedicated connections to it stay valid.
func (s *Session) inherit(old *Session) {
	if s.Server == "" || s.Server != old.Server {
		return
	}
	if p := old.period.Swap(nil); p != nil {
		if mine := s.period.Swap(p); mine != nil {
			mine.end(errConnClosed)
		}
		if s.Lost.Load() {
			s.endPeriod(errConnClosed)
		}
	}
}

// endPeriod ends the period. It may run under gobreaker's lock, so everything that ends with the
// period does so on other goroutines.
func (s *Session) endPeriod(cause error) {
	if p := s.period.Swap(nil); p != nil {
		p.end(cause)
	}
}

// greet identifies the server, checks that it fits the options and whether it runs the replay's
// script, and enables tracking. The RESP version is known from the handshake: a HELLO without
// arguments, which would return it, is an error in Redis 6.0.
func (s *Session) greet(ctx context.Context) error {
	b, three := s.Client.B(), s.Dialer.Connection().speaksRESP3()
	var cmds []rueidis.Completed
	ask := func(words ...string) (reply int) {
		cmds = append(cmds, b.Arbitrary(words...).Build())
		return len(cmds) - 1
	}
	hello, info, tracking := -1, -1, -1
	if three {
		hello = ask("HELLO", "3")
	}
	if s.Manner != MannerMinimal {
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
		if err := replies[i].Error(); err != nil && away(err) {
			return err
		}
	}
	// A server that does not report its mode is accepted.
	mode := ""
	if hello >= 0 {
		mode = helloMode(replies[hello])
	}
	if info >= 0 {
		told := infoFields(replies[info])
		s.Server = told["run_id"]
		mode = cmp.Or(mode, told["redis_mode"], told["server_mode"]) // server_mode is Valkey's name
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
		if err := replies[tracking].Error(); err != nil && away(err) {
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
	return Unanswered(s.greet(limited), limit)
}

// away reports that an error reply to a greeting is about the server's state.
func away(err error) bool {
	c := rediserr.Classify(context.Background(), err)
	return c == rediserr.Down || c == rediserr.Busy
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

// refuse notes why the server refuses writes. It reports whether the server accepted them until
// now.
func (s *Session) refuse(err error) bool {
	s.Replica.Store(strings.Contains(err.Error(), "READONLY"))
	s.Deletable.Store(strings.HasPrefix(err.Error(), "OOM"))
	return s.Writable.Swap(false)
}
