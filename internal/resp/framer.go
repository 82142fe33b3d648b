package resp

import (
	"bytes"
	"math"
)

// A state names the kind of byte that is expected next.
//
//	state       byte              next state
//	----------  ----------------  ------------------------------------------
//	stType      + - , (           stLine
//	            : $ = ! * ~ % > | stNumber
//	            #                 stBool
//	            _                 stCR
//	stNumber    0-9, leading -    stNumber
//	            CR                stNumberLF, number and limits checked
//	stNumberLF  LF                $ = !   stBody, or element ends if null
//	                              * ~ % > | stType, or element ends if empty
//	                              :       element ends
//	stBody      length bytes      stCR
//	stBool      t f               stCR
//	stCR        CR                stLF
//	stLF        LF                element ends
//	stLine      anything, CR LF   element ends
//
// When an element ends, every aggregate that it completes ends too. The next state is
// stType in both cases: of the next element, or of the next top-level frame. An attribute
// (|) stands before the element that it describes and does not count as an element. Any
// byte that is not in the table is a violation, and every later call returns that
// violation.
type state uint8

const (
	stType state = iota
	stNumber
	stNumberLF
	stBody
	stBool
	stCR
	stLF
	stLine
)

// maxDigits is the number of digits of the largest int64. The digits of a number are
// summed up in a uint64, which 19 of them cannot overflow. rueidis sums up any number of
// them in an int64 (resp.go, readI), so that 2^64-5 becomes -5, and make([]byte, -5)
// panics.
const maxDigits = 19

// A Framer validates one direction of a RESP stream, in chunks cut anywhere. It accepts
// the replies of a Redis server in RESP2 or RESP3, and no input that rueidis is known not
// to survive. A correct server may send a few sequences that rueidis does not survive;
// the Framer rewrites these (see cut). It marks bytes to hold back that would make
// rueidis allocate more than has arrived (see hold).
//
// Streamed strings and aggregates are not accepted. The RESP3 specification has them, but
// no Redis server sends them, and rueidis grows them without a bound (resp.go,
// readBlobString and readE).
//
// A Framer is not safe for concurrent use.
type Framer struct {
	// AllowPubSub accepts the pushes of a connection that subscribes. On any other
	// connection a subscribe or unsubscribe push makes rueidis panic (pipe.go,
	// _backgroundRead, protocolbug). So by default invalidations are accepted, pushes of
	// unknown kinds are skipped by rueidis, and all others are violations. Set it before
	// the first Feed.
	AllowPubSub bool

	limits   Limits
	requests bool    // validates requests of a client: arrays of bulk strings
	allowed  int64   // how many frames other than pushes may have begun
	ledger   *ledger // shared by both directions of a connection that subscribes; used in place of allowed

	state    state
	typ      byte // type of the element being read
	negative bool
	lastCR   bool // in stLine: the previous byte was a CR
	push     pushKind
	must     demand // which reply is expected
	capture  int    // how many bytes of this element's text are copied to text
	text     []byte // the text of an error, of a push's kind, or of a request's name
	digits   int
	number   uint64
	remain   int64   // in stBody: bytes to skip
	line     int     // in stLine: bytes so far
	elements int64   // declared so far in this top-level frame
	missing  int64   // those of them that have not begun
	arity    int64   // elements of the current push or request
	pushAt   int     // number of aggregates around the current push
	stack    []level // the open aggregates
	prefixed bool    // an attribute of the next top-level frame has ended
	offset   int64   // bytes of all earlier chunks
	frame    int64   // offset of the first byte of this top-level frame

	// hold is the offset in the last chunk from which bytes are held back, or none.
	hold    int
	streams bool // top-level bulk strings are read without a buffer of their length

	cutting cutKind // the reason for the cut in progress
	cutFrom int     // where in this chunk the cut begins
	cuts    []cut   // the cuts of the last chunk
	later   []byte  // pushes that were cut out of a reply
	closing bool    // answered must be called at the end of this reply

	begun   int64
	replies int64
	pushes  int64
	errors  int64  // error replies
	said    []Said // the first of them, and the last
	deaf    bool   // further errors are not kept
	err     *ProtocolError
}

// A level is an open aggregate.
type level struct {
	missing int64 // elements that have not ended
	aside   byte  // '|' or '>' if it does not count as an element of the enclosing aggregate
}

// none is an invalid index.
const none = -1

