package resp

import (
	"bytes"
	"sync"
)

// A ledger tracks the replies that the requests of a connection that subscribes expect.
// On any other connection a count is enough: each request has one reply. A subscription
// has a push for each channel and no reply, or an error. An unsubscription has at least
// one push, or an error. Behind it rueidis sends a PING, the chaser, whose answer ends
// the pushes. rueidis panics (pipe.go, _backgroundRead) on each of these:
//
//	received                                    while the oldest request is      here
//	------------------------------------------  -------------------------------  ---------
//	a reply                                     none                             violation
//	a push that confirms a subscription         none, or no subscription         violation
//	a reply that is no error (+QUEUED)          a subscription                   violation
//	an unsubscription                           a subscription, partly confirmed violation
//	an error that could be PING's (BUSY)        an unsubscription                rewritten
//	another error than it knows (MISCONF)       a chaser                         rewritten
//	a reply that is neither PONG nor an error   a chaser                         violation
//
// A correct server may send the rewritten errors; see Framer.substitute. It sends +QUEUED
// for a subscription within MULTI, which holdfast refuses.
//
// An error behind a push of the unsubscription's kind is the chaser's answer. There is
// one exception: the server itself ends a sharded subscription when its slot moves. The
// next error may then be the refusal (MOVED) of an SUNSUBSCRIBE that was under way, so
// the text of the error decides.
//
// The goroutine that writes adds requests, the one that reads removes them.
type ledger struct {
	mu struct {
		sync.Mutex
		entries []entry
		head    int
		chaser  bool // the next request is the PING behind an unsubscription
		unnamed bool // the kind of the last request is not known yet: no reply can belong to it
	}
}

// An entry is a request that is not answered, or several consecutive plain ones.
type entry struct {
	kind  requestKind
	name  string // of a subscription or an unsubscription
	count int64  // number of plain requests, or of channels to confirm
	got   int64  // confirmations received
}

type requestKind uint8

const (
	reqPlain requestKind = iota
	reqSubscribe
	reqUnsubscribe
	reqChaser
)

// A demand says which reply is expected.
type demand uint8

const (
	anyReply    demand = iota
	pongReply          // of a chaser: PONG, or an error
	otherReply         // of a refused unsubscription: an error
	eitherReply        // an error that answers either of the two
)

// began adds a request before any of its bytes is sent. Its kind is not known yet.
func (l *ledger) began() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.unnamed = true
	if l.mu.chaser {
		l.mu.chaser = false
		l.mu.entries = append(l.mu.entries, entry{kind: reqChaser})
		return
	}
	if n := len(l.mu.entries); n > l.mu.head && l.mu.entries[n-1].kind == reqPlain {
		l.mu.entries[n-1].count++
		return
	}
	if l.mu.head > 64 && 2*l.mu.head > len(l.mu.entries) {
		l.mu.entries = l.mu.entries[:copy(l.mu.entries, l.mu.entries[l.mu.head:])]
		l.mu.head = 0
	}
	l.mu.entries = append(l.mu.entries, entry{count: 1})
}

// subscriptions and unsubscriptions are the requests that are answered with pushes. The
// pushes have the same names.
var subscriptions = []string{"subscribe", "psubscribe", "ssubscribe"}
var unsubscriptions = []string{"unsubscribe", "punsubscribe", "sunsubscribe"}

func among(names []string, name []byte) string {
	for _, n := range names {
		if len(n) == len(name) && bytes.EqualFold([]byte(n), name) {
			return n
		}
	}
	return ""
}

// named sets the kind of the request that began last, before the end of its name is sent.
func (l *ledger) named(name []byte, args int64) {
	kind, n := reqSubscribe, ""
	if len(name) >= len("subscribe") {
		n = among(subscriptions, name)
		if n == "" {
			kind, n = reqUnsubscribe, among(unsubscriptions, name)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.unnamed = false
	if n == "" {
		return
	}
	last := &l.mu.entries[len(l.mu.entries)-1]
	if last.kind != reqPlain {
		return // rueidis sends no subscription there
	}
	l.mu.chaser = kind == reqUnsubscribe
	e := entry{kind: kind, name: n, count: max(args, 1)}
	if last.count > 1 {
		last.count--
		l.mu.entries = append(l.mu.entries, e)
		return
	}
	*last = e
}

// oldestLocked returns the request that is answered next, nil if there is none. The
// caller holds the mutex.
func (l *ledger) oldestLocked() *entry {
	if l.mu.head == len(l.mu.entries) {
		l.mu.entries, l.mu.head = l.mu.entries[:0], 0
		return nil
	}
	return &l.mu.entries[l.mu.head]
}

// askedLocked is oldestLocked for a reply: it also returns nil if the oldest request was
// not sent completely. The caller holds the mutex.
func (l *ledger) askedLocked() *entry {
	e := l.oldestLocked()
	if e != nil && l.mu.unnamed && l.mu.head == len(l.mu.entries)-1 && (e.kind != reqPlain || e.count == 1) {
		return nil
	}
	return e
}

// reply handles the beginning of a reply. It returns which reply is expected, or why none
// is allowed.
func (l *ledger) reply(isError bool) (must demand, reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.askedLocked()
	if e == nil {
		return anyReply, "a reply nobody asked for"
	}
	switch e.kind {
	case reqSubscribe:
		if !isError || e.got > 0 {
			return anyReply, "a subscription was answered with a reply"
		}
		l.mu.head++
		return anyReply, ""
	case reqUnsubscribe:
		if isError && e.got > 0 && e.name == "sunsubscribe" {
			return eitherReply, ""
		}
		l.mu.head++
		if isError && e.got == 0 {
			return otherReply, ""
		}
		// The unsubscription succeeded, so this is the answer to the PING behind it.
		if e = l.askedLocked(); e == nil {
			return anyReply, "a reply nobody asked for"
		}
		l.mu.head++
		return pongReply, ""
	case reqChaser:
		l.mu.head++
		return pongReply, ""
	}
	if e.count--; e.count == 0 {
		l.mu.head++
	}
	return anyReply, ""
}

// decide handles an error behind a push that the server may have sent by itself. It
// returns whether the error answers the chaser or the unsubscription.
func (l *ledger) decide(text []byte) demand {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.oldestLocked()
	l.mu.head++
	if e.got < e.count || !isPingError(text) {
		return otherReply
	}
	if l.oldestLocked() != nil {
		l.mu.head++
	}
	return pongReply
}

// isPingError reports whether Redis answers PING with this error. PING has no key and is
// never redirected.
func isPingError(text []byte) bool {
	for _, code := range []string{"BUSY", "LOADING", "MASTERDOWN", "MISCONF", "NOAUTH"} {
		if bytes.HasPrefix(text, []byte(code)) {
			return true
		}
	}
	return bytes.Contains(text, []byte("'ping'"))
}

// confirmed handles a push of that kind, which confirms a subscription or an
// unsubscription.
func (l *ledger) confirmed(kind []byte) (reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.oldestLocked()
	if among(unsubscriptions, kind) != "" {
		// The server may end a subscription by itself, when its slot moves.
		switch {
		case e == nil:
		case e.kind == reqSubscribe && e.got > 0:
			return "an unsubscription amid a subscription"
		case e.kind == reqUnsubscribe && e.name == string(kind):
			e.got++
		}
		return ""
	}
	if e == nil || e.kind != reqSubscribe || e.name != string(kind) {
		return "a subscription nobody asked for"
	}
	if e.got++; e.got == e.count {
		l.mu.head++
	}
	return ""
}
