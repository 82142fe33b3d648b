package dial

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/redis/rueidis"
)

// Pipe is one connection with its rueidis client. It is never dialled again: once the connection is
// lost, every call that still holds the pipe fails in less than a microsecond.
type Pipe struct {
	Client rueidis.Client
	Addr   string
	Dialer *Dialer
	end    context.CancelFunc

	Lost    atomic.Bool
	LostErr atomic.Pointer[error]
	Ended   atomic.Bool // closed by us before it was lost
}

// Plan describes the pipe to open.
type Plan struct {
	Addr   string
	Option rueidis.ClientOption // as the user gave it
	Manner Manner
	// Credentials provide the login, if option has an AuthCredentialsFn.
	Credentials *Credentials

	Hearing *Hearing        // nil for none
	Within  context.Context // bounds dial and handshake beside life; may be nil
	Attempt func()          // counts a dial
	Lost    func()          // called once when the connection ends, on any goroutine
	// Invalidated gets the keys that the server invalidates, nil for all keys. It runs on the
	// goroutine that reads the connection.
	Invalidated func([]rueidis.RedisMessage)
}

// Dial dials once and performs the handshake. After AuthCredentialsFn has returned (10 s at most)
// it blocks for at most twice Dialer.Timeout, and less if life ends.
func (p *Pipe) Dial(life context.Context, pl Plan) (err error) {
	ctx, cancel := context.WithCancel(life)
	p.Addr, p.end = pl.Addr, cancel
	p.Dialer = &Dialer{
		User: pl.Option.DialCtxFn, Life: ctx, Attempt: pl.Attempt, hearing: pl.Hearing,
		Plain: pl.Manner != MannerFull, Credentials: pl.Credentials,
	}
	p.Dialer.Lost = func(cause error) {
		if cause == nil {
			cause = ErrConnClosed
		}
		p.LostErr.CompareAndSwap(nil, &cause)
		p.Lost.Store(true)
		pl.Lost()
	}
	p.Dialer.Permit.Store(true)
	stop := context.AfterFunc(ctx, p.Dialer.Close)
	if pl.Within != nil {
		defer context.AfterFunc(pl.Within, cancel)() // cancels a hanging dial, too
	}
	defer func() {
		// rueidis parses the handshake's replies on this goroutine, and trusts their types.
		if r := recover(); r != nil {
			err = fmt.Errorf("the handshake made no sense: %v", r)
		}
		if err != nil {
			stop()
			p.Close()
		}
	}()
	p.Client, err = rueidis.NewClient(ClientOption(pl, p.Dialer))
	p.Dialer.HandshakeDone()
	if p.Dialer.Late.Load() {
		err = context.DeadlineExceeded
	}
	return p.Dialer.Explain(Unanswered(err, pl.Option.Dialer.Timeout))
}

var ErrConnClosed = errors.New("holdfast: the connection was closed")

// Unanswered makes the error of a timeout name the timeout.
func Unanswered(err error, limit time.Duration) error {
	if rediserr.GaveUp(err) {
		return fmt.Errorf("no answer within %v: %w", limit, err)
	}
	return err
}

// Close ends the pipe and everything that waits on it. The connection is closed first: rueidis
// alone would wait a second for a server that does not answer.
func (p *Pipe) Close() {
	if !p.Lost.Load() {
		p.Ended.Store(true)
	}
	p.end()
	p.Dialer.Close()
	if p.Client != nil {
		p.Client.Close()
	}
}
