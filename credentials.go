package holdfast

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
)

// credentialsLimit is what Redis.AuthCredentialsFn has for its answer.
const credentialsLimit = 10 * time.Second

// credentials asks Redis.AuthCredentialsFn. rueidis would ask within the handshake, and
// so within Dialer.Timeout; here it is asked before the dial, in time of its own, and on
// a goroutine of its own, because it takes no context.
type credentials struct {
	fn      func(rueidis.AuthCredentialsContext) (rueidis.AuthCredentials, error)
	workers *group

	mu struct {
		sync.Mutex
		asking map[string]*credentialsCall // by address; one call each, also of one that hangs
	}
}

type credentialsCall struct {
	done   chan struct{}
	result rueidis.AuthCredentials
	err    error
}

// login is the credentials of one connection. rueidis gets it as the connection's remote
// address, which is all that it hands to AuthCredentialsFn.
type login struct {
	net.Addr
	life    context.Context
	first   rueidis.AuthCredentials
	used    bool // rueidis asks once, and again to renew; one call after the other
	failure atomic.Pointer[error]
}

// login asks for the credentials of a connection to addr: for credentialsLimit at most,
// and less once its life ends. nil where there is no function to ask.
func (c *credentials) login(life context.Context, addr string) (*login, error) {
	if c == nil || c.fn == nil {
		return nil, nil
	}
	first, err := c.ask(life, addr)
	if err != nil {
		return nil, err
	}
	return &login{Addr: dialledAddr(addr), life: life, first: first}, nil
}

// answer is AuthCredentialsFn to rueidis.
func (c *credentials) answer(asked rueidis.AuthCredentialsContext) (rueidis.AuthCredentials, error) {
	l, ok := asked.Address.(*login)
	if !ok {
		return rueidis.AuthCredentials{}, errNoLogin
	}
	if !l.used {
		l.used = true
		return l.first, nil
	}
	next, err := c.ask(l.life, l.String())
	if err != nil {
		l.failure.Store(&err) // rueidis closes the connection
	}
	return next, err
}

var errNoLogin = errors.New("holdfast: credentials were asked for a connection that was not dialled here")

// lost is why the connection was closed.
func (l *login) lost(cause error) error {
	if l != nil && cause == nil {
		if err := l.failure.Load(); err != nil {
			return *err
		}
	}
	return cause
}

func (c *credentials) ask(ctx context.Context, addr string) (rueidis.AuthCredentials, error) {
	asking := c.call(addr)
	limit := time.NewTimer(credentialsLimit)
	defer limit.Stop()
	select {
	case <-asking.done:
		return asking.result, asking.err
	case <-ctx.Done():
		return rueidis.AuthCredentials{}, ctx.Err()
	case <-limit.C:
		return rueidis.AuthCredentials{}, fmt.Errorf("holdfast: Redis.AuthCredentialsFn did not return within %v", credentialsLimit)
	}
}

// call is the one that is under way for the address.
func (c *credentials) call(addr string) *credentialsCall {
	c.mu.Lock()
	defer c.mu.Unlock()
	if asking := c.mu.asking[addr]; asking != nil {
		return asking
	}
	// What a function that panics or ends its goroutine leaves behind.
	asking := &credentialsCall{done: make(chan struct{}), err: errors.New("holdfast: Redis.AuthCredentialsFn ended without returning")}
	if c.mu.asking == nil {
		c.mu.asking = make(map[string]*credentialsCall)
	}
	c.mu.asking[addr] = asking
	if !c.workers.spawn("credentials", func() {
		defer func() {
			if r := recover(); r != nil {
				asking.err = fmt.Errorf("holdfast: Redis.AuthCredentialsFn panicked: %.200v", r)
			}
			c.mu.Lock()
			delete(c.mu.asking, addr)
			c.mu.Unlock()
			close(asking.done)
		}()
		got, err := c.fn(rueidis.AuthCredentialsContext{Address: dialledAddr(addr)})
		if err != nil {
			if gaveUp(err) {
				err = errors.New(err.Error()) // not to be taken for a server that is mute
			}
			err = fmt.Errorf("holdfast: Redis.AuthCredentialsFn: %w", err)
		} else {
			got.RefreshAfter = renewedAfter(got.RefreshAfter)
		}
		asking.result, asking.err = got, err
	}) {
		delete(c.mu.asking, addr)
		asking.err = ErrClosed
		close(asking.done)
	}
	return asking
}

// renewedAfter is when rueidis asks anew. Told a time that is past it would ask without
// a pause.
func renewedAfter(t time.Time) time.Time {
	if least := time.Now().Add(time.Second); !t.IsZero() && t.Before(least) {
		return least
	}
	return t
}

// dialledAddr is the address as the function is told it, before it is resolved.
func dialledAddr(addr string) net.Addr {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return namedAddr(addr)
	}
	ip, n := net.ParseIP(host), 0
	if n, err = strconv.Atoi(port); ip == nil || err != nil {
		return namedAddr(addr)
	}
	return &net.TCPAddr{IP: ip, Port: n}
}

// namedAddr is one whose host is a name, or that is a socket's path.
type namedAddr string

func (a namedAddr) Network() string { return "tcp" }
func (a namedAddr) String() string  { return string(a) }
