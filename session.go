package holdfast

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
)

// pipe is one connection and the rueidis client around it. It is never dialled
// again: once the connection is lost, whoever still holds the pipe fails in less
// than a microsecond.
type pipe struct {
	client rueidis.Client
	addr   string
	dialer *dialer
	end    context.CancelFunc

	lost    atomic.Bool
	lostErr atomic.Pointer[error]
	ended   atomic.Bool // closed here, before it was lost
}

// plan is what a pipe is to be.
type plan struct {
	addr   string
	option rueidis.ClientOption // the user's
	manner manner
	// credentials are asked for the login, where the option has a function for that.
	credentials *credentials

	hearing *hearing        // nil for none
	within  context.Context // bounds the dial and the handshake; nil for no bound beside the user's
	attempt func()          // counts a dial
	lost    func()          // called once, when the connection ends, on whatever goroutine finds out
	// invalidated gets the keys that the server tells of, none for all, on the
	// goroutine that reads the connection.
	invalidated func([]rueidis.RedisMessage)
}

// dial dials once and shakes hands. It blocks for at most twice Dialer.Timeout,
// and less once life ends.
func (p *pipe) dial(life context.Context, pl plan) (err error) {
	ctx, cancel := context.WithCancel(life)
	p.addr, p.end = pl.addr, cancel
	p.dialer = &dialer{
		user: pl.option.DialCtxFn, life: ctx, attempt: pl.attempt, hearing: pl.hearing,
		plain: pl.manner != mannerFull, credentials: pl.credentials,
	}
	p.dialer.lost = func(cause error) {
		if cause == nil {
			cause = errConnClosed
		}
		p.lostErr.CompareAndSwap(nil, &cause)
		p.lost.Store(true)
		pl.lost()
	}
	p.dialer.permit.Store(true)
	stop := context.AfterFunc(ctx, p.dialer.close)
	if pl.within != nil {
		defer context.AfterFunc(pl.within, cancel)() // also a dial that goes nowhere
	}
	defer func() {
		// What rueidis makes of a handshake's replies it makes on this
		// goroutine, and it trusts their types.
		if r := recover(); r != nil {
			err = fmt.Errorf("the handshake made no sense: %v", r)
		}
		if err != nil {
			stop()
			p.close()
		}
	}()
	p.client, err = rueidis.NewClient(clientOption(pl, p.dialer))
	p.dialer.shaken()
	if p.dialer.late.Load() {
		err = context.DeadlineExceeded
	}
	return p.dialer.explain(unanswered(err, pl.option.Dialer.Timeout))
}

var errConnClosed = errors.New("holdfast: the connection was closed")

// unanswered words a timeout of the handshake so that it names its cause.
func unanswered(err error, limit time.Duration) error {
	if gaveUp(err) {
		return fmt.Errorf("no answer within %v: %w", limit, err)
	}
	return err
}

