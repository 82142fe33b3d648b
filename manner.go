package holdfast

import (
	"bytes"
	"context"
	"errors"
	"io"
	"syscall"

	"github.com/redis/rueidis"
)

// manner is how a session introduces itself to a server.
type manner uint8

const (
	// mannerFull: HELLO 3. A server that answers it with "unknown command" is spoken
	// to in RESP2, on the same connection; rueidis does that.
	mannerFull manner = iota
	// mannerPlain: RESP2, and no HELLO and no CLIENT, for a server that refuses HELLO in
	// words that rueidis does not know, and with which it would not connect.
	mannerPlain
	// mannerMinimal: as mannerPlain, and no INFO either: AUTH, PING and SELECT are all that
	// is sent. It is for a server that hangs up at commands that it does not know.
	mannerMinimal
)

// minimalAfter is how many times in a row a server must hang up at a full introduction
// before a minimal one is tried. A proxy whose backend is away hangs up, too.
const minimalAfter = 3

// introduction chooses the manner of the next session, by what became of the last
// ones. It is the supervisor's alone.
//
//	full: refused in its own words    | plain is next
//	full: hung up, minimalAfter times | minimal is next
//	plain, minimal: stood             | full is tried once more, at once; if that is turned
//	                                  | away again, the manner is kept for the next session
//	plain, minimal: failed            | full is next
type introduction struct {
	kept    manner
	refused bool
	hangUps int
}

func (i *introduction) next() manner {
	switch {
	case i.kept != mannerFull:
		return i.kept
	case i.refused:
		return mannerPlain
	case i.hangUps >= minimalAfter:
		return mannerMinimal
	}
	return mannerFull
}

// turnedAway is how a server ended a full introduction, where it was the manner that it
// did not like, as far as that can be told.
type turnedAway uint8

const (
	notTurnedAway turnedAway = iota
	turnedAwayInWords
	turnedAwayByHangUp
)

// note takes in what became of a full introduction.
func (i *introduction) note(how turnedAway) {
	hangUps := i.hangUps + 1
	*i = introduction{}
	switch how {
	case turnedAwayInWords:
		i.refused = true
	case turnedAwayByHangUp:
		i.hangUps = hangUps
	}
}

// turnedAway judges the error with which an introduction ended.
func (p *pipe) turnedAway(err error) turnedAway {
	conn := p.dialer.connection()
	if err == nil || conn == nil {
		return notTurnedAway
	}
	if end := conn.Err(); errors.Is(end, io.EOF) || errors.Is(end, syscall.ECONNRESET) || errors.Is(end, syscall.EPIPE) {
		return turnedAwayByHangUp
	}
	var re *rueidis.RedisError
	switch {
	case rueidis.IsParseErr(err):
		return turnedAwayInWords // HELLO was answered with what is no map
	case !errors.As(err, &re), away(err):
		return notTurnedAway // it says nothing about HELLO
	}
	return turnedAwayInWords
}

// introduce opens a session in the manner that is next. It makes one dial, and a second
// one where a session without HELLO stands: whether the server can do more after all; or
// where the server is busy: who calls now may want to end its script.
func (l *link) introduce(life context.Context, addr string) (*session, error) {
	if l.bare {
		return l.introduceBare(life, addr)
	}
	m := l.introduction.next()
	s, how, err := l.openSession(life, addr, m, false)
	if isBusy(life, err) {
		return l.introduceBare(life, addr)
	}
	if m == mannerFull {
		l.introduction.note(how)
		return s, err
	}
	if err != nil {
		l.introduction = introduction{}
		return nil, err
	}
	full, how, err := l.openSession(life, addr, mannerFull, false)
	if how != notTurnedAway {
		l.introduction = introduction{kept: m}
		return s, nil
	}
	l.introduction = introduction{}
	s.close()
	return full, err
}

// introduceBare opens a session to a server that is busy, which shakes no hands: it asks for
// no more than what is allowed then.
func (l *link) introduceBare(life context.Context, addr string) (*session, error) {
	s, _, err := l.openSession(life, addr, mannerFull, true)
	l.bare = err == nil || isBusy(life, err)
	return s, err
}

func isBusy(ctx context.Context, err error) bool {
	return err != nil && classify(ctx, err) == classBusy
}

// rueidis sends HELLO 2 also where it is told to speak RESP2, and takes a refusal in
// other words than Redis' for an end. PING takes its place: of its reply rueidis looks
// only whether it is an error.
const (
	hello2 = "*2\r\n$5\r\nHELLO\r\n$1\r\n2\r\n"
	ping   = "*1\r\n$4\r\nPING\r\n"
)

// withoutHello is what a plain handshake sends. rueidis writes a handshake at one time.
func withoutHello(p []byte) []byte { return bytes.Replace(p, []byte(hello2), []byte(ping), 1) }

// plainBuffer is the least write buffer with which a handshake is written at one time,
// whatever the password.
const plainBuffer = 64 << 10

// withoutCourtesies takes out of the options what only HELLO and CLIENT could ask for.
func withoutCourtesies(o rueidis.ClientOption) rueidis.ClientOption {
	o.AlwaysRESP2 = true
	o.ClientSetInfo = rueidis.DisableClientSetInfo
	o.ClientName, o.ClientNoEvict, o.ClientNoTouch = "", false, false
	if o.WriteBufferEachConn > 0 {
		o.WriteBufferEachConn = max(o.WriteBufferEachConn, plainBuffer)
	}
	return o
}
