package resp

// A pushKind says which elements the current push must have.
//
//	kind              elements after the kind itself
//	----------------  ------------------------------------------------
//	pushInvalidate    null, or an array of bulk strings
//	pushMessage       bulk strings
//	pushSubscription  bulk string, or null for the last unsubscribe; integer
//	pushOther         anything but a push
type pushKind uint8

const (
	pushNone    pushKind = iota // not in a push
	pushUnknown                 // before the kind, or within it
	pushInvalidate
	pushMessage
	pushSubscription
	pushOther
)

// maxPushKind is the length of the longest kind, punsubscribe.
const maxPushKind = 12

// beginKind handles the type of a push's first element. A push whose first element is no
// string, or has none of the names below, is skipped by rueidis (pipe.go, handlePush).
func (f *Framer) beginKind(c byte) {
	switch c {
	case '$', '=', '!':
	case '+', '-', ',', '(':
		f.capture, f.text = maxPushKind+2, f.text[:0] // with CR and LF
	default:
		f.push = pushOther
	}
}

// resolvePush handles the kind of a push, once it was read.
func (f *Framer) resolvePush(kind []byte) (reason string) {
	arity := int64(3)
	push := pushSubscription
	switch string(kind) {
	case "invalidate":
		push, arity = pushInvalidate, 2
	case "message", "smessage":
		push = pushMessage
	case "pmessage":
		push, arity = pushMessage, 4
	case "subscribe", "psubscribe", "ssubscribe", "unsubscribe", "punsubscribe", "sunsubscribe":
	default:
		f.push = pushOther
		return ""
	}
	f.push = push
	switch {
	case f.typ != '$' || f.arity != arity:
		return "push of an unknown form"
	case push != pushInvalidate && !f.AllowPubSub:
		return "a push for a subscription nobody asked for"
	case push == pushSubscription && f.ledger != nil:
		return f.ledger.confirmed(kind)
	}
	return ""
}

// pushAccepts reports whether the current element may stand at its place in the current
// push. rueidis handles wrong elements badly: for example, it flushes the cache for an
// invalidation of an integer, and passes the elements to OnInvalidations whatever their
// type.
func (f *Framer) pushAccepts(null bool) bool {
	if len(f.stack) == f.pushAt+2 {
		return f.push == pushOther || f.typ == '$' && !null
	}
	at := f.arity - f.stack[f.pushAt].missing
	switch {
	case f.push == pushOther:
		return true
	case f.push == pushInvalidate:
		return null || f.typ == '*'
	case f.push == pushMessage:
		return f.typ == '$' && !null
	case at == 1:
		return f.typ == '$' || f.typ == '_'
	default:
		return f.typ == ':' && !f.negative
	}
}
