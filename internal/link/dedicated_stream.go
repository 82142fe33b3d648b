package link

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/holdfast-cache/holdfast/internal/dial"
	"github.com/holdfast-cache/holdfast/internal/group"
	"github.com/redis/rueidis"
)

// streaming is the rueidis client for the streams of one servingCtx. The caller reads a stream at
// its own pace, and only rueidis knows when it was read to its end; rueidis then returns the
// connection to a pool of its own. So all streams of a servingCtx share one rueidis client, and it
// dials only for calls whose context has a streamCall.
type streaming struct {
	client  rueidis.Client
	serving *servingCtx
}

// streamCall is the right of one call to dial. It is passed in the call's context.
type streamCall struct {
	grant  dialSlot
	dialer *dial.Dialer // of the dial that the call made
	stop   func() bool
	left   bool // the call ended before the dial
}

type streamKey struct{}

// streamLimit is the least time in which a stream may be read if its context has no deadline.
// rueidis limits the reading by ConnWriteTimeout, which elsewhere in this package is the time after
// which a silent server is noticed.
const streamLimit = 10 * time.Second

// Stream sends commands over a connection for streams and returns the stream of their replies. It
// blocks for at most Dialer.Timeout until it may dial, then for at most twice that, after the call
// of Redis.AuthCredentialsFn (ten seconds at most); less if ctx ends. The caller has entered the
// call gate.
func (o *dedicatedPool) Stream(ctx context.Context, send func(context.Context, rueidis.Client) rueidis.RedisResultStream) rueidis.RedisResultStream {
	if err := ctx.Err(); err != nil {
		return rueidis.NewErrorResultStream(err)
	}
	var p *servingCtx
	if s := o.link.Reader(); s != nil {
		p = s.serving.Load()
		if rc := o.streamsOf(s, p); rc != nil {
			return o.streamBy(ctx, p, rc, send)
		}
	}
	return rueidis.NewErrorResultStream(o.link.Why())
}

// streamsOf returns the rueidis client for the streams of the servingCtx p, nil if there is none.
func (o *dedicatedPool) streamsOf(s *Session, p *servingCtx) rueidis.Client {
	if p == nil {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.mu.streams != nil && o.mu.streams.serving == p {
		return o.mu.streams.client
	}
	d := &dial.Dialer{Credentials: &o.link.credentials}
	option := o.option(s, d, false)
	keepAlive, plain := d.KeepAlive, s.Manner != dial.MannerFull
	option.DialCtxFn = func(ctx context.Context, addr string, nd *net.Dialer, cfg *tls.Config) (net.Conn, error) {
		sc, _ := ctx.Value(streamKey{}).(*streamCall)
		if sc == nil {
			return nil, dial.ErrNoPermit
		}
		return sc.dial(ctx, addr, nd, cfg, keepAlive, plain)
	}
	option.AlwaysPipelining = false
	option.ConnWriteTimeout = max(option.ConnWriteTimeout, streamLimit)
	option.BlockingPoolSize = 1 << 30 // the slots are the bound
	option.BlockingPoolCleanup, option.BlockingPoolMinSize = o.kept(), 0
	rc, _ := rueidis.NewClient(option)
	if rc == nil {
		return nil
	}
	o.mu.streams = &streaming{client: rc, serving: p}
	context.AfterFunc(p, rc.Close) // closes the idle ones; a stream in use is closed by its dialer
	return rc
}

func (o *dedicatedPool) streamBy(ctx context.Context, p *servingCtx, rc rueidis.Client, send func(context.Context, rueidis.Client) rueidis.RedisResultStream) rueidis.RedisResultStream {
	sc := &streamCall{grant: dialSlot{pool: o, serving: p}}
	r := send(context.WithValue(ctx, streamKey{}, sc), rc)
	err := r.Error()
	ctxErr := ctx.Err()
	if sc.dialer != nil {
		sc.stop()
		if !sc.left {
			sc.dialer.HandshakeDone()
		}
		switch {
		case err == nil:
			sc.dialer.Settled()
			sc.dialer.Streams()
		case ctxErr != nil:
			err = ctxErr
		default:
			err = sc.dialer.Explain(err)
		}
		o.dialled(err)
	}
	if err == nil {
		return r
	}
	if ctxErr != nil {
		err = ctxErr
	} else if !errors.Is(err, group.ErrClosed) {
		err = o.failed(p, err)
	}
	return rueidis.NewErrorResultStream(err)
}

// dial makes the connection of a call. The dial runs on its own goroutine, so that the caller's
// context can end the wait for a dial that hangs.
func (sc *streamCall) dial(ctx context.Context, addr string, nd *net.Dialer, cfg *tls.Config, keepAlive time.Duration, plain bool) (net.Conn, error) {
	o, p := sc.grant.pool, sc.grant.serving
	limit := time.NewTimer(o.link.cfg.Redis.Dialer.Timeout)
	defer limit.Stop()
	if _, err := sc.grant.wait(ctx, limit.C, nil); err != nil {
		return nil, err
	}
	d := &dial.Dialer{
		User: o.link.cfg.Redis.DialCtxFn, Life: p, KeepAlive: keepAlive,
		Attempt: func() { o.link.stats.Dials.Add(1) },
		MapErr:  func(err error) error { return o.failed(p, err) },

		Plain: plain, Credentials: &o.link.credentials,
	}
	stop := context.AfterFunc(p, d.Close)
	free := sync.OnceFunc(func() { stop(); <-o.slots })
	d.Lost = func(error) { free() }
	d.Permit.Store(true)
	// ctx also ends the handshake, which comes after this dial.
	sc.dialer, sc.stop = d, context.AfterFunc(ctx, d.Close)
	type dialled struct {
		conn net.Conn
		err  error
	}
	done := make(chan dialled, 1)
	spawned := o.link.cfg.Workers.Spawn("dial", func() {
		conn, err := d.Dial(ctx, addr, nd, cfg)
		if err != nil {
			free()
		}
		done <- dialled{conn, err}
	})
	if !spawned {
		free()
		done <- dialled{nil, group.ErrClosed}
	}
	var err error
	select {
	case got := <-done:
		return got.conn, got.err
	case <-ctx.Done():
		err = ctx.Err()
	case <-p.Done():
		err = o.failed(p, dial.ErrConnClosed)
	}
	sc.left = true
	d.Close() // also a connection that the dial has yet to make
	return nil, err
}