var crlf = []byte("\r\n")

// NewFramer returns a Framer for the bytes that a server sends.
func NewFramer(limits Limits) *Framer {
	f := newFramer(limits.withDefaults())
	return &f
}

func newFramer(limits Limits) Framer {
	return Framer{
		limits:  limits,
		allowed: math.MaxInt64,
		stack:   make([]level, 0, min(limits.MaxDepth, 16)),
		hold:    none,
	}
}

// newRequestFramer returns a Framer for the bytes that a client sends. It checks only
// their form; the size of a request is the client's responsibility.
func newRequestFramer() Framer {
	f := newFramer(Limits{
		MaxBulk:     math.MaxInt64,
		MaxElements: math.MaxInt64,
		MaxDepth:    1,
		MaxLine:     1,
		MaxFrame:    math.MaxInt64,
	})
	f.requests = true
	return f
}

// Replies returns how many top-level frames other than pushes are complete.
func (f *Framer) Replies() int64 { return f.replies }

// Pushes returns how many pushes are complete.
func (f *Framer) Pushes() int64 { return f.pushes }

// MidFrame reports whether the last chunk ended inside a frame.
func (f *Framer) MidFrame() bool { return f.state != stType || len(f.stack) > 0 || f.prefixed }

// Feed validates the next chunk of the stream. An error is a *ProtocolError, which every
// later call returns again. No byte of a rejected chunk may be shown to rueidis.
func (f *Framer) Feed(b []byte) error {
	if f.err != nil {
		return f.err
	}
	if f.hold > 0 {
		f.hold = 0 // this chunk is behind bytes that are held already
	}
	f.cuts, f.cutFrom = f.cuts[:0], 0
	for i := 0; i < len(b); {
		switch f.state {
		case stType:
			if end := f.skip(b, i); end > i {
				i = end
				continue
			}
			i = f.begin(b, i)
		case stNumber:
			i = f.readNumber(b, i)
		case stNumberLF:
			i = f.readNumberLF(b, i)
		case stBody:
			i = f.readBody(b, i)
		case stBool:
			i = f.readBool(b, i)
		case stCR:
			i = f.readCR(b, i)
		case stLF:
			i = f.readLF(b, i)
		case stLine:
			i = f.readLine(b, i)
		}
	}
	if f.err != nil {
		return f.err
	}
	if f.hold >= 0 && f.paid(len(b)) {
		f.hold = none
	}
	if f.cutting != cutNone {
		f.cut(b, len(b), nil)
	}
	f.offset += int64(len(b))
	return nil
}

// The functions below handle one state each. They begin at b[i], and return the index of the
// first byte that they did not use. If a byte is a violation, they call fail.

// begin handles the type byte b[i], and the number that may follow.
func (f *Framer) begin(b []byte, i int) (next int) {
	c := b[i]
	top := len(f.stack) == 0
	if top && !f.prefixed {
		f.frame = f.offset + int64(i)
		f.elements, f.missing = 0, 0
	} else if f.offset+int64(i)-f.frame >= f.limits.MaxFrame {
		return f.fail(b, i, "frame larger than the limit")
	}
	if f.requests && (top && c != '*' || !top && c != '$') {
		return f.fail(b, i, "a request is an array of bulk strings")
	}
	if !top && c != '>' && c != '|' {
		f.missing--
	}
	after := stateAfter[c]
	if after == stType {
		return f.failType(b, i)
	}
	if c == '>' {
		if f.push != pushNone {
			return f.fail(b, i, "a push inside a push")
		}
		f.beginPush(i)
	}
	f.typ, f.state = c, after
	f.digits, f.number, f.negative = 0, 0, false
	f.line, f.lastCR = 0, false
	switch {
	case top && c != '|':
		f.prefixed = false
		if c == '>' {
			break
		}
		if reason := f.expects(c, i); reason != "" {
			// rueidis panics on a reply without a request (pipe.go, _backgroundRead,
			// protocolbug). The check is made here, not at the end of the reply, because
			// rueidis allocates before that.
			next = f.fail(b, i, reason)
			f.err.Hint = "it said " + quote(b[i:])
			return next
		}
		f.begun++
	case f.push == pushNone || c == '>':
	case f.push == pushUnknown:
		f.beginKind(c)
	case f.state != stNumber && !f.pushAccepts(c == '_'):
		return f.fail(b, i, "push of an unknown form")
	}
	if i++; f.state == stNumber && i < len(b) {
		return f.readNumber(b, i)
	}
	return i
}

