package resp

// A pushKind says what the elements of the current push must be.
//
//	kind              elements after the kind itself
//	----------------  ------------------------------------------------
//	pushInvalidate    null, or an array of bulk strings
//	pushMessage       bulk strings
//	pushSubscription  bulk string, or null for the last unsubscribe; integer
type pushKind uint8

const (
	pushNone    pushKind = iota // not in a push
	pushUnknown                 // in front of, or in, the kind
	pushInvalidate
	pushMessage
	pushSubscription
)

// maxPushKind is the length of the longest kind, punsubscribe.
const maxPushKind = 12

// pushArity takes the number of elements of a push. No kind has fewer than two
// or more than four elements.
func (f *Framer) pushArity() bool {
	f.arity = int64(f.number)
	if f.AllowPubSub {
		return f.arity >= 2 && f.arity <= 4
	}
	return f.arity == 2
}

// resolvePush looks at the kind of a push, which has now been read.
func (f *Framer) resolvePush() (reason string) {
	arity := int64(3)
	switch string(f.kind[:f.number]) {
	case "invalidate":
		f.push, arity = pushInvalidate, 2
	case "message", "smessage":
		f.push = pushMessage
	case "pmessage":
		f.push, arity = pushMessage, 4
	case "subscribe", "psubscribe", "ssubscribe", "unsubscribe", "punsubscribe", "sunsubscribe":
		f.push = pushSubscription
	default:
		return "push of an unknown kind"
	}
	if f.arity != arity {
		return "push of an unknown form"
	}
	if f.push == pushSubscription && f.ledger != nil {
		return f.ledger.confirmed(f.kind[:f.number])
	}
	return ""
}

// pushAccepts tells whether the current element may stand where it stands in
// the current push. What rueidis makes of one that may not is not worth
// knowing in every case: it flushes the cache for an invalidation of an
// integer, and hands the elements to OnInvalidations whatever they are.
func (f *Framer) pushAccepts(null bool) bool {
	if len(f.stack) == 2 {
		return f.typ == '$' && !null
	}
	at := f.arity - f.stack[0]
	switch {
	case at == 0:
		return f.typ == '$' && !null && f.number > 0 && f.number <= maxPushKind
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
