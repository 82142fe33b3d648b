package resp

// Limits bounds what one server may make the client allocate. What it announces costs
// nothing before it has arrived, so these are bounds on what it really sends. A field that
// is zero or negative takes its value from DefaultLimits.
type Limits struct {
	// MaxBulk is the longest bulk string, in bytes.
	MaxBulk int64

	// MaxElements is how many elements all aggregates of one top-level frame
	// may declare together; a map entry is two. rueidis needs 40 bytes for each.
	MaxElements int64

	// MaxDepth is how deep aggregates may nest. rueidis recurses once per
	// level, and a Go stack overflow cannot be recovered. Redis nests to about two
	// thousand, in the reply of a script.
	MaxDepth int

	// MaxLine is the longest simple string, error, double or big number, in
	// bytes without its type byte and CRLF. rueidis buffers a line until it
	// ends (resp.go, readS). Redis does not bound the error of a script.
	MaxLine int

	// MaxFrame is the size of one top-level frame, in bytes on the wire.
	// rueidis holds a reply in memory until its last element has arrived, so
	// an array of a million bulk strings must not be bounded one string at a
	// time only.
	MaxFrame int64
}

// DefaultLimits accepts everything a Redis server with its default
// configuration sends, bulk strings as large as Redis' own limit included.
var DefaultLimits = Limits{
	MaxBulk:     512 << 20,
	MaxElements: 1 << 24,
	MaxDepth:    4096,
	MaxLine:     16 << 20,
	MaxFrame:    1 << 30,
}

func (l Limits) withDefaults() Limits {
	if l.MaxBulk <= 0 {
		l.MaxBulk = DefaultLimits.MaxBulk
	}
	if l.MaxElements <= 0 {
		l.MaxElements = DefaultLimits.MaxElements
	}
	if l.MaxDepth <= 0 {
		l.MaxDepth = DefaultLimits.MaxDepth
	}
	if l.MaxLine <= 0 {
		l.MaxLine = DefaultLimits.MaxLine
	}
	l.MaxLine = min(l.MaxLine, 1<<30)
	if l.MaxFrame <= 0 {
		l.MaxFrame = DefaultLimits.MaxFrame
	}
	return l
}
