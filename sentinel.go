package holdfast

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/redis/rueidis"
)

// sentinels know where the master is. They are asked before each dial, and while
// a session serves, about once each Breaker.MaxBackoff, over a connection that
// stands. It is asked for rather than listened for: a message that says that the
// master has moved can be lost without anybody's knowing, an answer cannot.
//
// It is the supervisor's alone.
type sentinels struct {
	life    context.Context
	addrs   []string
	option  rueidis.ClientOption
	name    string
	timeout time.Duration // an answer over the standing connection
	every   time.Duration // how often to ask while a session serves; 0 for each time
	clock   clock
	dials   func()
	allow   allowed
	manners []introduction // to each address

	next int // the address to try next
	pipe *pipe
	last struct { // answer
		addr string
		at   int64
	}
}

func newSentinels(life context.Context, o Options, clk clock, workers *group, dials func()) *sentinels {
	option, s := o.Redis, o.Redis.Sentinel
	option.Username, option.Password, option.ClientName = s.Username, s.Password, s.ClientName
	option.AuthCredentialsFn = nil
	option.Dialer, option.TLSConfig = s.Dialer, s.TLSConfig
	option.SelectDB, option.ClientNoEvict, option.ClientNoTouch = 0, false, false
	return &sentinels{
		life: life, addrs: o.Redis.InitAddress, option: option, name: s.MasterSet,
		timeout: o.Timeout, every: s.TopologyRefreshInterval, clock: clk, dials: dials,
		// A sentinel is no master: its address is not one that may be dialled as one.
		allow:   allowed{ask: o.AllowAddress, workers: workers},
		manners: make([]introduction, len(o.Redis.InitAddress)),
	}
}

// where asks for the master. While a session serves it asks one sentinel and is
// quick to give up; else it asks one after the other, dialling each once at most,
// for at most three times Sentinel.Dialer.Timeout each.
func (s *sentinels) where(ctx context.Context, serving bool) (addr string, err error) {
	tries := len(s.addrs)
	now := s.clock.now()
	if serving && s.last.at != 0 && now-s.last.at < int64(s.every) {
		return s.last.addr, nil
	}
	if serving {
		// What is asked must not keep the supervisor from its probes for long.
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

// sentinelPatience is what a sentinel that must be dialled has for its answer
// while Redis itself is fine.
const sentinelPatience = 250 * time.Millisecond

func (s *sentinels) ask(ctx context.Context) (string, error) {
	fail := func(err error) (string, error) {
		return "", fmt.Errorf("holdfast: asking the sentinel %s for the master of %q: %w", s.addrs[s.next%len(s.addrs)], s.name, err)
	}
	limit := s.option.Dialer.Timeout
	if s.pipe == nil || s.pipe.lost.Load() {
		s.close()
		if err := s.dial(ctx); err != nil {
			return fail(err)
		}
	}
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	b := s.pipe.client.B()
	reply := s.pipe.client.Do(bounded, b.SentinelGetMasterAddrByName().Master(s.name).Build())
	parts, err := reply.AsStrSlice()
	switch {
	case rueidis.IsRedisNil(err):
		return fail(errors.New("it knows no such master set"))
	case err != nil:
		return fail(unanswered(err, limit))
	case len(parts) != 2 || !isHost(parts[0]) || !isPort(parts[1]):
		return fail(fmt.Errorf("the answer makes no sense: %s", printable(fmt.Sprintf("%.80q", parts))))
	}
	addr := net.JoinHostPort(parts[0], parts[1])
	if err := s.allow.check(addr); err != nil {
		return fail(err)
	}
	return addr, nil
}

// disbelieve says that what was answered last is not so: the server takes no
// writes, or is not there. A sentinel may be behind the others for as long as it
// lives, so the next one is asked, and asked at once.
func (s *sentinels) disbelieve() {
	s.last.at = 0
	if len(s.addrs) > 1 {
		s.close()
		s.next++
	}
}

// dial connects to the sentinel whose turn it is. One that turned HELLO away in words of
// its own, or hung up at it, is spoken to without, as in manner.go, for as long as that
// works: it has nothing to tell that RESP2 has not.
func (s *sentinels) dial(ctx context.Context) error {
	at := s.next % len(s.addrs)
	m := s.manners[at].next()
	p := &pipe{}
	err := p.dial(s.life, plan{
		addr: s.addrs[at], option: s.option, manner: m, within: ctx, attempt: s.dials, lost: func() {},
	})
	switch {
	case m == mannerFull && ctx.Err() == nil:
		s.manners[at].note(p.turnedAway(err))
	case err != nil:
		s.manners[at] = introduction{}
	}
	if err == nil {
		p.dialer.settled()
		s.pipe = p
	}
	return err
}

// close gives up the sentinel that was asked last.
func (s *sentinels) close() {
	if s.pipe != nil {
		s.pipe.close()
		s.pipe = nil
	}
}