func gaveUp(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

// close ends the pipe and everything that waits on it. The connection goes
// first: rueidis alone would wait a second for a mute server.
func (p *pipe) close() {
	if !p.lost.Load() {
		p.ended.Store(true)
	}
	p.end()
	p.dialer.close()
	if p.client != nil {
		p.client.Close()
	}
}

// session is a pipe to the server that a link is for. It is built by the
// link's supervisor and serves until its connection is lost.
type session struct {
	*pipe
	link   *link
	manner manner

	// server is the run id of the process behind the connection, "" if unknown.
	// A server that came back empty has another one.
	server string

	// tracked: the server tells of every change to what was read here. untold is
	// why it does not, where it was asked to.
	tracked bool
	untold  error

	// bare: it was opened to a server that is busy with a script, without what Redis
	// refuses then, such as the choice of the database. It is for what ends the script.
	bare bool

	// lacks are the helper commands that are done without.
	lacks lacks

	// scripts says whether the server runs the replay's script; see scripting.
	scripts atomic.Uint32

	// writable: the last write that Redis decided on was accepted.
	writable atomic.Bool
	// deletable: where writes are refused, deletes are not.
	deletable atomic.Bool
	// replica: writes are refused because this is a replica. What it answers
	// may be older than what its master holds.
	replica atomic.Bool

	heard atomic.Int64 // when the server was last known to be there

	// period is the stretch of time in which it serves, nil between two. None outlives
	// the supervisor's life.
	period atomic.Pointer[period]
	life   context.Context

	// id tells sessions apart: commands of one run in the order they were sent,
	// those of an earlier one may still run late.
	id uint64

	// valueSize is about how large the values are that batches read, 0 while that is
	// not known.
	valueSize atomic.Int64

	bulkhead
}

// bulkhead bounds the calls that wait in rueidis' ring: its PutOne ignores the
// context, so on a mute server a full ring would hold callers for seconds. A
// call that gave up leaves its command in the ring, so it keeps its slot, until
// a command that was sent later is answered: replies come in order.
type bulkhead struct {
	used    atomic.Int64
	waiting atomic.Int64
	freed   chan struct{} // a token for each slot freed while somebody waited

	tickets   atomic.Uint64
	completed atomic.Uint64

	abandoned   atomic.Int64
	lastAbandon atomic.Uint64
	left        abandonedCalls

	solo    atomic.Bool  // somebody is alone, or about to be
	replays atomic.Int64 // pipelines of the replay that are under way, which have no slot
}

// bulkheadSlots is half of rueidis' ring of 1,024.
const bulkheadSlots = 512

// acquire takes a slot, waiting until ctx ends if there is none. The ticket
// orders calls as they are sent, nearly.
func (b *bulkhead) acquire(ctx context.Context) (ticket uint64, err error) {
	if !b.tryAcquire() {
		if err := b.acquireSlow(ctx); err != nil {
			return 0, err
		}
	}
	return b.tickets.Add(1), nil
}

func (b *bulkhead) tryAcquire() bool {
	if b.used.Add(1) <= bulkheadSlots {
		return true
	}
	b.used.Add(-1)
	return false
}

func (b *bulkhead) acquireSlow(ctx context.Context) error {
	b.waiting.Add(1)
	defer b.waiting.Add(-1)
	// Whoever frees a slot from here on leaves a token; who freed one before is
	// found by trying again.
	for !b.tryAcquire() {
		select {
		case <-b.freed:
		case <-ctx.Done():
			return errBulkhead
		}
	}
	return nil
}

func (b *bulkhead) release() {
	b.used.Add(-1)
	if b.waiting.Load() != 0 {
		select {
		case b.freed <- struct{}{}:
		default:
		}
	}
}

// answered says that Redis answered the command with this ticket.
func (b *bulkhead) answered(ticket uint64) {
	b.completed.Add(1)
	if b.abandoned.Load() != 0 && ticket > b.lastAbandon.Load() {
		for n := b.abandoned.Swap(0); n > 0; n-- {
			b.release()
		}
		b.left.take()
	}
}

func (b *bulkhead) abandon(ticket uint64) {
	for last := b.lastAbandon.Load(); last < ticket; last = b.lastAbandon.Load() {
		if b.lastAbandon.CompareAndSwap(last, ticket) {
			break
		}
	}
	b.abandoned.Add(1)
}

// openSession makes a session of the link's with the server at addr. It blocks
// for at most three times Dialer.Timeout, after what Redis.AuthCredentialsFn takes, and
// less once life ends. It makes one dial. Where it fails, how is what it was about the
// manner.
func (l *link) openSession(life context.Context, addr string, m manner, bare bool) (s *session, how turnedAway, err error) {
	// Not the named result: what the connection tells may come after the return.
	next := &session{pipe: &pipe{}, link: l, manner: m, bare: bare, life: life, id: l.sessions.Add(1)}
	next.freed = make(chan struct{}, bulkheadSlots)
	option := l.opts.connection()
	if bare {
		option.SelectDB, option.ClientName, option.ClientSetInfo = 0, "", rueidis.DisableClientSetInfo
	}
	err = next.dial(life, plan{
		addr:        addr,
		option:      option,
		manner:      m,
		credentials: &l.credentials,
		attempt:     func() { l.stats.dials.Add(1) },
		hearing:     &hearing{clock: l.clock, told: next.hears},
		lost:        func() { l.lostSession(next) },
		invalidated: func(keys []rueidis.RedisMessage) { l.invalidated(next, keys) },
	})
	if err == nil && !bare {
		limit := l.opts.Redis.Dialer.Timeout
		ask, done := context.WithTimeout(life, limit)
		err = unanswered(next.greet(ask), limit)
		done()
		if err != nil {
			err = fmt.Errorf("greeting: %w", next.dialer.explain(err))
			next.close()
		}
	}
	next.dialer.settled()
	if err != nil {
		return nil, next.turnedAway(err), fmt.Errorf("holdfast: connecting to %s: %w", addr, err)
	}
	next.beginPeriod()
	if next.lost.Load() {
		next.endPeriod(errConnClosed)
	}
	return next, notTurnedAway, nil
}

// period is a stretch of time in which a session serves: from the opening of the gate
// to its closing. Connections that callers have of their own end with it.
type period struct {
	context.Context
	end context.CancelCauseFunc
}

// beginPeriod begins one, if none is.
func (s *session) beginPeriod() {
	if s.period.Load() == nil {
		p := &period{}
		p.Context, p.end = context.WithCancelCause(s.life)
		s.period.Store(p)
	}
}

// inherit takes over the period of a session with the same server, which this one
// replaces: what callers have beside it is as good as before.
func (s *session) inherit(old *session) {
	if s.server == "" || s.server != old.server {
		return
	}
	if p := old.period.Swap(nil); p != nil {
		if mine := s.period.Swap(p); mine != nil {
			mine.end(errConnClosed)
		}
		if s.lost.Load() {
			s.endPeriod(errConnClosed)
		}
	}
}

// endPeriod ends it. It runs under gobreaker's lock: what ends with the period does
// so on goroutines of its own.
func (s *session) endPeriod(cause error) {
	if p := s.period.Swap(nil); p != nil {
		p.end(cause)
	}
}

// greet learns who the server is and asks it to tell of changes. What the server
// speaks the handshake has shown: a HELLO without arguments, which would tell, is an
// error to Redis 6.0.
func (s *session) greet(ctx context.Context) error {
	b, three := s.client.B(), s.dialer.connection().speaksRESP3()
	var cmds []rueidis.Completed
	ask := func(words ...string) (reply int) {
		cmds = append(cmds, b.Arbitrary(words...).Build())
		return len(cmds) - 1
	}
	hello, info, tracking := -1, -1, -1
	if three {
		hello = ask("HELLO", "3")
	}
	if s.manner != mannerMinimal {
		info = ask("INFO", "server")
	}
	track := s.link.opts.Tracking.command()
	if three && track != nil {
		tracking = ask(track...)
	}
	var replies []rueidis.RedisResult
	if len(cmds) > 0 {
		replies = s.client.DoMulti(ctx, cmds...)
	}
	for _, i := range []int{hello, info} {
		if i < 0 {
			continue
		}
		if err := replies[i].Error(); err != nil && away(err) {
			return err
		}
	}
	// A server that does not tell is taken as it is.
	mode := ""
	if hello >= 0 {
		mode = helloMode(replies[hello])
	}
	if info >= 0 {
		told := infoFields(replies[info])
		s.server = told["run_id"]
		mode = cmp.Or(mode, told["redis_mode"], told["server_mode"]) // the latter is Valkey's
	}
	if err := s.link.fits(ctx, s, mode); err != nil {
		return err
	}
	if err := s.greetScripts(ctx); err != nil {
		return err
	}
	switch {
	case track == nil:
	case tracking < 0:
		s.untold = errNoRESP3
	default:
		if err := replies[tracking].Error(); err != nil && away(err) {
			return err // it says nothing about tracking: the server is busy, or loads
		} else if err != nil {
			s.untold = err
		} else {
			s.tracked = true
		}
	}
	return nil
}

// greetAgain greets once more where the first greeting was answered in words that nobody
// understands: a probe has shown since that the server is well, so what it says now is
// about tracking.
func (s *session) greetAgain(ctx context.Context) error {
	if s.untold == nil || classify(context.Background(), s.untold) != classUnknown {
		return nil
	}
	s.untold = nil
	limit := s.link.opts.Redis.Dialer.Timeout
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return unanswered(s.greet(limited), limit)
}

// away says that what a server said to a greeting is about the server.
func away(err error) bool {
	c := classify(context.Background(), err)
	return c == classDown || c == classBusy
}

var errNoRESP3 = errors.New("holdfast: the server does not speak RESP3")

// helloMode is what HELLO tells of the server's mode.
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

// infoFields are the lines of INFO.
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

// aside sends a command of the supervisor's own, beside the bulkhead.
func (s *session) aside(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	ticket := s.tickets.Add(1)
	res := s.client.Do(ctx, cmd)
	if res.NonRedisError() == nil {
		s.answered(ticket)
	}
	return res
}
