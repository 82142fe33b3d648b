package dial

import (
	"bytes"
	"context"
	"errors"
	"io"
	"syscall"

	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/redis/rueidis"
)

// Manner is the way in which a session introduces itself to a server.
type Manner uint8

const (
	// MannerFull: HELLO 3. If the server answers "unknown command", rueidis speaks RESP2 on the
	// same connection.
	MannerFull Manner = iota
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

// Introduction chooses the manner of the next session from the results of the last ones. Only the
// supervisor uses it.
//
//	full: refused with an unknown error | plain is next
//	full: hung up, minimalAfter times   | minimal is next
//	plain, minimal: connected           | full is tried once more, at once; if that is refused
//	                                    | again, the manner is kept for the next session
//	plain, minimal: failed              | full is next
type Introduction struct {
	Kept    Manner
	refused bool
	hangUps int
}

func (i *Introduction) Next() Manner {
	switch {
	case i.Kept != MannerFull:
		return i.Kept
	case i.refused:
		return mannerPlain
	case i.hangUps >= minimalAfter:
		return MannerMinimal
	}
	return MannerFull
}

// TurnedAway says how a server rejected a full introduction because of its manner, as far as that
// is known.
type TurnedAway uint8

const (
	NotTurnedAway TurnedAway = iota
	turnedAwayInWords
	turnedAwayByHangUp
)

// Note records the result of a full introduction.
func (i *Introduction) Note(how TurnedAway) {
	hangUps := i.hangUps + 1
	*i = Introduction{}
	switch how {
	case turnedAwayInWords:
		i.refused = true
	case turnedAwayByHangUp:
		i.hangUps = hangUps
	}
}

// TurnedAway classifies the error that ended an introduction.
func (p *Pipe) TurnedAway(err error) TurnedAway {
	conn := p.Dialer.Connection()
	if err == nil || conn == nil {
		return NotTurnedAway
	}
	if end := conn.Err(); errors.Is(end, io.EOF) || errors.Is(end, syscall.ECONNRESET) || errors.Is(end, syscall.EPIPE) {
		return turnedAwayByHangUp
	}
	var re *rueidis.RedisError
	switch {
	case rueidis.IsParseErr(err):
		return turnedAwayInWords // the reply to HELLO was no map
	case !errors.As(err, &re), Away(err):
		return NotTurnedAway // the error is not about HELLO
	}
	return turnedAwayInWords
}

// Away reports that an error reply to a greeting is about the server's state.
func Away(err error) bool {
	c := rediserr.Classify(context.Background(), err)
	return c == rediserr.Down || c == rediserr.Busy
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

// withoutClientOptions removes the options that need HELLO or CLIENT.
func withoutClientOptions(o rueidis.ClientOption) rueidis.ClientOption {
	o.AlwaysRESP2 = true
	o.ClientSetInfo = rueidis.DisableClientSetInfo
	o.ClientName, o.ClientNoEvict, o.ClientNoTouch = "", false, false
	if o.WriteBufferEachConn > 0 {
		o.WriteBufferEachConn = max(o.WriteBufferEachConn, plainBuffer)
	}
	return o
}
