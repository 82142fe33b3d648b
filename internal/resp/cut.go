package resp

import "strconv"

// A cut is a part of a chunk that rueidis must not see, and its replacement.
type cut struct {
	from, to int
	with     []byte
}

// A cutKind is the reason for a cut.
type cutKind uint8

const (
	cutNone  cutKind = iota
	cutReply         // a rewritten answer to an unsubscription or to the PING behind it
	cutPush          // a push inside a reply, which is moved behind the reply
)

// cut ends a cut in front of b[to].
func (f *Framer) cut(b []byte, to int, with []byte) {
	if f.cutting == cutPush {
		f.later = append(f.later, b[f.cutFrom:to]...)
	}
	f.cuts = append(f.cuts, cut{f.cutFrom, to, with})
}

// substitute replaces an error that answers an unsubscription or the PING that rueidis
// sends behind it. rueidis takes some errors for PING's answer and counts on one
// (pipe.go, isUnsubReply). Other errors it does not expect at all, though Redis answers
// BUSY to both, and MISCONF or MASTERDOWN to the PING alone.
func (f *Framer) substitute() []byte {
	if f.must == pongReply {
		return []byte("+PONG\r\n")
	}
	// The same error, in a form that rueidis never takes for PING's.
	with := append([]byte{'!'}, strconv.Itoa(len(f.text))...)
	with = append(with, '\r', '\n')
	with = append(with, f.text...)
	return append(with, '\r', '\n')
}

// apply returns the chunk with all cuts made, and the offset in it from which bytes are
// held back.
func (f *Framer) apply(b []byte) (out []byte, hold int) {
	at, hold := 0, none
	pass := func(to int, all bool) {
		if hold == none && f.hold >= at && f.hold < to {
			hold = len(out)
			if all {
				hold += f.hold - at
			}
		}
		if all {
			out = append(out, b[at:to]...)
		}
		at = to
	}
	for _, c := range f.cuts {
		pass(c.from, true)
		pass(c.to, false)
		out = append(out, c.with...)
	}
	pass(len(b), true)
	return out, hold
}