// stateAfter is the state behind each type byte. It is stType for a byte that is none.
var stateAfter = [256]state{
	'$': stNumber, '=': stNumber, '!': stNumber, ':': stNumber,
	'*': stNumber, '~': stNumber, '%': stNumber, '>': stNumber, '|': stNumber,
	'+': stLine, '-': stLine, ',': stLine, '(': stLine,
	'#': stBool,
	'_': stCR,
}

// failType makes b[i] a violation, which is not the type of an accepted element.
func (f *Framer) failType(b []byte, i int) (next int) {
	if b[i] == '.' || b[i] == ';' {
		return f.fail(b, i, "streamed strings and aggregates are not accepted")
	}
	return f.fail(b, i, "not the type of a RESP element")
}

// beginPush handles the type byte of a push, which is at b[at].
func (f *Framer) beginPush(at int) {
	if len(f.stack) > 0 {
		// Redis before 7.0.5 sends a push inside a reply when tracked keys expire during a
		// command (redis/redis#8935). rueidis repairs such a reply if the server says that
		// it is Redis 6, and otherwise takes the rest of it for another reply (pipe.go,
		// _backgroundRead, ver == 6).
		f.cutting, f.cutFrom = cutPush, at
	}
	f.push, f.pushAt = pushUnknown, len(f.stack)
}

// readNumber handles the digits of a number, and the sign in front of them or the CRLF
// behind them.
func (f *Framer) readNumber(b []byte, i int) (next int) {
	number, digits := f.number, f.digits
	for i < len(b) && b[i]-'0' <= 9 && digits < maxDigits {
		number = number*10 + uint64(b[i]-'0')
		digits++
		i++
	}
	f.number, f.digits = number, digits
	if i == len(b) {
		return i
	}
	switch c := b[i]; {
	case c == '\r':
		if reason := f.checkNumber(f.offset + int64(i)); reason != "" {
			return f.fail(b, i, reason)
		}
		f.state = stNumberLF
		if i+1 < len(b) {
			return f.readNumberLF(b, i+1)
		}
	case c == '-' && digits == 0 && !f.negative:
		f.negative = true
	case c-'0' <= 9:
		return f.fail(b, i, "number of more than 19 digits")
	case c == '?':
		return f.fail(b, i, "streamed strings and aggregates are not accepted")
	default:
		return f.fail(b, i, "expected a digit")
	}
	return i + 1
}

// readNumberLF handles the end of a header.
func (f *Framer) readNumberLF(b []byte, i int) (next int) {
	if b[i] != '\n' {
		return f.fail(b, i, "expected LF after CR")
	}
	f.enter(b, i+1)
	return i + 1
}

// readBody handles the bytes of a bulk string, and its CRLF if the chunk has both bytes.
func (f *Framer) readBody(b []byte, i int) (next int) {
	n := min(f.remain, int64(len(b)-i))
	if f.capture > 0 {
		f.take(b[i : i+int(n)])
	}
	i += int(n)
	if f.remain -= n; f.remain > 0 {
		return i
	}
	f.state = stCR
	if f.capture > 0 {
		if reason := f.checkText(); reason != "" {
			return f.fail(b, i-1, reason)
		}
	}
	if i+1 < len(b) && b[i] == '\r' && b[i+1] == '\n' {
		i += 2
		f.end(b, i)
	}
	return i
}

// readBool handles the value of a boolean.
func (f *Framer) readBool(b []byte, i int) (next int) {
	if b[i] != 't' && b[i] != 'f' {
		return f.fail(b, i, "expected t or f")
	}
	f.state = stCR
	return i + 1
}

// readCR handles the CR behind an element.
func (f *Framer) readCR(b []byte, i int) (next int) {
	if b[i] != '\r' {
		return f.fail(b, i, "expected CR")
	}
	f.state = stLF
	return i + 1
}

// readLF handles the LF behind an element.
func (f *Framer) readLF(b []byte, i int) (next int) {
	if b[i] != '\n' {
		return f.fail(b, i, "expected LF after CR")
	}
	f.end(b, i+1)
	return i + 1
}

