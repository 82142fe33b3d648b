package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/redis/rueidis"
)

// phase is a part of the script.
type phase struct {
	mode   mode
	length time.Duration
}

var script = []phase{
	{up, 2 * time.Second},
	{killed, 3 * time.Second},
	{up, 2 * time.Second},
	{hung, 3 * time.Second},
	{up, 2 * time.Second},
}

const (
	readyWithin = 5 * time.Second
	// drainWithin bounds the time after the script: the replay and, two seconds later,
	// the second check of the writes that hung in the connection.
	drainWithin = 15 * time.Second
)

// stage is the state that the runs of all clients share.
type stage struct {
	cfg    config
	proxy  *proxy
	server rueidis.Client // bypasses the proxy
	prefix string         // of this run's keys only
	dials  atomic.Int64   // by the client under test
	print  printer
}

// outcome is the result of a client's run.
type outcome struct {
	tally
	dials int64
}

// demonstrate runs the clients and prints the verdict. good reports whether the verdict
// is good.
func demonstrate(ctx context.Context, cfg config, out printer) (good bool, err error) {
	where := "the server at "
	if cfg.server.option.InitAddress == nil {
		own, err := embed()
		if err != nil {
			return false, err
		}
		defer own.close()
		cfg.server = own.endpoint()
		where = "a server of its own at "
	}
	s := &stage{cfg: cfg, prefix: "holdfast-demo:" + rand.Text() + ":", print: out}
	if s.server, err = cfg.server.direct(); err != nil {
		return false, err
	}
	defer s.server.Close()
	if s.proxy, err = newProxy(cfg.server.address()); err != nil {
		return false, err
	}
	defer s.proxy.close()

	out.say("One load, one outage, three clients, on %s%s,\n"+
		"through a proxy. killed: connections are reset and new ones refused. hung:\n"+
		"nothing is answered. %d callers; of 100 calls 80 read, 18 set, 2 delete, on\n"+
		"%s keys. local, redis, miss: who answered the reads; local includes the\n"+
		"journal. p50, max: ms that a call took. kept: writes that wait for redis.\n",
		where, cfg.server.address(), cfg.callers, thousands(keyCount))
	ours, kept, err := s.runHoldfast(ctx)
	if err != nil {
		return false, err
	}
	var peers []peer
	for _, p := range []peer{
		{name: "plain rueidis", prefix: "b:", client: func(c rueidis.Client) client { return plain{c} }},
		{name: "rueidis with DoCache", prefix: "c:", cache: true, client: func(c rueidis.Client) client { return caching{plain{c}} }},
	} {
		if p.outcome, err = s.runPeer(ctx, p); err != nil {
			return false, err
		}
		peers = append(peers, p)
	}
	verdict := judge(ours, kept, cfg.allowance)
	s.announce(verdict, ours, kept, peers)
	return len(verdict) == 0, nil
}

// runHoldfast runs the script with holdfast and then reads the keys back from the server.
func (s *stage) runHoldfast(ctx context.Context) (o outcome, kept proof, err error) {
	s.print.say("holdfast, which gives a call %v for redis:", budget)
	cache, err := holdfast.New(holdfast.Options{
		Redis:   s.cfg.server.through(s.proxy.addr, &s.dials),
		Timeout: budget,
		Breaker: holdfast.BreakerOptions{ProbePrefix: s.prefix + "probe:"},
	})
	if err != nil {
		return o, kept, err
	}
	l := newLoad(twoTiers{cache}, s.cfg, s.prefix+"a:")
	defer s.forget(l.keys)
	defer cache.Close() // before the keys are deleted: it must not replay any

	ready, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	if err := cache.WaitReady(ready); err != nil {
		return o, kept, fmt.Errorf("redis is not ready: %w", errors.Join(err, cache.Health().LastError))
	}
	if err := l.fill(ctx); err != nil {
		return o, kept, err
	}
	o, err = s.play(ctx, l, func(r *row) {
		health := cache.Health()
		r.state = health.State.String()
		r.journal = thousands(int64(health.JournalKeys))
	})
	if err != nil {
		return o, kept, err
	}
	if err := s.settle(ctx, cache); err != nil {
		return o, kept, err
	}
	kept, err = prove(ctx, s.server, l.keys, l.ledger)
	return o, kept, err
}

