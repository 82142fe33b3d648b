package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/rueidis"
)

// endpoint is a server with the options to connect to it.
type endpoint struct {
	option rueidis.ClientOption
}

var errPlainTCP = errors.New("the demo proxies plain TCP to one server only")

// parseEndpoint parses a URL in the syntax of rueidis.ParseURL. Its error never shows the
// password.
func parseEndpoint(text string) (endpoint, error) {
	option, err := rueidis.ParseURL(text)
	var broken *url.Error
	switch {
	case errors.As(err, &broken):
		return endpoint{}, broken.Err // broken itself holds the whole URL
	case err != nil:
		return endpoint{}, err
	case option.TLSConfig != nil:
		return endpoint{}, fmt.Errorf("%w, not TLS", errPlainTCP)
	case option.DialCtxFn != nil:
		return endpoint{}, fmt.Errorf("%w, not a unix socket", errPlainTCP)
	case option.Sentinel.MasterSet != "":
		return endpoint{}, fmt.Errorf("%w, not Sentinel", errPlainTCP)
	case len(option.InitAddress) != 1:
		return endpoint{}, fmt.Errorf("%w, not %d addresses", errPlainTCP, len(option.InitAddress))
	}
	return endpoint{option}, nil
}

func (e endpoint) address() string { return e.option.InitAddress[0] }

// embedded is a server inside this process. Its clock does not run by itself.
type embedded struct {
	server *miniredis.Miniredis
	stop   chan struct{}
	group  sync.WaitGroup
}

// tick is the interval at which the embedded server's clock is moved. A key may expire
// there too early by as much.
const tick = 10 * time.Millisecond

func embed() (*embedded, error) {
	e := &embedded{server: miniredis.NewMiniRedis(), stop: make(chan struct{})}
	if err := e.server.Start(); err != nil {
		return nil, fmt.Errorf("starting the embedded server: %w", err)
	}
	track(e.server.Server())
	e.group.Go(e.age)
	return e, nil
}

// age moves the clock, so that TTLs run down. The server could do so itself, but would
// sort all of its keys on each command.
func (e *embedded) age() {
	ticks := time.NewTicker(tick)
	defer ticks.Stop()
	for last := time.Now(); ; {
		select {
		case <-e.stop:
			return
		case <-ticks.C:
		}
		now := time.Now()
		e.server.FastForward(now.Sub(last))
		last = now
	}
}

func (e *embedded) endpoint() endpoint {
	return endpoint{rueidis.ClientOption{InitAddress: []string{e.server.Addr()}}}
}

func (e *embedded) close() {
	close(e.stop)
	e.group.Wait()
	e.server.Close()
}

// direct connects past the proxy, to read the state of the server.
func (e endpoint) direct() (rueidis.Client, error) {
	option := e.option
	option.ForceSingleClient = true
	option.DisableCache = true
	option.DisableRetry = true // otherwise it would ask a LOADING server without an end
	c, err := rueidis.NewClient(option)
	if err != nil {
		if c != nil {
			c.Close()
		}
		return nil, fmt.Errorf("connecting to %s: %w", e.address(), err)
	}
	return c, nil
}

// through returns the options for the clients under test: behind the proxy, with their
// dials counted, including refused ones.
func (e endpoint) through(proxyAddr string, dials *atomic.Int64) rueidis.ClientOption {
	option := e.option
	option.InitAddress = []string{proxyAddr}
	option.DialCtxFn = func(ctx context.Context, addr string, dialer *net.Dialer, _ *tls.Config) (net.Conn, error) {
		dials.Add(1)
		return dialer.DialContext(ctx, "tcp", addr)
	}
	return option
}

// forget deletes the keys in batches, until it finds none: writes that an interruption left on
// their way may still arrive.
func forget(ctx context.Context, server rueidis.Client, keys []string) error {
	const batch = 500
	for {
		found := int64(0)
		for rest := keys; len(rest) > 0; {
			n := min(batch, len(rest))
			deleted, err := server.Do(ctx, server.B().Del().Key(rest[:n]...).Build()).AsInt64()
			if err != nil {
				return err
			}
			found, rest = found+deleted, rest[n:]
		}
		if found == 0 {
			return nil
		}
	}
}
