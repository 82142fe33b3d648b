package resp

import (
	"bytes"
	"math"
)

// A state names what the next byte is expected to be.
//
//	state       byte              next state
//	----------  ----------------  ------------------------------------------
//	stType      + - , (           stLine
//	            : $ = ! * ~ % >   stNumber
//	            #                 stBool
//	            _                 stCR
//	stNumber    0-9, leading -    stNumber
//	            CR                stNumberLF, number and limits checked
//	stNumberLF  LF                $ = !   stBody, or element ends if null
//	                              * ~ % > stType, or element ends if empty
//	                              :       element ends
//	stBody      length bytes      stCR
//	stBool      t f               stCR
//	stCR        CR                stLF
//	stLF        LF                element ends
//	stLine      anything, CR LF   element ends
//
// When an element ends, every aggregate it completes ends too. The state after
// it is stType either way: of the next element, or of the next top-level frame.
// Any byte that is not in the table is a violation, after which the Framer
// returns that violation for ever.
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

// maxDigits is the length of the largest int64. The digits of a number are
// summed up in a uint64, which 19 of them cannot overflow; rueidis sums up any
// number of them in an int64 (resp.go, readI), so that 2^64-5 becomes -5, and
// make([]byte, -5) panics.
const maxDigits = 19

// A Framer validates one direction of a RESP stream, in chunks cut anywhere. It
// accepts what a Redis server sends with RESP2 or RESP3, and nothing that
// rueidis is known not to survive. It keeps no payload.
//
// Not accepted although the RESP3 specification knows them, because no Redis
// server sends them: streamed strings and aggregates, which rueidis grows
// without a bound (resp.go, readBlobString and readE), and attributes.
//
// A Framer is not safe for concurrent use.
type Framer struct {
	// AllowPubSub accepts the pushes of a connection that subscribes. On any
	// other connection a subscribe or unsubscribe push makes rueidis panic
	// (pipe.go, _backgroundRead, protocolbug), so by default the only push is
	// an invalidation. Set it before the first Feed.
	AllowPubSub bool

	limits   Limits
	requests bool    // validates what a client sends: arrays of bulk strings
	allowed  int64   // how many frames other than pushes may have begun
	ledger   *ledger // of both directions, where the connection subscribes; in allowed's place

	state    state
	typ      byte // type of the element being read
	negative bool
	lastCR   bool // in stLine: the previous byte was a CR
	push     pushKind
	kind     [maxPushKind]byte // what the push says its kind is, or a request its name
	naming   bool              // in stBody: of a request's name
	must     demand            // what the reply must be
	text     []byte            // its beginning, where must says what it must be
	digits   int
	number   uint64
	remain   int64   // in stBody: bytes to skip
	line     int     // in stLine: bytes so far
	elements int64   // declared so far in this top-level frame
	arity    int64   // elements of the current push
	stack    []int64 // elements still missing, one entry per open aggregate
	offset   int64   // bytes of all earlier chunks
	frame    int64   // offset of the first byte of this top-level frame

	begun   int64
	replies int64
	pushes  int64
	err     *ProtocolError
}

// NewFramer returns a Framer for the bytes a server sends.
func NewFramer(limits Limits) *Framer {
	f := newFramer(limits.withDefaults())
	return &f
}

func newFramer(limits Limits) Framer {
	return Framer{
		limits:  limits,
		allowed: math.MaxInt64,
		stack:   make([]int64, 0, min(limits.MaxDepth, 16)),
	}
}

// newRequestFramer validates what a client sends. How large a request may be
// is the business of whoever makes it, so only its form is checked.
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

// MidFrame tells whether the last chunk ended inside a frame.
func (f *Framer) MidFrame() bool { return f.state != stType || len(f.stack) > 0 }