// readLine handles the text of a line, and its end. As in rueidis, the line ends at its first
// LF: a CR elsewhere in it is text.
func (f *Framer) readLine(b []byte, i int) (next int) {
	rest := b[i:min(len(b), i+f.limits.MaxLine+2-f.line)]
	n := bytes.IndexByte(rest, '\n')
	if f.capture > 0 {
		if n < 0 {
			f.take(rest)
		} else {
			f.take(rest[:n+1]) // the rest belongs to another element
		}
	}
	if n < 0 {
		i += len(rest)
		f.line += len(rest)
		f.lastCR = rest[len(rest)-1] == '\r'
		if f.line == f.limits.MaxLine+2 {
			return f.fail(b, i-1, "line longer than the limit")
		}
		return i
	}
	i += n
	if n > 0 {
		f.lastCR = rest[n-1] == '\r'
	}
	if !f.lastCR {
		return f.fail(b, i, "expected CR before LF")
	}
	if f.capture > 0 {
		f.text = bytes.TrimSuffix(f.text, crlf)
		if reason := f.checkText(); reason != "" {
			return f.fail(b, i, reason)
		}
	}
	f.end(b, i+1)
	return i + 1
}

// take copies the part of an element's text that is captured.
func (f *Framer) take(b []byte) {
	n := min(len(b), f.capture-len(f.text))
	f.text = append(f.text, b[:n]...)
}

// expects handles the beginning of a frame of type c that is not a push. It returns why
// the frame is not allowed, "" if it is.
func (f *Framer) expects(c byte, at int) (reason string) {
	isError := c == '-' || c == '!'
	if isError && !f.requests {
		f.capture, f.text, f.closing = maxSaid, f.text[:0], true
	}
	switch {
	case f.ledger == nil:
		if f.begun >= f.allowed {
			return "a reply nobody asked for"
		}
	case f.requests:
		f.ledger.began()
	default:
		f.must, reason = f.ledger.reply(isError)
		if reason != "" || f.must == anyReply {
			return reason
		}
		if !isError && c != '+' {
			return "an unsubscription was answered with a reply"
		}
		f.capture, f.text, f.closing = maxSaid, f.text[:0], true
		if isError {
			f.cutting, f.cutFrom = cutReply, at
			f.capture = math.MaxInt // the whole text, which substitute sends again
		}
	}
	return reason
}

// checkText checks a captured text that has ended.
func (f *Framer) checkText() (reason string) {
	f.capture = 0
	switch {
	case f.requests:
		f.ledger.named(f.text, f.arity-1)
		return ""
	case f.push == pushUnknown:
		return f.resolvePush(f.text)
	case f.must == anyReply || len(f.stack) > 0:
		return ""
	case f.must == eitherReply:
		f.must = f.ledger.decide(f.text)
	}
	// rueidis takes "PONG" for PING's answer, whatever its type.
	isPong := string(f.text) == "PONG"
	if isError := f.cutting == cutReply; isError == isPong {
		return "an unsubscription was answered with " + quote(f.text)
	}
	return ""
}

// checkNumber checks a number whose CR is at the given offset. rueidis acts on the number
// when it sees the LF.
func (f *Framer) checkNumber(offset int64) (reason string) {
	if f.digits == 0 {
		return "expected a digit"
	}
	null := false
	switch {
	case f.typ == ':':
		if f.number > math.MaxInt64 && !(f.negative && f.number == 1<<63) {
			return "integer out of range"
		}
	case f.negative:
		// make panics for $-5 and *-7 (resp.go, readB and readA), and for %-1, which
		// rueidis does not take for a null (readMap).
		if f.number != 1 || f.digits != 1 || f.typ != '$' && f.typ != '*' {
			return "negative length"
		}
		null = true
	case f.typ == '$', f.typ == '=', f.typ == '!':
		if f.number > uint64(f.limits.MaxBulk) {
			return "bulk string longer than the limit"
		}
		if f.number > uint64(f.limits.MaxFrame) || offset-f.frame > f.limits.MaxFrame-int64(f.number) {
			return "frame larger than the limit"
		}
	default:
		room := f.limits.MaxElements - f.elements
		if f.typ == '%' || f.typ == '|' {
			room /= 2
		}
		if f.number > uint64(room) {
			return "more elements than the limit"
		}
		if f.number > 0 && len(f.stack) == f.limits.MaxDepth {
			return "aggregates nested deeper than the limit"
		}
	}
	if f.requests && (null || f.typ == '*' && f.number == 0) {
		// Redis does not answer an empty request, so the server could send one reply too
		// many without being noticed.
		return "a request is an array of bulk strings"
	}
	switch f.push {
	case pushNone, pushOther:
	case pushUnknown:
		if f.typ == '>' {
			f.arity = int64(f.number)
		} else if null || f.number == 0 || f.number > maxPushKind {
			f.push = pushOther // no known kind has such a name
		} else {
			f.capture, f.text = maxPushKind, f.text[:0]
		}
	default:
		if !f.pushAccepts(null) {
			return "push of an unknown form"
		}
	}
	return ""
}

