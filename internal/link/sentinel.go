package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/dial"
	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/redis/rueidis"
)

// sentinels is the locator of a master behind sentinels. Before a dial the locator asks the
// sentinels in turn until one answers. While a session serves it asks one, over a standing
// connection before each probe, about once every Breaker.MaxBackoff, but not within
// Sentinel.TopologyRefreshInterval of the last answer. It does not subscribe: the announcement of
// a new master can be lost unnoticed, an answer cannot.
//
// Only the supervisor uses the locator.
type sentinels struct {
	routes  *Routes
	life    context.Context
	addrs   []string
	option  rueidis.ClientOption
	name    string
	timeout time.Duration // limit of where while a session serves; at least sentinelPatience
	every   time.Duration // least time between questions while a session serves; 0: each time
	clock   clock.Clock
	dials   func()
	allow   allowed
	manners []dial.Introduction // one for each address

	next int // index of the address to try next
	pipe *dial.Pipe
	last struct { // the last answer
		addr string
		at   int64
	}
}

func newSentinels(r *Routes) *sentinels {
	o := r.cfg
	option, s := o.Redis, o.Redis.Sentinel
	option.Username, option.Password, option.ClientName = s.Username, s.Password, s.ClientName
	option.AuthCredentialsFn = nil
	option.Dialer, option.TLSConfig = s.Dialer, s.TLSConfig
	option.SelectDB, option.ClientNoEvict, option.ClientNoTouch = 0, false, false
	return &sentinels{
		routes: r, life: o.Life, addrs: o.Redis.InitAddress, option: option, name: s.MasterSet,
		timeout: o.Timeout, every: s.TopologyRefreshInterval, clock: o.Clock, dials: func() { o.Stats.Dials.Add(1) },
		// A sentinel is no master, so its own address is not exempt from the predicate.
		allow:   allowed{ask: o.AllowAddress, workers: o.Workers},
		manners: make([]dial.Introduction, len(o.Redis.InitAddress)),
	}
}

// where returns the master's address. While a session serves, it asks one sentinel and blocks for
// at most max(Timeout, sentinelPatience). Otherwise it asks all in turn, dials each at most once,
// and blocks for at most three times Sentinel.Dialer.Timeout for each.
func (s *sentinels) where(ctx context.Context, serving bool) (addr string, err error) {
	tries := len(s.addrs)
	now := s.clock.Now()
	if serving && s.last.at != 0 && now-s.last.at < int64(s.every) {
		return s.last.addr, nil
	}
	if serving {
		// A slow sentinel must not delay the supervisor's probes for long.
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, max(s.timeout, sentinelPatience))
		defer cancel()
		tries = 1
	}
	var errs []error
	for range tries {
		addr, err = s.ask(ctx)
		if err == nil {
			s.last.addr, s.last.at = addr, now
			return addr, nil
		}
		errs = append(errs, err)
		s.close()
		s.next++
		if ctx.Err() != nil {
			break
		}
	}
	return "", errors.Join(errs...)
}

// sentinelPatience is the least time that a sentinel has to answer, dial included, while a session
// serves.
const sentinelPatience = 250 * time.Millisecond

func (s *sentinels) ask(ctx context.Context) (string, error) {
	fail := func(err error) (string, error) {
		return "", fmt.Errorf("holdfast: asking the sentinel %s for the master of %q: %w", s.addrs[s.next%len(s.addrs)], s.name, err)
	}
	limit := s.option.Dialer.Timeout
	if s.pipe == nil || s.pipe.Lost.Load() {
		s.close()
		if err := s.dial(ctx); err != nil {
			return fail(err)
		}
	}
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	b := s.pipe.Client.B()
	reply := s.pipe.Client.Do(bounded, b.SentinelGetMasterAddrByName().Master(s.name).Build())
	parts, err := reply.AsStrSlice()
	switch {
	case rueidis.IsRedisNil(err):
		return fail(errors.New("it knows no such master set"))
	case err != nil:
		return fail(dial.Unanswered(err, limit))
	case len(parts) != 2 || !isHost(parts[0]) || !isPort(parts[1]):
		return fail(fmt.Errorf("the answer makes no sense: %s", rediserr.Printable(fmt.Sprintf("%.80q", parts))))
	}
	addr := net.JoinHostPort(parts[0], parts[1])
	if err := s.allow.check(addr); err != nil {
		return fail(err)
	}
	return addr, nil
}

// disbelieve discards the last answer: the server that it named is no master or is unreachable. A
// sentinel may stay behind the others for as long as it lives, so the next call of where asks the
// next one.
func (s *sentinels) disbelieve() {
	s.last.at = 0
	if len(s.addrs) > 1 {
		s.close()
		s.next++
	}
}

// dial connects to the current sentinel. A sentinel that rejected HELLO with an unknown error, or
// hung up, is dialled without HELLO (see manner.go) until that fails: RESP2 is enough for the
// question.
func (s *sentinels) dial(ctx context.Context) error {
	at := s.next % len(s.addrs)
	m := s.manners[at].Next()
	p := &dial.Pipe{}
	err := p.Dial(s.life, dial.Plan{
		Addr: s.addrs[at], Option: s.option, Manner: m, Within: ctx, Attempt: s.dials, Lost: func() {},
	})
	switch {
	case m == dial.MannerFull && ctx.Err() == nil:
		s.manners[at].Note(p.TurnedAway(err))
	case err != nil:
		s.manners[at] = dial.Introduction{}
	}
	if err == nil {
		p.Dialer.Settled()
		s.pipe = p
	}
	return err
}

func (s *sentinels) fits(ctx context.Context, to *Session, mode string) error {
	return s.routes.settleMode(ctx, to, mode)
}

// close closes the connection to the current sentinel.
func (s *sentinels) close() {
	if s.pipe != nil {
		s.pipe.Close()
		s.pipe = nil
	}
}