// Feed validates the next chunk of the stream. An error is a *ProtocolError;
// it is returned again by every later call. No byte of a chunk that Feed
// rejected may be shown to rueidis.
func (f *Framer) Feed(b []byte) error {
	if f.err != nil {
		return f.err
	}
	i := 0
	for i < len(b) {
		switch f.state {
		case stType:
			if !f.begin(b, i) {
				return f.err
			}
			i++

		case stNumber:
			number, digits := f.number, f.digits
			for i < len(b) && b[i]-'0' <= 9 && digits < maxDigits {
				number = number*10 + uint64(b[i]-'0')
				digits++
				i++
			}
			f.number, f.digits = number, digits
			if i == len(b) {
				break
			}
			switch c := b[i]; {
			case c == '\r':
				if reason := f.checkNumber(f.offset + int64(i)); reason != "" {
					return f.fail(b, i, reason)
				}
				f.state = stNumberLF
			case c == '-' && digits == 0 && !f.negative:
				f.negative = true
			case c-'0' <= 9:
				return f.fail(b, i, "number of more than 19 digits")
			case c == '?':
				return f.fail(b, i, "streamed strings and aggregates are not accepted")
			default:
				return f.fail(b, i, "expected a digit")
			}
			i++

		case stNumberLF:
			if b[i] != '\n' {
				return f.fail(b, i, "expected LF after CR")
			}
			i++
			f.enter()

		case stBody:
			n := min(f.remain, int64(len(b)-i))
			if f.push == pushUnknown || f.naming {
				at := int64(f.number) - f.remain
				copy(f.kind[at:], b[i:i+int(n)])
			}
			i += int(n)
			if f.remain -= n; f.remain > 0 {
				break
			}
			f.state = stCR
			if f.naming {
				f.naming = false
				f.ledger.named(f.kind[:f.number], f.arity-1)
			}
			if f.push == pushUnknown {
				if reason := f.resolvePush(); reason != "" {
					return f.fail(b, i-1, reason)
				}
			}
			if i+1 < len(b) && b[i] == '\r' && b[i+1] == '\n' {
				i += 2
				f.end()
			}

		case stBool:
			if b[i] != 't' && b[i] != 'f' {
				return f.fail(b, i, "expected t or f")
			}
			i++
			f.state = stCR

		case stCR:
			if b[i] != '\r' {
				return f.fail(b, i, "expected CR")
			}
			i++
			f.state = stLF

		case stLF:
			if b[i] != '\n' {
				return f.fail(b, i, "expected LF after CR")
			}
			i++
			f.end()

		case stLine:
			// Like rueidis, the line ends at its first LF: a CR elsewhere in it
			// is text.
			rest := b[i:min(len(b), i+f.limits.MaxLine+2-f.line)]
			n := bytes.IndexByte(rest, '\n')
			if f.must != anyReply {
				f.text = append(f.text, rest[:min(len(rest), maxText-len(f.text))]...)
			}
			if n < 0 {
				i += len(rest)
				f.line += len(rest)
				f.lastCR = rest[len(rest)-1] == '\r'
				if f.line == f.limits.MaxLine+2 {
					return f.fail(b, i-1, "line longer than the limit")
				}
				break
			}
			i += n
			if n > 0 {
				f.lastCR = rest[n-1] == '\r'
			}
			if !f.lastCR {
				return f.fail(b, i, "expected CR before LF")
			}
			if reason := f.checkText(); reason != "" {
				return f.fail(b, i, reason)
			}
			i++
			f.end()
		}
	}
	f.offset += int64(len(b))
	return nil
}

// begin takes the type byte b[i].
func (f *Framer) begin(b []byte, i int) bool {
	c := b[i]
	if len(f.stack) == 0 {
		f.frame = f.offset + int64(i)
		f.elements = 0
	} else if f.offset+int64(i)-f.frame >= f.limits.MaxFrame {
		f.fail(b, i, "frame larger than the limit")
		return false
	}
	if f.requests {
		want := byte('*')
		if len(f.stack) > 0 {
			want = '$'
		}
		if c != want {
			f.fail(b, i, "a request is an array of bulk strings")
			return false
		}
	}
	null := false
	switch c {
	case '$', '*', ':', '%', '~', '!', '=':
		f.state = stNumber
	case '>':
		if len(f.stack) > 0 {
			// rueidis repairs such a reply if the server says it is Redis 6 and
			// takes the rest of it for another reply otherwise (pipe.go,
			// _backgroundRead, ver == 6), so what it would count as replies is
			// up to the server.
			f.fail(b, i, "a push inside a reply")
			f.err.Hint = "Redis before 7.0.5 does that when tracked keys expire during a command (redis/redis#8935)"
			return false
		}
		f.push = pushUnknown
		f.state = stNumber
	case '+', '-', ',', '(':
		f.state = stLine
		f.line, f.lastCR = 0, false
	case '#':
		f.state = stBool
	case '_':
		f.state = stCR
		null = true
	case '|':
		f.fail(b, i, "attributes are not accepted")
		return false
	case '.', ';':
		f.fail(b, i, "streamed strings and aggregates are not accepted")
		return false
	default:
		f.fail(b, i, "not the type of a RESP element")
		return false
	}
	f.typ = c
	if len(f.stack) == 0 {
		if c != '>' {
			if reason := f.expects(c); reason != "" {
				// rueidis panics on a reply it has no request for (pipe.go,
				// _backgroundRead, protocolbug). The check is made here, not
				// at the end of the reply, for it allocates before that.
				f.fail(b, i, reason)
				f.err.Hint = "it said " + quote(b[i:])
				return false
			}
			f.begun++
		}
	} else if f.push != pushNone && f.state != stNumber && !f.pushAccepts(null) {
		f.fail(b, i, "push of an unknown form")
		return false
	}
	f.digits, f.number, f.negative = 0, 0, false
	return true
}

