package holdfast

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
)

// session is one connection to Redis and the rueidis client around it. It is
// built by the supervisor, serves until its connection is lost, and is never
// dialled again: a call that still holds it fails in less than a microsecond.
type session struct {
	client rueidis.Client
	dialer *dialer
	end    context.CancelFunc

	// server is the run id of the process behind the connection, "" if unknown.
	// A server that came back empty has another one.
	server string

	// writable: the last write that Redis decided on was accepted.
	writable atomic.Bool
	// replica: writes are refused because this is a replica. What it answers
	// may be older than what its master holds.
	replica atomic.Bool

	// id tells sessions apart: commands of one run in the order they were sent,
	// those of an earlier one may still run late.
	id uint64

	lost    atomic.Bool
	lostErr atomic.Pointer[error]

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

func gaveUp(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

// connect dials, shakes hands and asks who is there. It blocks for at most
// three times Dialer.Timeout, and less once life ends. It makes one dial. lost is
// called once, when the connection ends, on whatever goroutine finds out.
func connect(life context.Context, user rueidis.ClientOption, id uint64, attempt func(), lost func(*session)) (_ *session, err error) {
	ctx, cancel := context.WithCancel(life)
	s := &session{id: id, end: cancel}
	s.freed = make(chan struct{}, bulkheadSlots)
	s.dialer = &dialer{user: user.DialCtxFn, life: ctx, attempt: attempt}
	s.dialer.lost = func(cause error) {
		if cause == nil {
			cause = errConnClosed
		}
		s.lostErr.CompareAndSwap(nil, &cause)
		s.lost.Store(true)
		lost(s)
	}
	s.dialer.permit.Store(true)
	stop := context.AfterFunc(ctx, s.dialer.close)
	defer func() {
		// What rueidis makes of a handshake's replies it makes on this
		// goroutine, and it trusts their types.
		if p := recover(); p != nil {
			err = fmt.Errorf("the handshake made no sense: %v", p)
		}
		if err != nil {
			stop()
			s.close()
			err = fmt.Errorf("holdfast: connecting to %s: %w", user.InitAddress[0], err)
		}
	}()
	s.client, err = rueidis.NewClient(clientOption(user, s.dialer))
	s.dialer.shaken()
	if s.dialer.late.Load() {
		err = context.DeadlineExceeded
	}
	if err != nil {
		return nil, unanswered(err, user.Dialer.Timeout)
	}
	ask, done := context.WithTimeout(ctx, user.Dialer.Timeout)
	defer done()
	if err := s.identify(ask); err != nil {
		return nil, unanswered(err, user.Dialer.Timeout)
	}
	return s, nil
}

var errConnClosed = errors.New("holdfast: the connection was closed")

// unanswered words a timeout of the handshake so that it names its cause.
func unanswered(err error, limit time.Duration) error {
	if gaveUp(err) {
		return fmt.Errorf("no answer within %v: %w", limit, err)
	}
	return err
}

// identify learns which server this is. A server that does not tell is taken as
// it is.
func (s *session) identify(ctx context.Context) error {
	info, err := s.client.Do(ctx, s.client.B().Info().Section("server").Build()).ToString()
	if err != nil {
		if classify(context.Background(), err) == classDown {
			return err
		}
		return nil
	}
	for line := range strings.Lines(info) {
		switch name, value, _ := strings.Cut(strings.TrimSpace(line), ":"); name {
		case "run_id":
			s.server = value
		case "redis_mode":
			if value == "cluster" {
				return errors.New("holdfast: the server is a node of a cluster, which this version does not speak to")
			}
		}
	}
	return nil
}

func (s *session) probeCommand(key string) rueidis.Completed {
	return s.client.B().Set().Key(key).Value("1").Px(10 * time.Second).Build()
}

// probe writes. PING is no probe: a read-only replica and a server that cannot
// save answer PONG. It needs no slot, so that a full bulkhead cannot hide that
// the server is back, and its answer frees the slots of those who gave up.
func (s *session) probe(ctx context.Context, key string) error {
	ticket := s.tickets.Add(1)
	res := s.client.Do(ctx, s.probeCommand(key))
	if res.NonRedisError() == nil {
		s.answered(ticket)
	}
	return res.Error()
}

// close ends the session and everything that waits on it. The connection goes
// first: rueidis alone would wait a second for a mute server.
func (s *session) close() {
	s.end()
	s.dialer.close()
	if s.client != nil {
		s.client.Close()
	}
}
