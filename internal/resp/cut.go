package resp

import "strconv"

// A cut is a piece of a chunk that rueidis is not to see, and what it sees instead.
type cut struct {
	from, to int
	with     []byte
}

// A cutKind is a reason to cut.
type cutKind uint8

const (
	cutNone  cutKind = iota
	cutReply         // an answer to an unsubscription, or to the PING behind it, that is put otherwise
	cutPush          // a push inside a reply, which goes behind it
)

// cut ends a piece, in front of b[to].
func (f *Framer) cut(b []byte, to int, with []byte) {
	if f.cutting == cutPush {
		f.later = append(f.later, b[f.cutFrom:to]...)
	}
	f.cuts = append(f.cuts, cut{f.cutFrom, to, with})
}

// substitute is what rueidis gets in place of an error that answers an unsubscription or
// the PING that rueidis sends behind it. It takes some errors for PING's answer and
// counts on one (pipe.go, isUnsubReply), and others it does not expect at all, though
// Redis says BUSY to both, and MISCONF or MASTERDOWN to the PING alone.
func (f *Framer) substitute() []byte {
	if f.must == pongReply {
		return []byte("+PONG\r\n")
	}
	// The same error, in a form that it never takes for PING's.
	with := append([]byte{'!'}, strconv.Itoa(len(f.text))...)
	with = append(with, '\r', '\n')
	with = append(with, f.text...)
	return append(with, '\r', '\n')
}

// apply returns a chunk as rueidis is to see it, and where in that begins what is to be
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
