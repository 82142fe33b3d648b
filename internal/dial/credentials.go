package dial

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-cache/holdfast/internal/group"
	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/redis/rueidis"
)

// credentialsLimit is the time within which Redis.AuthCredentialsFn must return.
const credentialsLimit = 10 * time.Second

// Credentials calls Redis.AuthCredentialsFn. rueidis would call it within the handshake, and so
// within Dialer.Timeout. Here it is called before the dial, with a limit of its own, and on a
// separate goroutine, because it takes no context.
type Credentials struct {
	Fn      func(rueidis.AuthCredentialsContext) (rueidis.AuthCredentials, error)
	Workers *group.Group

	mu struct {
		sync.Mutex
		asking map[string]*credentialsCall // by address; one call each, even if it hangs
	}
}

type credentialsCall struct {
	done   chan struct{}
	result rueidis.AuthCredentials
	err    error
}

// login holds the credentials of one connection. rueidis gets it as the connection's remote
// address, because it passes nothing else to AuthCredentialsFn.
type login struct {
	net.Addr
	life    context.Context
	first   rueidis.AuthCredentials
	used    bool // rueidis asks first for the login and again to renew it, one call at a time
	failure atomic.Pointer[error]
}

// login gets the credentials for a connection to addr. It blocks for at most credentialsLimit, and
// less if life ends. It returns nil if there is no AuthCredentialsFn.
func (c *Credentials) login(life context.Context, addr string) (*login, error) {
	if c == nil || c.Fn == nil {
		return nil, nil
	}
	first, err := c.ask(life, addr)
	if err != nil {
		return nil, err
	}
	return &login{Addr: dialledAddr(addr), life: life, first: first}, nil
}

// answer is the AuthCredentialsFn that rueidis gets.
func (c *Credentials) answer(asked rueidis.AuthCredentialsContext) (rueidis.AuthCredentials, error) {
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

// lost returns the reason why the connection was closed.
func (l *login) lost(cause error) error {
	if l != nil && cause == nil {
		if err := l.failure.Load(); err != nil {
			return *err
		}
	}
	return cause
}

func (c *Credentials) ask(ctx context.Context, addr string) (rueidis.AuthCredentials, error) {
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

// call returns the running call for the address, or starts one.
func (c *Credentials) call(addr string) *credentialsCall {
	c.mu.Lock()
	defer c.mu.Unlock()
	if asking := c.mu.asking[addr]; asking != nil {
		return asking
	}
	// This error stays if the function panics or ends its goroutine.
	asking := &credentialsCall{done: make(chan struct{}), err: errors.New("holdfast: Redis.AuthCredentialsFn ended without returning")}
	if c.mu.asking == nil {
		c.mu.asking = make(map[string]*credentialsCall)
	}
	c.mu.asking[addr] = asking
	if !c.Workers.Spawn("credentials", func() {
		defer func() {
			if r := recover(); r != nil {
				asking.err = fmt.Errorf("holdfast: Redis.AuthCredentialsFn panicked: %.200v", r)
			}
			c.mu.Lock()
			delete(c.mu.asking, addr)
			c.mu.Unlock()
			close(asking.done)
		}()
		got, err := c.Fn(rueidis.AuthCredentialsContext{Address: dialledAddr(addr)})
		if err != nil {
			if rediserr.GaveUp(err) {
				err = errors.New(err.Error()) // else it would count as a silent server
			}
			err = fmt.Errorf("holdfast: Redis.AuthCredentialsFn: %w", err)
		} else {
			got.RefreshAfter = renewedAfter(got.RefreshAfter)
		}
		asking.result, asking.err = got, err
	}) {
		delete(c.mu.asking, addr)
		asking.err = group.ErrClosed
		close(asking.done)
	}
	return asking
}

// renewedAfter returns the time at which rueidis asks again. With a time in the past it would ask
// without a pause.
func renewedAfter(t time.Time) time.Time {
	if least := time.Now().Add(time.Second); !t.IsZero() && t.Before(least) {
		return least
	}
	return t
}

// dialledAddr returns the address as passed to the function, before it is resolved.
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

// namedAddr is an address with a host name, or the path of a socket.
type namedAddr string

func (a namedAddr) Network() string { return "tcp" }
func (a namedAddr) String() string  { return string(a) }
