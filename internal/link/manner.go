package link

import (
	"bytes"
	"context"
	"errors"
	"io"
	"syscall"

	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/redis/rueidis"
)

// manner is the way in which a session introduces itself to a server.
type manner uint8

const (
	// mannerFull: HELLO 3. If the server answers "unknown command", rueidis speaks RESP2 on the
	// same connection.
	mannerFull manner = iota
	// mannerPlain: RESP2 without HELLO and CLIENT, for a server that refuses HELLO with an error
	// that rueidis does not know. rueidis would not connect to it.
	mannerPlain
	// MannerMinimal: like mannerPlain, and without INFO: only AUTH, PING and SELECT are sent. It is
	// for a server that hangs up at unknown commands.
	MannerMinimal
)

// minimalAfter is how many times in a row a server must hang up at a full introduction before a
// minimal one is tried. It is more than once because a proxy hangs up, too, while its backend is
// away.
const minimalAfter = 3

// introduction chooses the manner of the next session from the results of the last ones. Only the
// supervisor uses it.
//
//	full: refused with an unknown error | plain is next
//	full: hung up, minimalAfter times   | minimal is next
//	plain, minimal: connected           | full is tried once more, at once; if that is refused
//	                                    | again, the manner is kept for the next session
//	plain, minimal: failed              | full is next
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
		return MannerMinimal
	}
	return mannerFull
}

// turnedAway says how a server rejected a full introduction because of its manner, as far as that
// is known.
type turnedAway uint8

const (
	notTurnedAway turnedAway = iota
	turnedAwayInWords
	turnedAwayByHangUp
)

// note records the result of a full introduction.
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

// turnedAway classifies the error that ended an introduction.
func (p *pipe) turnedAway(err error) turnedAway {
	conn := p.Dialer.Connection()
	if err == nil || conn == nil {
		return notTurnedAway
	}
	if end := conn.Err(); errors.Is(end, io.EOF) || errors.Is(end, syscall.ECONNRESET) || errors.Is(end, syscall.EPIPE) {
		return turnedAwayByHangUp
	}
	var re *rueidis.RedisError
	switch {
	case rueidis.IsParseErr(err):
		return turnedAwayInWords // the reply to HELLO was no map
	case !errors.As(err, &re), away(err):
		return notTurnedAway // the error is not about HELLO
	}
	return turnedAwayInWords
}

// introduce opens a session in the next manner. It dials once, and in two cases a second time:
// after a session without HELLO has connected, to learn whether the server accepts a full one by
// now; and if the server is busy, because a caller may want to end its script.
func (l *Link) introduce(life context.Context, addr string) (*Session, error) {
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

// introduceBare opens a session to a busy server, which refuses most of a handshake. It sends only
// commands that are allowed then.
func (l *Link) introduceBare(life context.Context, addr string) (*Session, error) {
	s, _, err := l.openSession(life, addr, mannerFull, true)
	l.bare = err == nil || isBusy(life, err)
	return s, err
}

func isBusy(ctx context.Context, err error) bool {
	return err != nil && rediserr.Classify(ctx, err) == rediserr.Busy
}

// rueidis sends HELLO 2 even when it is told to use RESP2, and fails if the server refuses it with
// an unknown error. PING takes its place: rueidis only checks that its reply is no error.
const (
	hello2 = "*2\r\n$5\r\nHELLO\r\n$1\r\n2\r\n"
	ping   = "*1\r\n$4\r\nPING\r\n"
)

// withoutHello returns the bytes of a plain handshake. rueidis writes a handshake at once.
func withoutHello(p []byte) []byte { return bytes.Replace(p, []byte(hello2), []byte(ping), 1) }

// plainBuffer is the smallest write buffer, in bytes, in which a handshake with a password of any
// usual length fits into one write.
const plainBuffer = 64 << 10

// withoutCourtesies removes the options that need HELLO or CLIENT.
func withoutCourtesies(o rueidis.ClientOption) rueidis.ClientOption {
	o.AlwaysRESP2 = true
	o.ClientSetInfo = rueidis.DisableClientSetInfo
	o.ClientName, o.ClientNoEvict, o.ClientNoTouch = "", false, false
	if o.WriteBufferEachConn > 0 {
		o.WriteBufferEachConn = max(o.WriteBufferEachConn, plainBuffer)
	}
	return o
}