// enter handles a header whose number checkNumber has accepted. The header ends in front
// of b[i].
func (f *Framer) enter(b []byte, i int) {
	n := int64(f.number)
	if f.negative && f.typ != ':' {
		n = 0
	}
	switch f.typ {
	case '$', '=', '!':
		if f.negative {
			f.end(b, i)
			return
		}
		f.state = stBody
		if n == 0 {
			f.state = stCR
			f.capture = 0
		}
		if f.hold != none || n+f.missing*elementBytes > freeBytes {
			f.weigh(i, n, 0)
		}
		f.remain = n
		if f.requests && f.ledger != nil && f.stack[0].missing == f.arity {
			if n > 0 && n <= maxPushKind {
				f.capture, f.text = maxPushKind, f.text[:0]
			} else {
				f.ledger.named(nil, 0) // no subscription has such a name
			}
		}
	case '*', '~', '%', '>', '|':
		if f.typ == '%' || f.typ == '|' {
			n *= 2
		}
		aside := f.aside()
		if n == 0 {
			if aside == 0 {
				f.end(b, i)
			} else {
				f.endAside(aside, b, i)
			}
			return
		}
		if f.hold != none || (n+f.missing)*elementBytes > freeBytes {
			f.weigh(i, 0, n)
		}
		f.elements += n
		f.missing += n
		f.stack = append(f.stack, level{n, aside})
		f.state = stType
		if f.requests {
			f.arity = n
		}
	default:
		f.end(b, i)
	}
}

// aside returns the type of the aggregate that begins if it does not count as an element,
// else 0.
func (f *Framer) aside() byte {
	if f.typ == '|' || f.typ == '>' && len(f.stack) > 0 {
		return f.typ
	}
	return 0
}

// end ends the current element, in front of b[i], and every aggregate whose last element
// it is.
func (f *Framer) end(b []byte, i int) {
	f.state = stType
	for n := len(f.stack); n > 0; n-- {
		top := &f.stack[n-1]
		if top.missing--; top.missing > 0 {
			f.stack = f.stack[:n]
			return
		}
		if top.aside != 0 {
			f.stack = f.stack[:n-1]
			f.endAside(top.aside, b, i)
			return
		}
	}
	f.stack = f.stack[:0]
	if f.push != pushNone {
		f.push = pushNone
		f.pushes++
		return
	}
	f.replies++
	if f.closing {
		f.answered(b, i)
	}
}

// endAside ends an aggregate that does not count as an element: an attribute, or a push
// inside a reply.
func (f *Framer) endAside(kind byte, b []byte, i int) {
	f.state = stType
	if kind == '|' {
		f.prefixed = len(f.stack) == 0
		return
	}
	f.push = pushNone
	f.pushes++
	f.cut(b, i, nil)
	f.cutting, f.closing = cutNone, true
}

// answered does the pending work at the end of a reply: it inserts moved pushes, keeps
// the error, rewrites it if necessary.
func (f *Framer) answered(b []byte, i int) {
	f.closing = false
	if len(f.later) > 0 {
		f.cuts = append(f.cuts, cut{i, i, f.later})
		f.later = nil
		return // the reply was an aggregate
	}
	if f.typ != '+' {
		f.errors++
		f.note()
	}
	if f.cutting == cutReply {
		f.cut(b, i, f.substitute())
		f.cutting = cutNone
	}
	f.must = anyReply
}

// fail makes b[i] a violation. It returns len(b), which ends the reading of the chunk.
func (f *Framer) fail(b []byte, i int, reason string) (next int) {
	f.err = &ProtocolError{
		Offset:   f.offset + int64(i),
		Byte:     b[i],
		Reason:   reason,
		Outbound: f.requests,
	}
	if f.err.Offset == 0 && f.state == stType && !f.requests {
		f.err.Hint = firstByteHint(b)
	}
	return len(b)
}
