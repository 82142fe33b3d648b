package resp

import (
	"bytes"
	"sync"
)

// A ledger knows what the requests of a connection that subscribes wait for. On any
// other connection counting is enough: each request has one reply. A subscription has
// a push for each channel and no reply, or an error. An unsubscription has one push at
// least, or an error, and rueidis sends a PING behind it, the chaser, by whose answer it
// knows that the pushes are over. rueidis panics (pipe.go, _backgroundRead) on each of
// these:
//
//	what comes                                  while the oldest request is      here
//	------------------------------------------  -------------------------------  ---------
//	a reply                                     none                             violation
//	a push that confirms a subscription         none, or no subscription         violation
//	a reply that is no error (+QUEUED)          a subscription                   violation
//	an unsubscription                           a subscription, partly confirmed violation
//	an error that could be PING's (BUSY)        an unsubscription                rewritten
//	another error than it knows (MISCONF)       a chaser                         rewritten
//	a reply that is neither PONG nor an error   a chaser                         violation
//
// A correct server sends what is rewritten, see Framer.substitute. +QUEUED it sends to
// who subscribes within MULTI, which holdfast refuses.
//
// An error behind a push of the unsubscription's kind is the chaser's. But a sharded
// subscription is ended by the server as well, when its slot moves, and what comes then may
// be the refusal (MOVED) of an SUNSUBSCRIBE that was under way: so there it depends on
// what the error says.
//
// The goroutine that writes adds to it, the one that reads takes from it.
type ledger struct {
	mu struct {
		sync.Mutex
		entries []entry
		head    int
		chaser  bool // the next request is the PING behind an unsubscription
		unnamed bool // what the last request is, is not known yet: nothing can answer it
	}
}

// An entry is a request that is not answered, or a number of plain ones in a row.
type entry struct {
	kind  requestKind
	name  string // of a subscription or an unsubscription
	count int64  // of plain requests; or of channels to confirm
	got   int64  // confirmations
}

type requestKind uint8

const (
	reqPlain requestKind = iota
	reqSubscribe
	reqUnsubscribe
	reqChaser
)

// A demand is what a reply must be.
type demand uint8

const (
	anyReply    demand = iota
	pongReply          // of a chaser: PONG, or an error
	otherReply         // of an unsubscription that is refused: an error
	eitherReply        // an error that is the one or the other's
)

// began adds a request, before anything of it is sent. What it is, is not known yet.
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

// subscriptions are the requests that are answered with pushes, and those pushes.
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

// named says what the request that began last is, before the end of its name is sent.
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
		return // rueidis sends nothing else there
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

// oldest is the request that is answered next, nil where there is none.
func (l *ledger) oldestLocked() *entry {
	if l.mu.head == len(l.mu.entries) {
		l.mu.entries, l.mu.head = l.mu.entries[:0], 0
		return nil
	}
	return &l.mu.entries[l.mu.head]
}

// askedLocked is oldestLocked for a reply: nil also where what is oldest was not sent yet.
func (l *ledger) askedLocked() *entry {
	e := l.oldestLocked()
	if e != nil && l.mu.unnamed && l.mu.head == len(l.mu.entries)-1 && (e.kind != reqPlain || e.count == 1) {
		return nil
	}
	return e
}

// reply takes the beginning of a reply, and says what it must be, or why it may not be.
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
		// It was done, so this is the answer to the PING behind it.
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

// decide says of an error behind a push that may have been the server's own whether the
// chaser got it, or the unsubscription.
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

// isPingError says whether Redis answers PING with that. PING has no key, and is never
// redirected.
func isPingError(text []byte) bool {
	for _, code := range []string{"BUSY", "LOADING", "MASTERDOWN", "MISCONF", "NOAUTH"} {
		if bytes.HasPrefix(text, []byte(code)) {
			return true
		}
	}
	return bytes.Contains(text, []byte("'ping'"))
}

// confirmed takes a push of that kind, which is a subscription or an unsubscription.
func (l *ledger) confirmed(kind []byte) (reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.oldestLocked()
	if among(unsubscriptions, kind) != "" {
		// The server may end a subscription by itself: when its slot moves.
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