// settle waits until the server has every write.
func (s *stage) settle(ctx context.Context, cache *holdfast.Cache) error {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, drainWithin)
	defer cancel()
	if err := cache.Drain(ctx); err != nil {
		return fmt.Errorf("replaying the journal, %d keys left: %w", cache.Health().JournalKeys, err)
	}
	// A write whose reply was lost in an outage is checked a second time, because it may
	// have run late.
	ticks := time.NewTicker(10 * time.Millisecond)
	defer ticks.Stop()
	for left := cache.Health().JournalKeys; left > 0; left = cache.Health().JournalKeys {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the second look at %d keys: %w", left, ctx.Err())
		case <-ticks.C:
		}
	}
	stats := cache.Stats()
	s.print.say("journal: %s writes kept, %s keys replayed, %s given up;\n"+
		"empty %s ms after the last call.\n",
		thousands(int64(stats.Journaled)), thousands(int64(stats.Replayed)),
		thousands(int64(stats.Superseded+stats.Downgraded+stats.Rejected)), millis(time.Since(start)))
	return nil
}

// peer is rueidis without holdfast.
type peer struct {
	name   string
	prefix string // of its keys
	cache  bool   // with client-side caching
	client func(rueidis.Client) client
	outcome
}

// runPeer runs the same script with another client.
func (s *stage) runPeer(ctx context.Context, p peer) (o outcome, err error) {
	s.print.say("%s with a deadline of %v a call, else with its defaults:", p.name, budget)
	option := s.cfg.server.through(s.proxy.addr, &s.dials)
	// The client would reach the nodes of a cluster directly, past the proxy.
	option.ForceSingleClient = true
	option.DisableCache = !p.cache
	c, err := rueidis.NewClient(option)
	if c != nil {
		defer c.Close()
	}
	if err != nil {
		return o, fmt.Errorf("%s: %w", p.name, err)
	}
	l := newLoad(p.client(c), s.cfg, s.prefix+p.prefix)
	defer s.forget(l.keys)
	defer c.Close() // before the keys are deleted: writes may be on their way
	if err := l.fill(ctx); err != nil {
		return o, err
	}
	o, err = s.play(ctx, l, func(*row) {})
	s.print.say("")
	return o, err
}

// play runs the load through the script. It prints about one row a second, and each row
// lies within one phase. look adds the state that the client reports about itself.
func (s *stage) play(ctx context.Context, l *load, look func(*row)) (o outcome, err error) {
	s.print.heading()
	s.dials.Store(0)
	l.start()
	defer l.stop()
	defer s.proxy.set(up)
	var (
		start = time.Now()
		due   = start // of the row
		last  = start
		timer = time.NewTimer(0)
	)
	defer timer.Stop()
	for _, part := range script {
		if err := s.proxy.set(part.mode); err != nil {
			return o, err
		}
		length := time.Duration(float64(part.length) * s.cfg.scale)
		for range rows(length, s.cfg.scale) {
			due = due.Add(length / time.Duration(rows(length, s.cfg.scale)))
			timer.Reset(time.Until(due))
			select {
			case <-ctx.Done():
				return o, ctx.Err()
			case <-timer.C:
			}
			now := time.Now()
			r := row{at: now.Sub(start), length: now.Sub(last), script: part.mode, tally: l.meter.take(), dials: s.dials.Swap(0)}
			look(&r)
			last = now
			s.print.row(r)
			o.merge(r.tally)
			o.dials += r.dials
		}
	}
	l.stop()
	o.merge(l.meter.take())
	o.dials += s.dials.Swap(0)
	return o, nil
}

// rows returns the number of rows of a phase: one a second, and in a shortened script as
// many as at full length.
func rows(length time.Duration, scale float64) int {
	unit := float64(time.Second) * min(1, scale)
	return max(1, int(math.Round(float64(length)/unit)))
}

// forget deletes the keys that the demo wrote, also after an interruption. The key of
// holdfast's probe is left: it expires within seconds.
func (s *stage) forget(keys []string) {
	ctx, cancel := context.WithTimeout(context.Background(), readyWithin)
	defer cancel()
	if err := forget(ctx, s.server, keys); err != nil {
		s.print.say("the keys that begin with %s could not be deleted: %v", s.prefix, err)
	}
}