// expects takes a frame of type c that is no push, and says why it may not be.
func (f *Framer) expects(c byte) (reason string) {
	switch {
	case f.ledger == nil:
		if f.begun >= f.allowed {
			return "a reply nobody asked for"
		}
	case f.requests:
		f.ledger.began()
	default:
		f.must, reason = f.ledger.reply(c == '-' || c == '!')
		f.text = f.text[:0]
		if reason == "" && f.must != anyReply && c != '+' && c != '-' {
			return "an unsubscription was answered with a reply"
		}
	}
	return reason
}

// maxText is how much of a reply is looked at.
const maxText = 1024

// checkText checks a line that has ended, where it matters what it says.
func (f *Framer) checkText() (reason string) {
	if f.must == anyReply || len(f.stack) > 0 {
		return ""
	}
	text, _, _ := bytes.Cut(f.text, []byte("\r"))
	if len(f.text) == maxText || isPong(f.typ, text) != (f.must == pongReply) {
		return "an unsubscription was answered with " + quote(text)
	}
	f.must = anyReply
	return ""
}

// checkNumber checks the number in front of a CR at the given offset. rueidis
// acts on it when it sees the LF.
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
		// make panics for $-5 and *-7 (resp.go, readB and readA), and for
		// %-1, which rueidis does not take for a null (readMap).
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
		if f.typ == '%' {
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
		// Redis does not answer an empty request: it would let the server
		// have one reply for free.
		return "a request is an array of bulk strings"
	}
	if f.push == pushNone {
		return ""
	}
	if f.typ == '>' {
		if !f.pushArity() {
			return "push of an unknown form"
		}
	} else if !f.pushAccepts(null) {
		return "push of an unknown form"
	}
	return ""
}

// enter goes on after a header whose number checkNumber found good.
func (f *Framer) enter() {
	n := int64(f.number)
	switch f.typ {
	case '$', '=', '!':
		if f.negative {
			f.end()
			return
		}
		f.remain = n
		f.state = stBody
		if n == 0 {
			f.state = stCR
		}
		f.naming = f.ledger != nil && f.requests && f.stack[0] == f.arity && n > 0 && n <= maxPushKind
		return
	case '*', '~', '%', '>':
		if f.negative || n == 0 {
			f.end()
			return
		}
		if f.typ == '%' {
			n *= 2
		}
		f.elements += n
		f.stack = append(f.stack, n)
		f.state = stType
		if f.requests {
			f.arity = n
		}
		return
	}
	f.end()
}

// end ends the current element and every aggregate it is the last element of.
func (f *Framer) end() {
	f.state = stType
	for n := len(f.stack); n > 0; n-- {
		if f.stack[n-1]--; f.stack[n-1] > 0 {
			f.stack = f.stack[:n]
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
}

// fail makes b[i] a violation.
func (f *Framer) fail(b []byte, i int, reason string) error {
	f.err = &ProtocolError{
		Offset:   f.offset + int64(i),
		Byte:     b[i],
		Reason:   reason,
		Outbound: f.requests,
	}
	if f.err.Offset == 0 && f.state == stType && !f.requests {
		f.err.Hint = firstByteHint(b)
	}
	return f.err
}
